"""The background scanner: a thread per engine that scans a batch, sleeps, and starts over.

It scans without the GIL, keeps no engine alive, and is a daemon thread: a process that is about to
end does not wait for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

from ksmpy import threads
from ksmpy.engine.advisor import Advisor
from ksmpy.engine.knobs import Knobs
from ksmpy.engine.stats import ScanResult
from ksmpy.errors import KsmpyError
from ksmpy.own import own
from ksmpy.threads import Event, Thread

__all__ = ["Daemon"]

# A pass takes 0.4 ms a GiB where nothing happens, and 1 to 2 ms where the memory of a Python
# program is merged here and there. So after one that came to little the thread sleeps at least so
# many times the processor time that it took: twice as long each time, up to a hundred times (1 % of
# a core), and after further ones, or where there was nothing to look at, longer and longer (down to
# 0.1 %). But it never sleeps so long that a change would be noticed late, and no longer than a
# second where somebody is at work. What is little is a few pages, or pages that were only found
# written: Python programs write some all the time, and this thread does.
FEW_PAGES = 64
FIRST_FACTOR = 10
IDLE_FACTOR = 100
LONGEST_IDLE_FACTOR = 1000
LONGEST_IDLE_SECONDS = 5.0
LONGEST_LITTLE_SECONDS = 1.0
# Stopping takes as long as one batch. A thread that has not ended after so many seconds hangs
# elsewhere, and is not waited for any longer.
STOP_SECONDS = 5.0


class Scanner(Protocol):
    """What the thread drives: an engine."""

    @property
    def knobs(self) -> Knobs:
        """The knobs to obey."""

    def batch(self, pages: int) -> ScanResult:
        """Scan up to so many pages from the cursor on."""

    def batch_failed(self, error: BaseException) -> None:
        """The thread ends because of this error."""


class Daemon:
    """Starts and stops the thread of one engine."""

    def __init__(self, scanner: weakref.ref[Scanner], interrupt: Callable[[], None]) -> None:
        self._scanner = scanner
        self._interrupt = interrupt
        # By what stops them. More than one only where Ctrl-C has come in the middle of stop().
        self._threads: dict[Event, Thread] = {}

    @property
    def running(self) -> bool:
        """Whether the thread is scanning, and not about to end."""
        return any(not stop.is_set() for stop in list(self._threads))

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self.running:
            return
        stop, noted = threads.event(), threads.event()
        try:
            thread = threads.start(_loop, (self._scanner, stop, noted), "ksmd")
            # Noted before the thread runs, since it may fail and call batch_failed() at once.
            self._threads[stop] = thread
        except BaseException:  # Ctrl-C, too, where the thread is there and nobody knows it
            stop.set()
            raise
        finally:
            noted.set()

    def stop(self) -> None:
        """Stop the thread and wait for it, unless called by itself."""
        for stop, thread in list(self._threads.items()):
            stop.set()
            if not threads.is_current(thread) and not threads.are_gone():
                self._wait(thread)
            self._threads.pop(stop, None)

    def _wait(self, thread: Thread) -> None:
        deadline = own.monotonic() + STOP_SECONDS
        while thread.is_alive() and own.monotonic() < deadline:
            try:
                self._interrupt()
            except KsmpyError:
                pass
            thread.join(0.01)

    def forget(self) -> None:
        """Note that the thread is gone: this is a forked child, or the thread ended by itself."""
        self._threads = {}


def _loop(ref: weakref.ref[Scanner], stop: Event, noted: Event) -> None:
    noted.wait()
    try:
        _scan(ref, stop)
    except BaseException as error:  # by a hook of the program's, or thrown in from outside, too
        scanner = ref()
        if scanner is not None and not stop.is_set():
            scanner.batch_failed(error)


def _scan(ref: weakref.ref[Scanner], stop: Event) -> None:
    pace = _Pace()
    while not stop.is_set():
        scanner = ref()
        if scanner is None:
            return
        if threads.are_stopped_by_signals():
            # Nobody would learn any more what of the merged memory is written.
            scanner.knobs.run = 2
            return
        wait = pace.step(scanner)
        del scanner
        stop.wait(wait)


class _Pace:
    """What a pass has cost so far, and what follows from it."""

    def __init__(self) -> None:
        self._advisor: Advisor | None = None
        self._idle_factor = 0
        self._restart()

    def _restart(self) -> None:
        self._began = own.monotonic()
        self._cpu_seconds = 0.0
        self._scanned = 0
        self._looked_up = 0
        self._changed = 0

    def step(self, scanner: Scanner) -> float:
        """Scan one batch; returns the seconds to sleep."""
        knobs = scanner.knobs
        begin = own.thread_time()
        result = scanner.batch(knobs.pages_to_scan)
        self._cpu_seconds += own.thread_time() - begin
        self._scanned += result.scanned
        self._looked_up += result.scanned - result.volatiles
        self._changed += result.merged + result.zeroed + result.unmerged
        wait = knobs.sleep_millisecs / 1000
        if result.full:
            self._advise(knobs)
            wait = max(wait, self._idle_seconds())
            self._restart()
        return wait

    def _idle_seconds(self) -> float:
        """How long to sleep for the sake of the processor, after a pass."""
        little = self._scanned > 0 or self._changed > 0
        if max(self._looked_up, self._changed) > FEW_PAGES:
            self._idle_factor = 0
        elif little and self._idle_factor < IDLE_FACTOR:
            self._idle_factor = min(max(2 * self._idle_factor, FIRST_FACTOR), IDLE_FACTOR)
        else:
            longer = self._idle_factor // IDLE_FACTOR * IDLE_FACTOR
            self._idle_factor = min(longer + IDLE_FACTOR, LONGEST_IDLE_FACTOR)
        longest = LONGEST_LITTLE_SECONDS if little else LONGEST_IDLE_SECONDS
        return min(self._cpu_seconds * self._idle_factor, longest)

    def _advise(self, knobs: Knobs) -> None:
        if knobs.advisor_mode == "none":
            self._advisor = None
            return
        self._advisor = self._advisor or Advisor()
        seconds = int(own.monotonic() - self._began)
        cpu_ms = int(self._cpu_seconds * 1000)
        knobs.advised(self._advisor.advise(knobs.pages_to_scan, seconds, cpu_ms, knobs.limits()))
