"""Mappings heal: what came apart is one mapping again, and nothing creeps.

The arrays lie alone, and the place below them, which the engine needs for that, is made free right
before the first merge: where else they would lie depends on what the process has mapped before.
Without userfaultfd (signal) pages that come back to anonymous memory keep a mapping's identity of
their own, which docs/design.md explains: there only what comes back at once is one mapping.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from conftest import Mode
from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE

#: Seconds of the random workload. The long form is 600.
SECONDS = float(os.environ.get("KSMPY_CREEP_SECONDS", "1"))
#: Rounds before the mappings are watched, and the fewest of them while they are.
WARM_UP, ROUNDS = 12, 30
#: Mappings that the interpreter may have made meanwhile.
OTHERS = 16

pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)


def _inside(arrays: list[Bytes]) -> int:
    """Mappings that lie in the arrays' pages."""
    return sum(len(oracle.overlapping(*memory.span(array))) for array in arrays)


def _heals(mode: Mode) -> bool:
    return mode.freeze != "signal"


def _equal(count: int) -> list[Bytes]:
    arrays = [memory.alone(count), memory.alone(count)]
    arrays[0][:] = arrays[1][:] = memory.distinct(count, seed=1)
    return arrays


@pytest.mark.parametrize("step", [1, 2, 3, 64])
def test_written_pages_heal(step: int, engine: Any, mode: Mode) -> None:
    """Every page of both arrays is written, in `step` turns: they are one mapping each again."""
    if not _heals(mode) and step > 1:
        pytest.skip("without userfaultfd only what comes apart at once is one mapping again")
    arrays = _equal(1024)
    before = _inside(arrays)
    for array in arrays:
        engine.register(array)
    memory.make_room(*arrays)
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 1024
    for first in range(step):
        for seed, array in enumerate(arrays):
            pages = array.reshape(-1, PAGE)[first::step]
            pages[:, :8] = np.random.default_rng((seed, first)).integers(0, 256, (len(pages), 8))
        engine.scan()
    assert engine.stats().pages_sharing == 0
    assert _inside(arrays) <= before + (0 if _heals(mode) else 2 * len(arrays))
    engine._core.check()


@pytest.mark.parametrize("step", [0, 2, 3, 64])
def test_unmerged_pages_heal(step: int, engine: Any, mode: Mode) -> None:
    """Some pages are written, a pass gives them memory, then all the others are unmerged."""
    arrays = _equal(4096)
    before = _inside(arrays)
    for array in arrays:
        engine.register(array)
    memory.make_room(*arrays)
    engine.scan(2, eager=True)
    if step:
        arrays[1][:: step * PAGE] ^= 1
        engine.scan()
    merged = _inside(arrays)
    wanted = [array.tobytes() for array in arrays]
    engine.unmerge()
    assert not any(oracle.maps_store(*memory.span(array)) for array in arrays)
    assert _inside(arrays) <= (before if _heals(mode) else merged + 2 * len(arrays))
    assert [array.tobytes() for array in arrays] == wanted
    engine._core.check()


class _Workload:
    """Two arrays of which random pages are made different, or equal again, before each pass."""

    def __init__(self, engine: Any, count: int) -> None:
        self.engine = engine
        self.arrays = _equal(count)
        self.model = [array.copy() for array in self.arrays]
        self.original = self.model[0].reshape(-1, PAGE).copy()
        self.rng = np.random.default_rng(5)
        for array in self.arrays:
            engine.register(array)
        memory.make_room(*self.arrays)

    def round(self) -> int:
        """Writes a quarter of the pages, half of those as they were at first; mappings after."""
        for array, model in zip(self.arrays, self.model, strict=True):
            count = array.nbytes // PAGE
            chosen = self.rng.choice(count, count // 4, replace=False)
            changed, restored = np.array_split(chosen, 2)
            fresh = self.rng.integers(0, 256, (len(changed), 8), dtype=np.uint8)
            for pages in array.reshape(-1, PAGE), model.reshape(-1, PAGE):
                pages[changed, :8] = fresh
                pages[restored] = self.original[restored]
        self.engine.scan(eager=True)
        return len(oracle.mappings())

    def check(self) -> None:
        """No byte is lost."""
        for array, model in zip(self.arrays, self.model, strict=True):
            assert np.array_equal(array, model)


def test_mappings_do_not_creep(engine: Any, mode: Mode) -> None:
    """Random writes and merges: as many mappings in the end as in the beginning, and in between."""
    if not _heals(mode):
        pytest.skip("without userfaultfd mappings stay apart, up to the budget")
    work = _Workload(engine, 1024)
    engine.scan(2, eager=True)
    engine.unmerge()
    before, inside = len(oracle.mappings()), _inside(work.arrays)
    for _ in range(WARM_UP):
        work.round()
    seen = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(seen) < ROUNDS:
        seen.append(work.round())
    third = len(seen) // 3
    early, late = max(seen[:third]), max(seen[-third:])
    print(f"{mode}: {len(seen)} rounds, from {before} mappings; at most {early} in the first third")
    print(f"  of them, {max(seen[third:-third])} in the second, {late} in the last")
    assert early > before + 500, "nothing came apart: this test shows nothing"
    assert late <= 1.1 * early + OTHERS
    work.check()
    engine.unmerge()
    work.check()
    print(f"  {len(oracle.mappings())} after unmerge()")
    assert _inside(work.arrays) == inside
    assert len(oracle.mappings()) <= before + OTHERS
    engine._core.check()


@pytest.mark.parametrize("count", [1, 4, 31, 32])
def test_a_released_region_is_one_mapping_with_what_lies_around_it(
    count: int, engine: Any, mode: Mode
) -> None:
    """However small it is, and merged as a whole: so nothing creeps in a heap."""
    if not _heals(mode):
        pytest.skip("without userfaultfd pages keep the identity of where they were copied to")
    arrays = _equal(count + 2)
    inner = [array[PAGE:-PAGE] for array in arrays]
    regions = [engine.register(array) for array in inner]
    before = _inside(arrays)
    memory.make_room(*arrays)
    engine.scan(2, eager=True)
    assert engine.stats().merging_pages == 2 * count
    inner[1][(count - 1) * PAGE] ^= 1
    engine.scan(2)
    inner[1][0] ^= 2
    engine.scan(2)
    for region in regions:
        region.release()
    assert _inside(arrays) == 2 < before
