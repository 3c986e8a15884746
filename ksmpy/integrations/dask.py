"""dask.distributed: ``client.register_plugin(ksmpy.integrations.dask.KsmpyPlugin())``.

dask's guards, which spill, pause and restart workers, count RSS, in which a shared page is once for
each who has it. The plugin has them count PSS, in which it is once for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from ksmpy.integrations.common import enable_if_can
from ksmpy.integrations.resident import Resident
from ksmpy.whole.enable import disable

__all__ = ["KsmpyNannyPlugin", "KsmpyPlugin"]  # noqa: F822  # made by __getattr__()

_log = logging.getLogger("ksmpy")
_MONITOR = "memory_monitor"


class _Worker:
    """Each worker process merges with the others on its machine, on one named store.

    `guards`: "pss" has the worker's guard, and its nanny's if it has one, count shared pages once;
    "rss" leaves them as they are. Other options as for enable().
    """

    name = "ksmpy"

    def __init__(self, store: str = "dask", guards: str = "pss", **options: Any) -> None:
        if guards not in ("pss", "rss"):
            raise ValueError(f"guards must be 'pss' or 'rss', not {guards!r}")
        self.guards = guards
        self.options = {"store": store, **options}

    async def setup(self, worker: Any) -> None:
        """In the worker, when it starts or when the plugin is registered."""
        enable_if_can(**self.options)
        if self.guards == "pss":
            monitor = worker.monitor
            resident = Resident(monitor.proc.pid)
            monitor.get_process_memory = lambda: resident.of(monitor.proc.memory_info().rss)
            if worker.nanny:
                await _tell_nanny(worker)

    def teardown(self, worker: Any) -> None:
        """In the worker, when the plugin is taken out: everything gets memory of its own."""
        vars(worker.monitor).pop("get_process_memory", None)
        disable()


async def _tell_nanny(worker: Any) -> None:
    from distributed.protocol.pickle import dumps

    async with worker.rpc(worker.nanny) as nanny:
        plugin = __getattr__("KsmpyNannyPlugin")()
        told = await nanny.plugin_add(plugin=dumps(plugin), name=plugin.name)
    if told["status"] != "OK":
        _log.warning("the nanny of this worker goes on counting RSS: %s", told)


class _Nanny:
    """A nanny restarts its worker when its PSS, not its RSS, is above the limit.

    Workers with the plugin above bring it to theirs.
    """

    name = "ksmpy-nanny"

    def setup(self, nanny: Any) -> None:
        """In the nanny's process; again when its worker has been restarted."""
        callback = nanny.periodic_callbacks.get(_MONITOR)
        if callback is not None and not isinstance(callback.callback, _Guard):
            callback.callback = _Guard(nanny, callback.callback)

    def teardown(self, nanny: Any) -> None:
        """Its own guard again."""
        callback = nanny.periodic_callbacks.get(_MONITOR)
        if callback is not None and isinstance(callback.callback, _Guard):
            callback.callback = callback.callback.original


class _Guard:
    """Leaves the decision to dask's own guard, unless PSS is within the limit."""

    def __init__(self, nanny: Any, original: Callable[[], None]) -> None:
        self.original = original
        self._nanny = nanny
        self._resident = Resident(-1)

    def __call__(self) -> None:
        if self._is_above():
            self.original()

    def _is_above(self) -> bool:
        """True also where it cannot be told."""
        import psutil

        manager = self._nanny.memory_manager
        pid = getattr(getattr(self._nanny.process, "process", None), "pid", None)
        if pid is None:
            return True
        if pid != self._resident.pid:
            self._resident = Resident(pid)
        most: float = manager.memory_limit * manager.memory_terminate_fraction
        try:
            rss: int = psutil.Process(pid).memory_info().rss
        except psutil.Error:
            return True
        # Before a worker is ended its memory is measured anew: a figure may be some seconds old.
        return (
            rss > most
            and self._resident.of(rss) > most
            and self._resident.of(rss, fresh=True) > most
        )


@cache
def _make(name: str) -> Any:
    from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin

    ours, theirs = {
        "KsmpyPlugin": (_Worker, WorkerPlugin),
        "KsmpyNannyPlugin": (_Nanny, NannyPlugin),
    }[name]
    # Workers and nannies find it by these names.
    return type(name, (ours, theirs), {"__module__": __name__, "__doc__": ours.__doc__})


def __getattr__(name: str) -> Any:
    """The classes are made when they are first asked for: without distributed this imports."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _make(name)
