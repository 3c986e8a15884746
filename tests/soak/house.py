"""What a process has: threads, descriptors, mappings."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import oracle

#: Mappings that libraries, thread stacks and malloc's arenas are made of, once for all (26 here).
SLACK = 64
PATIENCE = 10.0


@dataclass(frozen=True)
class House:
    """An inventory."""

    threads: int
    descriptors: int
    stores: int
    mappings: int

    @classmethod
    def now(cls) -> House:
        """What is there after everything dead was collected."""
        gc.collect()
        return cls(
            len(list(Path("/proc/self/task").iterdir())),
            len(os.listdir("/proc/self/fd")),
            len(oracle.store_mappings()),
            len(oracle.mappings()),
        )

    def clean(self, before: House) -> bool:
        """Whether nothing is left that was not there before."""
        return (
            self.threads <= before.threads
            and self.descriptors <= before.descriptors
            and self.stores <= before.stores
            and self.mappings <= before.mappings + SLACK
        )


def expect_clean(before: House) -> House:
    """AssertionError when something stays; threads may need a moment to go."""
    deadline = time.monotonic() + PATIENCE
    while not (now := House.now()).clean(before):
        assert time.monotonic() < deadline, f"left behind: {before} before, {now} now"
        time.sleep(0.02)
    return now
