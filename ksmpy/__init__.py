"""KSM in user space for Python: equal pages of registered buffers share one copy.

Everything is imported when it is first used, so that importing ksmpy costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksmpy.engine.engine import Engine
    from ksmpy.engine.region import Region, Share
    from ksmpy.engine.stats import RegionStats, ScanResult, Stats
    from ksmpy.errors import KnobError, KsmpyError, RegionError, StoreError, Unsupported
    from ksmpy.memory.arrays import array, copy, empty, empty_like, full, zeros
    from ksmpy.memory.modules import align_module
    from ksmpy.store.stats import StoreStats
    from ksmpy.store.store import Store, StoreProcess
    from ksmpy.watch.analyze import analyze
    from ksmpy.watch.doctor import Check, doctor
    from ksmpy.watch.estimate import Estimate, Refused
    from ksmpy.whole.adopt import Coverage
    from ksmpy.whole.dedup import Report, dedup
    from ksmpy.whole.enable import coverage, disable, enable, worker_init
    from ksmpy.whole.estimator import estimate

    __version__: str

_EXPORTS = {
    "Check": "watch.doctor",
    "Coverage": "whole.adopt",
    "Engine": "engine.engine",
    "Estimate": "watch.estimate",
    "KnobError": "errors",
    "KsmpyError": "errors",
    "Refused": "watch.estimate",
    "Region": "engine.region",
    "RegionError": "errors",
    "RegionStats": "engine.stats",
    "Report": "whole.dedup",
    "ScanResult": "engine.stats",
    "Share": "engine.region",
    "Stats": "engine.stats",
    "Store": "store.store",
    "StoreError": "errors",
    "StoreProcess": "store.store",
    "StoreStats": "store.stats",
    "Unsupported": "errors",
    "align_module": "memory.modules",
    "analyze": "watch.analyze",
    "array": "memory.arrays",
    "copy": "memory.arrays",
    "coverage": "whole.enable",
    "dedup": "whole.dedup",
    "disable": "whole.enable",
    "doctor": "watch.doctor",
    "empty": "memory.arrays",
    "empty_like": "memory.arrays",
    "enable": "whole.enable",
    "estimate": "whole.estimator",
    "full": "memory.arrays",
    "worker_init": "whole.enable",
    "zeros": "memory.arrays",
}

# Called by IPython, for %load_ext ksmpy.
_FOR_IPYTHON = {
    "load_ipython_extension": "whole.notebook",
    "unload_ipython_extension": "whole.notebook",
}

__all__ = [
    "Check",
    "Coverage",
    "Engine",
    "Estimate",
    "KnobError",
    "KsmpyError",
    "Refused",
    "Region",
    "RegionError",
    "RegionStats",
    "Report",
    "ScanResult",
    "Share",
    "Stats",
    "Store",
    "StoreError",
    "StoreProcess",
    "StoreStats",
    "Unsupported",
    "align_module",
    "analyze",
    "array",
    "copy",
    "coverage",
    "dedup",
    "disable",
    "doctor",
    "empty",
    "empty_like",
    "enable",
    "estimate",
    "full",
    "worker_init",
    "zeros",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("ksmpy")
    elif name in _EXPORTS or name in _FOR_IPYTHON:
        module = _EXPORTS.get(name) or _FOR_IPYTHON[name]
        value = getattr(import_module(f"ksmpy.{module}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, "__version__"])
