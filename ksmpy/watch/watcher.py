"""Looking at all processes that use ksmpy, time after time, at little cost.

To look at one takes some milliseconds, most of them the kernel's, which counts its pages. So each
look has an allowance of processor time, in which those are looked at anew that were not for
longest, of those that have run since. Of the others, what was seen last is told again: what they
have in common with others is different only when one of these has run, come or gone since.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass

from ksmpy import proc
from ksmpy.watch.observe import File, mapped_stores, mappings_of_user
from ksmpy.watch.subjects import Subject, examine

__all__ = ["Watcher"]

# So much of a processor may be taken for up to so many processes, and in proportion for more.
_SHARE = 0.012
_SHARE_FOR = 25


@dataclass(slots=True)
class _Known:
    """A process, as it was seen last."""

    looked: float
    """When, by time.monotonic()."""
    cpu_seconds: float | None
    """What it had run until then; None where that cannot be asked."""
    subject: Subject | None
    """None: it has no store mapped, or may not be looked at."""


class Watcher:
    """Remembers what was seen of each process."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._files: dict[File, int] = {}
        self._last = time.monotonic()
        self._news = 0.0
        """When one that uses ksmpy had run, come or gone, by time.monotonic()."""
        self._left = 0.0
        """Seconds of the allowance; below 0 where the last look at somebody took longer."""

    def look(self, first: Collection[int] = ()) -> list[Subject]:
        """All processes that use ksmpy, in the order of their numbers: those that were not there at
        the last look, and those of `first` that have run, are looked at in any case.
        """
        began, before = time.monotonic(), self._last
        self._last = began
        there = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        if any(known.subject for pid, known in self._known.items() if pid not in there):
            self._news = began
        self._known = {pid: known for pid, known in self._known.items() if pid in there}
        due: list[tuple[bool, float, int, float | None]] = []
        idle: list[tuple[bool, float, int, float | None]] = []
        for pid in there:
            known, now = self._known.get(pid), proc.cpu_seconds(pid)
            had = known.cpu_seconds if known else None
            if known is None or (now is not None and had is not None and now < had):
                self._examine(pid, now)  # new, or another one under its number
                if pid in self._known and self._known[pid].subject:
                    self._news = began
            elif now is None or now != had:
                self._news = began if known.subject else self._news
                if pid in first:
                    self._examine(pid, now)
                else:
                    due.append((False, known.looked, pid, now))
            elif known.subject:
                idle.append((True, known.looked, pid, now))
        due += (each for each in idle if each[1] < self._news)
        users = sum(known.subject is not None for known in self._known.values())
        allowance = _SHARE * max(1.0, users / _SHARE_FOR) * (began - before)
        self._left = min(self._left, 0.0) + allowance
        for _, _, pid, now in sorted(due, key=lambda each: each[:2]):
            if self._left <= 0:
                break
            begin = time.thread_time()
            self._examine(pid, now)
            self._left -= time.thread_time() - begin
        found = sorted(self._known.items())
        return [known.subject for _, known in found if known.subject]

    def _examine(self, pid: int, cpu_seconds: float | None) -> None:
        subject = None
        try:
            lines = mappings_of_user(pid)
            if mapped_stores(lines):
                subject = examine(pid, self._files, detailed=False, lines=lines)
        except (FileNotFoundError, ProcessLookupError):
            self._known.pop(pid, None)  # it has ended
            return
        except OSError:
            pass
        self._known[pid] = _Known(time.monotonic(), cpu_seconds, subject)
