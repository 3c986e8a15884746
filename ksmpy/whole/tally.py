"""What a program and the processes below it save, seen from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ksmpy import proc
from ksmpy.errors import StoreError
from ksmpy.store.store import Store
from ksmpy.text import human_bytes

__all__ = ["Tally", "below", "command_line", "isolated", "pss_bytes"]

# Looking takes 1 % of a core at most.
_COST_FACTOR = 99
_FIRST_SECONDS = 0.25
_MOST_SECONDS = 1.0
_IDLE_SECONDS = 30.0

_TAKE_A_VALUE = "WX"
_END_OF_OPTIONS = "cm"


def below(pid: int) -> Iterator[int]:
    """A process and those that it has started, as far as their parents still live."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from below(int(child))
    except OSError:  # it ended
        return


def pss_bytes(pid: int) -> int:
    """A process's proportional set size; 0 when it has ended, or may not be looked at."""
    try:
        return proc.rollup(pid).get("Pss", 0)
    except OSError:
        return 0


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def isolated(arguments: list[str]) -> bool:
    """Whether they start an interpreter that looks at no PYTHONPATH, or at no sitecustomize."""
    if not arguments or not os.path.basename(arguments[0]).startswith(("python", "pypy")):
        return False
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("-") or argument in ("-", "--"):
            return False
        for index, letter in enumerate(argument[1:], 1):
            if letter in "IES":
                return True
            if letter in _END_OF_OPTIONS:
                return False
            if letter in _TAKE_A_VALUE or letter == "-":
                if argument[index + 1 :] == "":
                    next(rest, None)
                break
    return False


@dataclass
class Tally:
    """Looks at the processes below `pid` when it is due, and remembers."""

    pid: int
    store: Store
    measured: bool
    """Whether sizes are wanted; else it only looks whom ksmpy cannot follow."""
    left_alone: str = ""
    """The command of the first such."""
    _began: float = field(default_factory=time.monotonic)
    _due: float = 0.0
    _wait: float = _FIRST_SECONDS
    _last: float = 0.0
    _saved: int = 0
    _pss: int = 0
    _most_saved: int = 0
    _pss_then: int = 0
    _most_pss: int = 0
    _saved_seconds: float = 0.0
    _pss_seconds: float = 0.0
    _looks: int = 0
    _cost: float = 0.0
    _known: set[int] = field(default_factory=set)
    _users: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._last = self._began
        self._due = self._began + self._wait

    def seconds_left(self) -> float:
        """How long the next look may wait."""
        return max(0.0, self._due - time.monotonic())

    def look_if_due(self) -> None:
        """Look, if it is time."""
        if self.seconds_left() > 0:
            return
        begin = time.thread_time()
        found = list(below(self.pid))
        self._find_isolated(found)
        if self.measured:
            self._measure(found)
        self._known.update(found)
        spent = time.thread_time() - begin
        self._cost += spent
        self._looks += 1
        self._wait = min(2 * self._wait, _MOST_SECONDS if self.measured else _IDLE_SECONDS)
        self._due = time.monotonic() + max(self._wait, spent * _COST_FACTOR)

    def _find_isolated(self, found: list[int]) -> None:
        for pid in found:
            if self.left_alone or pid in self._known:
                continue
            arguments = command_line(pid)
            if isolated(arguments):
                self.left_alone = " ".join(arguments[:3])

    def _measure(self, found: list[int]) -> None:
        try:
            users = {process.pid for process in self.store.processes()}
            saved = self.store.stats().saved_bytes
        except StoreError:  # its lock is held by a process that is stopped
            return
        self._users |= users
        pss = sum(map(pss_bytes, users | set(found)))
        self._count(saved, pss)

    def _count(self, saved: int, pss: int) -> None:
        now = time.monotonic()
        # What was seen is taken to have lasted since the middle between two looks.
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
            f" in {len(self._users)} of {len(self._known | self._users)} processes\n"
            f"ksmpy: PSS of all of them {human_bytes(self._most_pss)} at the most,"
            f" {human_bytes(self._pss_then)} when most was saved, {human_bytes(mean_pss)} in the"
            f" mean; looked {self._looks} times, in {self._cost * 1000:.0f} ms of processor time"
        )
