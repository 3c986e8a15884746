"""What a program and the processes below it save, seen from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ksmpy import proc
from ksmpy.errors import StoreError
from ksmpy.store.store import Store
from ksmpy.text import human_bytes
from ksmpy.watch.stores import saved_and_taken
from ksmpy.whole.guardian import Isolated, below

__all__ = ["Tally", "pss_bytes"]

# The next look waits so many times as long as the last one took: 1 % of a core at most.
_COST_FACTOR = 99
_FIRST_SECONDS = 0.25
_MOST_SECONDS = 1.0
# How often the store is asked anew because a process has ended meanwhile.
_TRIES = 5


def pss_bytes(pid: int) -> int:
    """A process's proportional set size; 0 when it has ended, or may not be looked at."""
    try:
        return proc.rollup(pid).get("Pss", 0)
    except OSError:
        return 0


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
            users, saved, taken = self._ask_store()
        except StoreError:  # a process that is stopped holds the store's lock
            return
        self._users |= users
        self._most_taken = max(self._most_taken, taken)
        pss = sum(map(pss_bytes, users | set(found)))
        self._count(saved, pss)

    def _ask_store(self) -> tuple[set[int], int, int]:
        """Who uses the store, what it saves them, and what ksmpy has taken in them.

        Nobody can tell of a process that is about to end what it has by its parent's fork. So it
        is left out, and if one came to that meanwhile the store is asked again.
        """
        for _ in range(_TRIES):
            processes = [each for each in self.store.processes() if proc.has_memory(each.pid)]
            users = {process.pid for process in processes}
            saved, taken = saved_and_taken(self.store.stats(), processes)
            if all(map(proc.has_memory, users)):
                break
        return users, saved, taken

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
