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
from ksmpy.watch.observe import File, Observation, glance, stores_in_use
from ksmpy.watch.stores import NamedStore, saved_bytes
from ksmpy.watch.subjects import Subject, subjects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["Savings", "measured", "observe", "observe_all", "savings"]

# No store has this number; what is on no frame has -1.
_NOWHERE = -2


@dataclass(frozen=True, slots=True)
class Savings:
    """What was found; bytes. Below 0 is what costs more than it saves."""

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
    parents = proc.forks(subject.pid for subject in among)
    inherited = proc.by_fork({each.pid: each.seen.zero_bytes for each in among}, parents)
    own = {
        subject.pid: net_bytes(
            merged=0,
            stores=0,
            by_fork=inherited[subject.pid],
            zeros=subject.seen.zero_bytes,
            tables=subject.table_bytes + subject.seen.package_bytes,
        )
        for subject in among
    }
    each, nets, kept, by_fork = dict(own), {}, {}, sum(inherited.values())
    stores = {}
    for file in sorted(set().union(*(subject.stores for subject in among))):
        mine = [subject for subject in among if file in subject.stores]
        store = stores[file] = _Store(file, mine, parents)
        by_fork += sum(store.by_fork.values())
        kept[file], nets[file] = store.kept, store.net
        for pid, part in store.parts().items():
            each[pid] += part
    saved = max(0, sum(nets.values()) + sum(own.values()))
    for subject in among:
        pid = subject.pid
        subject.seen.saved_bytes = max(0, each[pid])
        if subject.stores:
            home = max(sorted(subject.stores), key=lambda file: stores[file].pages[pid])
            nets[home] += own[pid]
    return Savings(each, nets, kept, by_fork, saved)


class _Store:
    """One store, and what its processes have on it."""

    def __init__(self, file: File, mine: list[Subject], parents: dict[int, int]) -> None:
        """`mine`: the processes that have it mapped; `parents`: as proc.forks() tells them."""
        self._places = {subject.pid: _places(subject, file) for subject in mine}
        self.pages = {pid: int((end - first).sum()) for pid, (first, end) in self._places.items()}
        inherited = proc.by_fork(self.pages, parents)
        self.by_fork = {pid: count * PAGE_SIZE for pid, count in inherited.items()}
        self._merged = {pid: count * PAGE_SIZE for pid, count in self.pages.items()}
        self._edges, self._users = _users(list(self._places.values()))
        frames = int(self._lengths[self._users > 0].sum())
        known = [subject.kept[file] for subject in mine if file in subject.kept]
        self.kept = max([*known, frames * PAGE_SIZE])
        self.net = net_bytes(
            merged=sum(self._merged.values()),
            by_fork=sum(self.by_fork.values()),
            stores=self.kept,
        )

    @property
    def _lengths(self) -> Integers:
        """The frames between each two edges."""
        import numpy as np

        return np.diff(self._edges)

    def parts(self) -> dict[int, int]:
        """Of each process its part. Of a page that k pages share, (k - 1) / k; what forks have left
        to several processes is taken to be spread evenly. A loss is spread by how many pages each
        has there.
        """
        import numpy as np

        merged = max(sum(self._merged.values()), 1)
        own_share = 1 - sum(self.by_fork.values()) / merged
        gains = (1 - 1 / np.maximum(self._users * own_share, 1)) * self._lengths
        # The sum over all frames before each edge: a stretch has the difference of two.
        before = np.append(0.0, np.cumsum(gains))
        weights = {}
        for pid, (first, end) in self._places.items():
            own = 1 - self.by_fork[pid] / max(self._merged[pid], 1)
            places = np.searchsorted(self._edges, [first, end])
            shared = float((before[places[1]] - before[places[0]]).sum())
            weights[pid] = shared * own if self.net > 0 else float(self.pages[pid])
        total = sum(weights.values())
        if not total:  # nothing is merged
            weights, total = dict.fromkeys(weights, 1.0), len(weights)
        return {pid: round(self.net * weight / total) for pid, weight in weights.items()}


def _places(subject: Subject, file: File) -> tuple[Integers, Integers]:
    """The first frame of each stretch that a process has on a store, and the one after its last."""
    seen = subject.look
    on = seen.store == subject.files.get(file, _NOWHERE)
    return seen.frame[on], seen.frame[on] + seen.pages[on]


def _users(places: list[tuple[Integers, Integers]]) -> tuple[Integers, Integers]:
    """Where stretches of frames begin and end; between each two edges, how many pages each frame
    has. Stretches are few, frames many.
    """
    import numpy as np

    firsts, ends = (np.concatenate(each) for each in zip(*places, strict=True))
    edges = np.unique(np.concatenate([firsts, ends]))
    count = len(edges)
    come = np.bincount(np.searchsorted(edges, firsts), minlength=count)
    gone = np.bincount(np.searchsorted(edges, ends), minlength=count)
    return edges, np.cumsum(come - gone)[:-1]


def observe(pid: int) -> Observation:
    """Look at one process, and at those it shares a store with; CommandError as glance()."""
    if pid not in stores_in_use():
        return glance(pid)
    found, _ = subjects({pid}, detailed=False)
    savings(found)
    return next((each.seen for each in found if each.pid == pid), None) or glance(pid)


def observe_all() -> tuple[list[Observation], Savings]:
    """All processes that use ksmpy, and what they save together; one that ends while it is looked
    at is left out.
    """
    found, _ = subjects(None, detailed=False)
    return [each.seen for each in found], savings(found)


def measured(stores: list[NamedStore], found: Savings | None = None) -> list[NamedStore]:
    """The stores with what they save by page, as far as all of their processes were seen; `found`:
    where these have been looked at just now.

    Else it is what the counters say, from which the pages that were written since the last
    pass are not taken off.
    """
    users = {process.pid for store in stores for process in store.processes}
    if found is None:
        found = savings(subjects(set(), users, detailed=False)[0]) if users else None
    return [_measured(store, found) for store in stores]


def _measured(store: NamedStore, found: Savings | None) -> NamedStore:
    if store.stats is None:
        return store
    seen = found and all(process.pid in found.each for process in store.processes)
    if found and seen and store.processes and store.file in found.stores:
        saved = max(0, found.stores[store.file])
    else:
        saved = saved_bytes(store.stats, store.processes)
    return replace(store, stats=replace(store.stats, saved_bytes=saved))
