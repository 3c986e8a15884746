"""How long something may take before it counts as hung, and waiting for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: An emulated machine says how much longer everything takes there (tests/vm).
FACTOR = int(os.environ.get("KSMPY_VM", "1"))
#: Between two looks, in seconds, at first and later: most things come at once.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.02


def patience(seconds: float) -> float:
    """Seconds here, for what never takes that many on a machine of any use."""
    return seconds * FACTOR


def until(
    true: Callable[[], bool], what: str | Callable[[], object], *, limit: float = patience(10)
) -> None:
    """Wait for what others bring about; AssertionError if it is not there after `limit` seconds.

    `what` says what is wrong then, or looks at what there is instead.
    """
    deadline = time.monotonic() + limit
    pause = SHORTEST_PAUSE
    while True:
        late = time.monotonic() > deadline  # before the look: this process may have stood still
        if true():
            return
        if late:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
