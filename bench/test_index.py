"""The index by itself: the engine's red-black tree and stable index, beside plainer ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Meter
from .data import MIB
from .native import INDEXES, measure_index

Scale = Callable[[int], int]

# Taken out and put back: of the sorted array, where each moves half of the array, a few only.
_CHANGES = {"sorted array": 500}


@pytest.mark.benchmark(group="index")
@pytest.mark.parametrize("which", INDEXES)
def test_index(which: str, meter: Meter, scale: Scale) -> None:
    """4 million entries: build, look each up, look up what is not there, take out, put back."""
    count = scale(4_000_000 * MIB) // MIB

    def work() -> None:
        times = measure_index(which, count, _CHANGES.get(which, count // 2))
        assert not times.wrong, f"{times.wrong} wrong answers"
        for name in ("build", "insert", "find", "miss", "remove", "bytes"):
            meter.note(name, getattr(times, name))

    meter.run(work)
