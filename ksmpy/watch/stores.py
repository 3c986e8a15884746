"""The named stores of this user: who uses them, and what memory they keep."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass, replace

from ksmpy import proc
from ksmpy.errors import StoreError
from ksmpy.native import PAGE_SIZE
from ksmpy.store import files
from ksmpy.store.stats import StoreStats
from ksmpy.store.store import Store, StoreProcess

__all__ = ["NamedStore", "look_at", "named_stores", "saved_bytes"]


@dataclass(frozen=True, slots=True)
class NamedStore:
    """One named store, as it was found."""

    name: str
    path: str
    kept_bytes: int
    """Memory that its file takes: frames and index."""
    processes: tuple[StoreProcess, ...] = ()
    stats: StoreStats | None = None
    """None where it could not be asked. Nothing counts as saved while no process uses it."""
    error: str = ""
    """Why it could not be asked."""

    @property
    def unused(self) -> bool:
        """Whether it is known that no process uses it."""
        return not self.error and not self.processes


def saved_bytes(stats: StoreStats, processes: Collection[StoreProcess]) -> int:
    """What a store saves these processes, which are all that use it, without what came by forks."""
    if not processes:  # what the counters still say is of processes that were killed
        return 0
    by_fork = proc.by_fork({each.pid: each.merging_pages for each in processes})
    return max(0, stats.saved_bytes - sum(by_fork.values()) * PAGE_SIZE)


def look_at(name: str) -> NamedStore:
    """One store. StoreError as Store.open() raises it; what it refuses then is its `error`."""
    with Store.open(name, create=False) as store:
        path = store.path or ""
        kept = os.fstat(store.fileno()).st_blocks * 512
        try:
            processes, stats = tuple(store.processes()), store.stats()
        except StoreError as error:
            return NamedStore(name, path, kept, error=error.strerror or str(error))
    stats = replace(stats, saved_bytes=saved_bytes(stats, processes))
    return NamedStore(name, path, kept, processes, stats)


def named_stores() -> list[NamedStore]:
    """All of them, by name; one that cannot be opened has an `error`. StoreError for a directory
    that is not safe to use.
    """
    found = []
    for name in files.names():
        try:
            found.append(look_at(name))
        except StoreError as error:
            if error.errno != errno.ENOENT:  # it was removed meanwhile
                path = files.store_path(name)
                found.append(NamedStore(name, path, 0, error=error.strerror or str(error)))
    return found
