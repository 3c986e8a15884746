"""What a program and the processes below it save, seen from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ksmpy import proc
from ksmpy.errors import StoreError
from ksmpy.memory.maps import may_be_region
from ksmpy.native import PAGE_SIZE
from ksmpy.store.store import Store, StoreProcess
from ksmpy.text import human_bytes
from ksmpy.watch.observe import File, file_of
from ksmpy.watch.stores import saved_and_taken
from ksmpy.whole.guardian import Isolated, below

__all__ = ["Tally"]

# The next look waits so many times as long as the last one took: 1 % of a core at most.
_COST_FACTOR = 99
_FIRST_SECONDS = 0.25
_MOST_SECONDS = 1.0
# How often the store is asked anew because a process has ended meanwhile.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the kernel counts of a process (smaps)."""

    pss: int = 0
    """Its proportional set size in bytes; 0 when it has ended, or may not be looked at."""
    merged: int | None = None
    """Its pages that can be on frames: those that it has mapped, but for the copies of its own
    that it has got by writing. None where nobody can tell.
    """
    empty: int | None = None
    """Pages of the memory that engines have which are not there: zeros that were given back are
    among them, until they are written. None where nobody can tell.
    """


def _look(pid: int, store: File) -> _Seen:
    try:
        mappings = proc.smaps(pid)
    except OSError:
        return _Seen()
    sizes = [each.sizes for each in mappings]
    if not mappings or "Pss" not in sizes[0]:
        return _Seen()
    merged = sum(
        each.end - each.start - counted["Anonymous"]
        for each, counted in zip(mappings, sizes, strict=True)
        if (each.device, each.inode) == store and each.perms.endswith("p")
    )
    empty = [
        each.end - each.start - counted["Anonymous"] - each.swap_bytes
        for each, counted in zip(mappings, sizes, strict=True)
        if may_be_region(each)
    ]
    return _Seen(
        sum(counted["Pss"] for counted in sizes),
        merged // PAGE_SIZE,
        sum(empty) // PAGE_SIZE if empty else None,
    )


def _as_seen(process: StoreProcess, seen: _Seen) -> StoreProcess:
    """Without what it has written since a pass has last looked there, which may be long ago."""
    merged = process.merging_pages if seen.merged is None else seen.merged
    return StoreProcess(process.pid, process.inherited, min(process.merging_pages, merged))


@dataclass
class Tally:
    """Looks at the processes below `pid` when it is due, and remembers their sizes."""

    pid: int
    store: Store
    _began: float = field(default_factory=time.monotonic)
    _due: float = 0.0
    _wait: float = _FIRST_SECONDS
    _last: float = 0.0
    _saved: int = 0
    _pss: int = 0
    _most_saved: int = 0
    _most_taken: int = 0
    _pss_then: int = 0
    _most_pss: int = 0
    _saved_seconds: float = 0.0
    _pss_seconds: float = 0.0
    _looks: int = 0
    _cost: float = 0.0
    _known: set[int] = field(default_factory=set)
    _users: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._isolated = Isolated(self.pid)
        self._last = self._began
        self._due = self._began + self._wait

    @property
    def left_alone(self) -> str:
        """The command of the first that ksmpy cannot follow."""
        return self._isolated.left_alone

    def seconds_left(self) -> float:
        """How long the next look may wait."""
        return max(0.0, self._due - time.monotonic())

    def look_if_due(self) -> None:
        """Look, if it is time."""
        if self.seconds_left() > 0:
            return
        begin = time.thread_time()
        found = list(below(self.pid))
        self._isolated.find(found)
        self._measure(found)
        self._known.update(found)
        spent = time.thread_time() - begin
        self._cost += spent
        self._looks += 1
        self._wait = min(2 * self._wait, _MOST_SECONDS)
        self._due = time.monotonic() + max(self._wait, spent * _COST_FACTOR)

    def _measure(self, found: list[int]) -> None:
        try:
            users, saved, taken, pss = self._ask(found)
        except StoreError:  # a process that is stopped holds the store's lock
            return
        self._users |= users
        self._most_taken = max(self._most_taken, taken)
        self._count(saved, pss)

    def _ask(self, found: Iterable[int]) -> tuple[set[int], int, int, int]:
        """Who uses the store, what it saves them, what ksmpy has taken in them, and the PSS of
        these processes and those that were found.

        Nobody can tell of a process that is about to end what it has by its parent's fork. So it
        is left out, and if one came to that meanwhile the store is asked again.
        """
        file = file_of(os.fstat(self.store.fileno()))
        for _ in range(_TRIES):
            processes = [each for each in self.store.processes() if proc.has_memory(each.pid)]
            users = {process.pid for process in processes}
            seen = {pid: _look(pid, file) for pid in users.union(found)}
            saved, taken = saved_and_taken(
                self.store.stats(),
                [_as_seen(each, seen[each.pid]) for each in processes],
                {pid: each.empty for pid, each in seen.items() if each.empty is not None},
            )
            if all(map(proc.has_memory, users)):
                break
        return users, saved, taken, sum(each.pss for each in seen.values())

    def _count(self, saved: int, pss: int) -> None:
        now = time.monotonic()
        # Between two looks the mean of what both saw is taken to have been saved.
        self._saved_seconds += (self._saved + saved) / 2 * (now - self._last)
        self._pss_seconds += (self._pss + pss) / 2 * (now - self._last)
        if saved > self._most_saved:
            self._most_saved, self._pss_then = saved, pss
        self._most_pss = max(self._most_pss, pss)
        self._saved, self._pss, self._last = saved, pss, now

    def report(self) -> str:
        """What was saved by all of them, at the most and in the mean of the time."""
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        if not self._looks:
            return f"ksmpy: over in {seconds:.2f} s, before the first look"
        rest = now - self._last
        mean_saved = (self._saved_seconds + self._saved * rest) / seconds
        mean_pss = (self._pss_seconds + self._pss * rest) / seconds
        return (
            f"ksmpy: saved {human_bytes(self._most_saved)} at the most,"
            f" {human_bytes(mean_saved)} in the mean of {seconds:.1f} s,"
            f" in {len(self._users)} of {len(self._known | self._users)} processes, in which ksmpy"
            f" itself took {human_bytes(self._most_taken)}\n"
            f"ksmpy: PSS of all of them {human_bytes(self._most_pss)} at the most,"
            f" {human_bytes(self._pss_then)} when most was saved, {human_bytes(mean_pss)} in the"
            f" mean; looked {self._looks} times, in {self._cost * 1000:.0f} ms of processor time"
        )
