"""The named stores of this user: who uses them, and what memory they keep."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ksmpy import proc
from ksmpy.engine.history import Past
from ksmpy.errors import StoreError
from ksmpy.native import PAGE_SIZE
from ksmpy.store import files
from ksmpy.store.stats import StoreStats
from ksmpy.store.store import Store, StoreProcess
from ksmpy.watch.observe import File, file_of
from ksmpy.watch.past import counters, own_tables, package_bytes, pasts

__all__ = ["NamedStore", "look_at", "named_stores", "saved_and_taken", "saved_bytes"]


@dataclass(frozen=True, slots=True)
class NamedStore:
    """One named store, as it was found."""

    name: str
    path: str
    kept_bytes: int
    """Memory that its file takes: frames and index."""
    file: File = ("", 0)
    processes: tuple[StoreProcess, ...] = ()
    stats: StoreStats | None = None
    """None where it could not be asked. Nothing counts as saved while no process uses it."""
    error: str = ""
    """Why it could not be asked."""

    @property
    def unused(self) -> bool:
        """Whether it is known that no process uses it."""
        return not self.error and not self.processes

    @property
    def full(self) -> bool:
        """Whether its frames have taken what its file system has for them."""
        return self.stats is not None and bool(self.stats.full)


def saved_bytes(stats: StoreStats, processes: Collection[StoreProcess]) -> int:
    """What a store saves these processes, see saved_and_taken()."""
    return saved_and_taken(stats, processes)[0]


def saved_and_taken(
    stats: StoreStats,
    processes: Collection[StoreProcess],
    most_zeros: Mapping[int, int] | None = None,
) -> tuple[int, int]:
    """What a store saves these processes, which are all that use it, as its counters say and their
    engines have noted. What was written since the last pass counts as merged still; what others
    had that have ended does not, although the counters have it until one of these notices. And
    what ksmpy has taken to be imported in them, which is off it, as far as that is known.

    `most_zeros`: how many pages of zeros at the most can still be given back, by the process.
    """
    if not processes:  # what the counters still say is of processes that were killed
        return 0, 0
    by_fork = proc.by_fork({each.pid: each.merging_pages for each in processes})
    noted = {each.pid: _noted(each.pid) for each in processes}
    zeros = {
        pid: sum(counters(past).get("ksm_zero_pages", 0) for past in mine)
        for pid, mine in noted.items()
    }
    zeros = {pid: min(count, (most_zeros or {}).get(pid, count)) for pid, count in zeros.items()}
    pages_by_fork = sum(by_fork.values()) + sum(proc.by_fork(zeros).values())
    taken = sum(package_bytes(past) for mine in noted.values() for past in mine)
    held = sum(each.merging_pages for each in processes)
    sharing = min(stats.pages_sharing, held - stats.pages_shared)
    net = replace(stats, pages_sharing=sharing).net_bytes(
        by_fork=pages_by_fork * PAGE_SIZE,
        zeros=sum(zeros.values()) * PAGE_SIZE,
        tables=taken + sum(own_tables(past) for mine in noted.values() for past in mine),
    )
    return max(0, net), taken


def _noted(pid: int) -> list[Past]:
    try:
        return pasts(pid)
    except OSError:  # it has ended, or may not be looked at
        return []


def look_at(name: str) -> NamedStore:
    """One store, with what it saves by its own counters alone: see measured() in watch.savings.
    StoreError as Store.open() raises it; what it refuses then is its `error`.
    """
    with Store.open(name, create=False) as store:
        path = store.path or ""
        status = os.fstat(store.fileno())
        kept, file = status.st_blocks * 512, file_of(status)
        try:
            processes, stats = tuple(store.processes()), store.stats()
        except StoreError as error:
            return NamedStore(name, path, kept, file, error=error.strerror or str(error))
    return NamedStore(name, path, kept, file, processes, stats)


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
