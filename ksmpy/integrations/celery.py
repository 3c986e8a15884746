"""Celery: ``ksmpy.integrations.celery.setup()`` where the tasks are; pool processes share."""

from __future__ import annotations

from typing import Any

from ksmpy.integrations.common import chosen_store, enable_if_can
from ksmpy.store.store import Store

__all__ = ["setup"]

_options: dict[str, Any] = {}


def setup(store: str | Store | None = None, **options: Any) -> None:
    """Enable merging in each worker process of the pool, with options as for enable().

    `store`: None takes one without a name, for the pool of one machine's `celery worker`.
    ImportError without Celery.
    """
    from celery import signals

    _options.update(options)
    if store is not None:
        _options["store"] = store
    # With a name (dispatch_uid) two calls connect only once. References are strong (weak=False), as
    # nothing else keeps these functions alive.
    signals.worker_init.connect(_in_parent, weak=False, dispatch_uid="ksmpy")
    signals.worker_process_init.connect(_in_worker, weak=False, dispatch_uid="ksmpy")


def _in_parent(**_: Any) -> None:
    """Before the pool is forked."""
    found = None if "store" in _options else chosen_store()
    if found is not None:
        _options["store"] = found


def _in_worker(**_: Any) -> None:
    enable_if_can(**_options)
