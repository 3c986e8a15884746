"""Pools of processes: ``ProcessPoolExecutor(8, initializer=ksmpy.integrations.pools.share())``.

The same for multiprocessing's Pool, and as the ``worker_init_fn`` of torch's DataLoader.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ksmpy.integrations.common import chosen_store, enable_if_can
from ksmpy.store.store import Store

__all__ = ["share"]


def share(store: str | Store | None = None, **options: Any) -> Callable[..., None]:
    """What each worker of one pool calls when it starts: merging is enabled there, on one store.

    `store`: None makes one without a name, which goes with the pool, unless KSMPY_STORE or ksmpy
    run has chosen another. Other options as for enable(). Works with fork, forkserver and spawn.
    """
    chosen = chosen_store() if store is None else store
    if chosen is not None:
        options["store"] = chosen
    return functools.partial(_in_worker, **options)


def _in_worker(*_: object, **options: Any) -> None:
    """Called without an argument by pools, and with the worker's number by torch's DataLoader."""
    enable_if_can(**options)
