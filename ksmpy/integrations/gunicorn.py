"""gunicorn: ``gunicorn -c python:ksmpy.integrations.gunicorn -w 8 app:app``.

In a configuration of one's own: ``from ksmpy.integrations.gunicorn import *``, or call these from
the functions of these names there. Options come from KSMPY_*, as for enable().
"""

from __future__ import annotations

from typing import Any

from ksmpy.integrations.common import chosen_store, enable_if_can
from ksmpy.store.store import Store

__all__ = ["on_starting", "post_fork", "when_ready"]

_store: Store | None = None


def on_starting(server: Any) -> None:
    """In the master, before anything else: the store that all workers inherit."""
    global _store
    _store = chosen_store()


def when_ready(server: Any) -> None:
    """In the master: with preload_app it has loaded what its workers will share."""
    if server.cfg.preload_app:
        _enable()


def post_fork(server: Any, worker: Any) -> None:
    """In each worker."""
    _enable()


def _enable() -> None:
    if _store is None:
        enable_if_can()
    else:
        enable_if_can(store=_store)
