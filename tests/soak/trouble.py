"""What the kernel does to pages meanwhile: threads that swap, compact, move and look at them."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksmpy.engine.numa import SystemTopology
from tests.support import swap
from tests.support.nodes import Wandering, move
from tests.support.onlooker import read_all_memory

COMPACT = "/proc/sys/vm/compact_memory"
Spans = Callable[[], tuple[tuple[int, int], ...]]


def _swap_areas() -> int:
    try:
        return Path("/proc/swaps").read_text().count("\n") - 1
    except OSError:
        return 0


class Thread(threading.Thread):
    """Does one thing again and again, until it is stopped; remembers why it failed."""

    def __init__(self, name: str, work: Callable[[], None], pause: float) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._pause = pause
        self._stop_now = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until stop(), or the first error."""
        try:
            while not self._stop_now.wait(self._pause):
                self._work()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Ends after what it is at."""
        self._stop_now.set()
        self.join(120)
        assert not self.is_alive(), f"the thread {self.name} hangs"


class Trouble:
    """All of it that this machine allows; `done` counts, `missing` says what is not there."""

    def __init__(self, spans: Spans, topology: Wandering | None, swap_path: str, seed: int) -> None:
        self._spans = spans
        self._topology = topology
        self._swap_path = swap_path
        self._rng = random.Random(seed)
        self._area: swap.Area | None = None
        self.done: Counter[str] = Counter()
        self.missing: list[str] = []
        self._threads = [
            Thread("nodes", self._move, 0.02),
            Thread("onlooker", self._look_at_all, 1),
        ]
        if os.access(COMPACT, os.W_OK):
            self._threads.append(Thread("compaction", self._compact, 0.2))
        else:
            self.missing.append(f"{COMPACT} cannot be written")
        if swap_path or _swap_areas():
            self._threads.append(Thread("swap", self._swap, 0.01))
        else:
            self.missing.append("no swap area")

    def __enter__(self) -> Trouble:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for thread in self._threads:
            thread.stop()
        if self._area is not None:
            self._area.off()

    def look(self) -> None:
        """Raise what ended a thread."""
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error

    def _move(self) -> None:
        if self._topology is not None:
            self._topology.turn += 1
        else:
            nodes = SystemTopology().nodes
            move(self._spans(), self._rng.choice(nodes))
        self.done["moves"] += 1

    def _look_at_all(self) -> None:
        self.done["looks"] += read_all_memory() > 0

    def _compact(self) -> None:
        with open(COMPACT, "w") as file:
            file.write("1")
        self.done["compactions"] += 1

    def _swap(self) -> None:
        """Pages of some ranges go to swap; now and then the area is taken away, and comes again."""
        if self._swap_path and self._area is None:
            self._area = swap.Area(self._swap_path)
        for span in self._spans():
            if self._rng.random() < 0.5:
                try:
                    swap.evict(*span)
                except OSError:  # it died meanwhile
                    continue
        if self._area is not None and self._rng.random() < 0.3:
            swapped = swap.swapped_frames() + swap.swapped_copies(self._spans())
            self.done["swapped"] = max(self.done["swapped"], swapped)
            try:
                self._area.off()
            except swap.Failed:  # the kernel gives up for a moment: it stays for now
                self.done["swapoffs that failed"] += 1
                return
            self._area = None
            self.done["swapoffs"] += 1
