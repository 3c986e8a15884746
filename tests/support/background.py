"""What another thread does over and over, while a test does something else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .memory import Bytes

__all__ = ["merging", "over_and_over", "scanning"]


@contextlib.contextmanager
def over_and_over(step: Callable[[], int | None]) -> Iterator[list[int]]:
    """Call it in another thread until the block ends; yields the sum of what it has returned so
    far, in a list. What it raises fails the test, at the end of the block.
    """
    stop = threading.Event()
    total = [0]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                total[0] += step() or 0
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield total
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def merging(
    engine: Any, buffers: Iterable[Bytes] = ()
) -> contextlib.AbstractContextManager[list[int]]:
    """Register these, and merge and unmerge all that there is; yields how many pages merged."""
    for buffer in buffers:
        engine.register(buffer)

    def step() -> int:
        merged = engine.scan(2, eager=True).merged
        engine.unmerge()
        return int(merged)

    return over_and_over(step)


def scanning(engine: Any) -> contextlib.AbstractContextManager[list[int]]:
    """Merge whatever is equal, one pass after the other; yields how many pages merged."""
    return over_and_over(lambda: int(engine.scan(eager=True).merged))
