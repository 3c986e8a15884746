"""What processes and stores save, counted by page, for everything that looks from outside.

The definition is net_bytes() of ksmpy.saving. What processes of a store save together is spread
over them by what each has in common with others; what its zeros give back and its own tables take
is a process's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ksmpy import proc
from ksmpy.native import PAGE_SIZE
from ksmpy.saving import net_bytes
from ksmpy.watch.observe import File, Observation, glance, stores_in_use, stores_of
from ksmpy.watch.pages import Kind
from ksmpy.watch.stores import NamedStore
from ksmpy.watch.subjects import Subject, subjects, who_shares
from ksmpy.watch.ties import Sharing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["Savings", "measured", "observe", "observe_all", "savings"]


@dataclass(frozen=True, slots=True)
class Savings:
    """What was found; bytes. Below 0 is what costs more than it saves."""

    shared: Sharing
    each: dict[int, int]
    """Of each process, by its number."""
    stores: dict[File, int]
    """Of each store, with the zeros and tables of the processes that have most on it."""
    kept: dict[File, int]
    """The memory that each store takes."""
    by_fork: int
    """What of all that lies on frames, and of the zeros, would be common by forks without ksmpy."""
    saved_bytes: int
    """By all of them together, or 0: what the tables of some cost is off what others save."""


def savings(among: list[Subject]) -> Savings:
    """Find what they save; the `seen` of each says its part from then on, or 0."""
    shared = who_shares(among)
    inherited = proc.by_fork({subject.pid: subject.seen.zero_bytes for subject in among})
    own = {
        subject.pid: net_bytes(
            merged=0,
            stores=0,
            by_fork=inherited[subject.pid],
            zeros=subject.seen.zero_bytes,
            tables=subject.table_bytes,
        )
        for subject in among
    }
    users = [(subject, stores_of(subject.mappings), _stores_of_pages(subject)) for subject in among]
    each, nets, kept, by_fork = dict(own), {}, {}, sum(inherited.values())
    for file in sorted(set().union(*(files for _, files, _ in users))):
        mine = [(subject, where) for subject, files, where in users if file in files]
        store = _Store(file, mine)
        by_fork += sum(store.by_fork.values())
        kept[file], nets[file] = store.kept, store.net
        for pid, part in store.parts().items():
            each[pid] += part
    saved = max(0, sum(nets.values()) + sum(own.values()))
    for subject, files, where in users:
        subject.seen.saved_bytes = max(0, each[subject.pid])
        if files:
            home = max(sorted(files), key=lambda file: _pages_on(subject, where, file))
            nets[home] += own[subject.pid]
    return Savings(shared, each, nets, kept, by_fork, saved)


def _stores_of_pages(subject: Subject) -> Integers:
    """Of each page on a frame, in the order of `users`: the number of its store."""
    import numpy as np

    on = subject.look.kind == Kind.SHARED
    return np.repeat(subject.look.store[on], subject.look.pages[on])


def _pages_on(subject: Subject, where: Integers, file: File) -> int:
    return int((where == subject.files.get(file, -1)).sum())


class _Store:
    """One store, and what its processes have on it."""

    def __init__(self, file: File, mine: list[tuple[Subject, Integers]]) -> None:
        """`mine`: the processes that have it mapped, with the stores of their pages."""
        self._users = {
            subject.pid: subject.users[where == subject.files.get(file, -1)]
            for subject, where in mine
        }
        pages = {pid: len(users) for pid, users in self._users.items()}
        self.by_fork = {pid: count * PAGE_SIZE for pid, count in proc.by_fork(pages).items()}
        self._merged = {pid: count * PAGE_SIZE for pid, count in pages.items()}
        # Each of the pages on a frame has its part of it.
        frames = round(sum(float((1 / users).sum()) for users in self._users.values()))
        known = [subject.kept[file] for subject, _ in mine if file in subject.kept]
        self.kept = max([*known, frames * PAGE_SIZE])
        self.net = net_bytes(
            merged=sum(self._merged.values()),
            by_fork=sum(self.by_fork.values()),
            stores=self.kept,
        )

    def parts(self) -> dict[int, int]:
        """Of each process its part. Of a page that k pages share, (k - 1) / k; what forks have left
        to several processes is taken to be spread evenly. A loss is spread by how many pages each
        has there.
        """
        import numpy as np

        merged = max(sum(self._merged.values()), 1)
        own_share = 1 - sum(self.by_fork.values()) / merged
        weights = {}
        for pid, users in self._users.items():
            own = 1 - self.by_fork[pid] / max(self._merged[pid], 1)
            shared = 1 - 1 / np.maximum(users * own_share, 1)
            weights[pid] = float(shared.sum()) * own if self.net > 0 else float(len(users))
        total = sum(weights.values())
        if not total:  # nothing is merged
            weights, total = dict.fromkeys(weights, 1.0), len(weights)
        return {pid: round(self.net * weight / total) for pid, weight in weights.items()}


def observe(pid: int) -> Observation:
    """Look at one process, and at those it shares a store with; CommandError as glance()."""
    if pid not in stores_in_use():
        return glance(pid)
    found, _ = subjects({pid})
    savings(found)
    return next((each.seen for each in found if each.pid == pid), None) or glance(pid)


def observe_all() -> tuple[list[Observation], Savings]:
    """All processes that use ksmpy, and what they save together; one that ends while it is looked
    at is left out.
    """
    found, _ = subjects(None)
    return [each.seen for each in found], savings(found)


def measured(stores: list[NamedStore], found: Savings | None = None) -> list[NamedStore]:
    """The stores with what they save by page, as far as all of their processes were seen; `found`:
    where these have been looked at just now.

    Else it stays what the counters say, from which the pages that were written since the last
    pass are not taken off.
    """
    users = {process.pid for store in stores for process in store.processes}
    if found is None:
        found = savings(subjects(set(), users)[0]) if users else None
    if found is None:
        return stores
    return [_measured(store, found) for store in stores]


def _measured(store: NamedStore, found: Savings) -> NamedStore:
    seen = all(process.pid in found.each for process in store.processes)
    if store.stats is None or not store.processes or not seen or store.file not in found.stores:
        return store
    saved = max(0, found.stores[store.file])
    return replace(store, stats=replace(store.stats, saved_bytes=saved))
