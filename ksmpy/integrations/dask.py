"""dask.distributed: ``client.register_plugin(ksmpy.integrations.dask.KsmpyPlugin())``.

dask's own limits count RSS, in which a shared page is once for each who has it: they see no saving.
"""

from __future__ import annotations

from typing import Any

from ksmpy.whole.enable import disable, enable

__all__ = ["KsmpyPlugin"]  # noqa: F822  # made by __getattr__()


def _make_plugin() -> Any:
    from distributed.diagnostics.plugin import WorkerPlugin

    class KsmpyPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
        """Each worker process merges with the others on its machine, on one named store.

        Options as for enable().
        """

        name = "ksmpy"

        def __init__(self, store: str = "dask", **options: Any) -> None:
            self.options = {"store": store, **options}

        def setup(self, worker: Any) -> None:
            """In the worker, when it starts or when the plugin is registered."""
            enable(**self.options)

        def teardown(self, worker: Any) -> None:
            """In the worker, when the plugin is taken out: everything gets memory of its own."""
            disable()

    # Workers find it by these names.
    KsmpyPlugin.__qualname__ = "KsmpyPlugin"
    return KsmpyPlugin


def __getattr__(name: str) -> Any:
    """The class is made when it is first asked for: without distributed this module imports."""
    if name != "KsmpyPlugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _make_plugin()
    return globals()[name]
