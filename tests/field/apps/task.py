"""What workers of a pool do: load once, and answer for a while."""

from __future__ import annotations

import time

import load

WEIGHTS: dict[str, object] = {}


def work(_: int = 0) -> None:
    """One task, long enough that every worker of the pool gets one."""
    if not WEIGHTS:
        WEIGHTS.update(load.load(), loaded=True)
        WEIGHTS.pop("loaded")
    load.check(WEIGHTS)
    time.sleep(load.PAUSE)
