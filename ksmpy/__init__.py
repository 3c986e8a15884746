"""KSM in user space for Python: equal pages of registered buffers share one copy.

Everything is imported when it is first used, so that importing ksmpy costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksmpy.analyze import analyze
    from ksmpy.arrays import array, copy, empty, empty_like, full, zeros
    from ksmpy.dedup import Report, dedup, estimate
    from ksmpy.doctor import doctor
    from ksmpy.engine import Engine
    from ksmpy.errors import KnobError, KsmpyError, RegionError, StoreError, Unsupported
    from ksmpy.integrations import disable, enable, worker_init
    from ksmpy.region import Region
    from ksmpy.stats import (
        Check,
        Coverage,
        Estimate,
        Refused,
        RegionStats,
        ScanResult,
        Share,
        Stats,
        StoreStats,
    )
    from ksmpy.store import Store, StoreProcess

    __version__: str

_EXPORTS = {
    "Check": "stats",
    "Coverage": "stats",
    "Engine": "engine",
    "Estimate": "stats",
    "KnobError": "errors",
    "KsmpyError": "errors",
    "Refused": "stats",
    "Region": "region",
    "RegionError": "errors",
    "RegionStats": "stats",
    "Report": "dedup",
    "ScanResult": "stats",
    "Share": "stats",
    "Stats": "stats",
    "Store": "store",
    "StoreError": "errors",
    "StoreProcess": "store",
    "StoreStats": "stats",
    "Unsupported": "errors",
    "analyze": "analyze",
    "array": "arrays",
    "copy": "arrays",
    "dedup": "dedup",
    "disable": "integrations",
    "doctor": "doctor",
    "empty": "arrays",
    "empty_like": "arrays",
    "enable": "integrations",
    "estimate": "dedup",
    "full": "arrays",
    "worker_init": "integrations",
    "zeros": "arrays",
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
    "analyze",
    "array",
    "copy",
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


class _Package(ModuleType):
    """Keeps `import ksmpy.doctor` from putting the module where the function doctor() belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _EXPORTS and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("ksmpy")
    elif name in _EXPORTS:
        value = getattr(import_module(f"ksmpy.{_EXPORTS[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, "__version__"])
