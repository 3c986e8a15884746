"""Memory that is written all over all the time is left alone, and found when it rests.

With write tracking each question protects pages anew: the next write takes a fault, and a huge
page falls apart. The scanner reads samples of such memory instead.
"""

from __future__ import annotations

import resource
from typing import Any

import pytest

from conftest import Mode
from support import memory
from support.memory import Bytes
from support.oracle import PAGE

#: Two whole chunks of page ids, and a part of one.
PAGES = 2 * 512 + 100
#: Passes after which every page was found written often enough.
WARM_UP = 5


@pytest.fixture
def engine(make_engine: Any) -> Any:
    """Without smart_scan, which passes over pages by their age."""
    engine = make_engine()
    engine.knobs.smart_scan = 0
    return engine


def _write_all(array: Bytes, seed: int) -> None:
    """Changes each page, as a whole-array operation of its owner would."""
    array[seed % PAGE :: PAGE] += 1


def _faults_of(array: Bytes, seed: int) -> int:
    """Page faults that writing to each page takes."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    _write_all(array, seed)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def _keep_writing(engine: Any, *arrays: Bytes) -> None:
    for seed in range(WARM_UP):
        for array in arrays:
            _write_all(array, seed)
        engine.scan()


@pytest.mark.parametrize("count", [3, 512, PAGES])
def test_writing_all_over_takes_no_faults(count: int, engine: Any) -> None:
    """Once it is known to be written all over, its writer notices nothing of the passes."""
    array = memory.distinct(count)
    engine.register(array)
    _keep_writing(engine, array)
    faults = []
    for seed in range(5):
        faults.append(_faults_of(array, seed))
        engine.scan()
    # The interpreter takes a fault now and then for an arena of its own.
    assert sorted(faults)[2] < count // 16 + 2, faults
    assert engine.stats().pages_volatile == count


@pytest.mark.parametrize("count", [3, 512, PAGES])
def test_it_is_merged_when_it_rests(count: int, engine: Any) -> None:
    """In the first pass that finds it unchanged, as if it had always been asked about."""
    array = memory.distinct(count)
    arrays = [array, memory.twin(array)]
    for array in arrays:
        engine.register(array)
    _keep_writing(engine, *arrays)
    assert engine.stats().pages_sharing == 0
    engine.scan()
    assert engine.stats().pages_sharing == count
    engine._core.check()
    wanted = arrays[0].tobytes()
    _write_all(arrays[1], 1)
    assert arrays[0].tobytes() == wanted != arrays[1].tobytes()


def test_a_part_of_it_rests(engine: Any) -> None:
    """While the other half is still written: a sample meets the half that rests before long."""
    array = memory.distinct(PAGES)
    arrays = [array, memory.twin(array)]
    half = PAGES // 2 * PAGE
    for array in arrays:
        engine.register(array)
    _keep_writing(engine, *arrays)
    for seed in range(16):
        for array in arrays:
            _write_all(array[half:], seed)
        engine.scan()
    assert engine.stats().pages_sharing == PAGES // 2
    engine._core.check()


def test_it_is_left_alone_again_after_an_eager_pass(mode: Mode, engine: Any) -> None:
    """An eager pass that finds it written all over is one more of the passes that did."""
    if mode.tracking == "checksum":
        pytest.skip("without write tracking nothing takes faults")
    array = memory.distinct(512)
    engine.register(array)
    _keep_writing(engine, array)
    _write_all(array, 0)
    engine.scan(eager=True)
    for seed in range(WARM_UP):
        _write_all(array, seed)
        engine.scan()
    assert _faults_of(array, 1) < 32


def test_an_eager_call_goes_on_where_another_one_stopped(engine: Any) -> None:
    """In memory that was to be left alone: what it puts on the zero page stays counted."""
    engine.knobs.use_zero_pages = 1
    array = memory.distinct(512)
    engine.register(array)
    _keep_writing(engine, array)
    engine.scan(max_pages=1)
    zeros = array[256 * PAGE : 320 * PAGE]
    zeros[:] = 0
    assert engine.scan(eager=True).zeroed == 64
    for seed in range(WARM_UP):
        _write_all(array[: 256 * PAGE], seed)
        _write_all(array[320 * PAGE :], seed)
        engine.scan()
        assert engine.stats().ksm_zero_pages == 64
    engine._core.check()


def test_an_eager_pass_reads_everything(mode: Mode, engine: Any) -> None:
    """Whatever was known of it; and asks, so that with write tracking the next need not read."""
    array = memory.distinct(PAGES)
    arrays = [array, memory.twin(array), memory.distinct(PAGES, seed=1)]
    for array in arrays:
        engine.register(array)
    _keep_writing(engine, *arrays)
    for array in arrays:
        _write_all(array, WARM_UP)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == PAGES
    assert engine.stats().pages_unshared == PAGES
    assert mode.tracking == "checksum" or engine.scan().scanned == 0
    engine._core.check()


def _huge() -> list[Bytes]:
    """Two equal arrays of two huge pages each."""
    arrays = []
    for _ in range(2):
        array = memory.huge_pages(2 * memory.HUGE)
        array[:] = memory.distinct(2 * memory.HUGE)
        arrays.append(array)
    if not all(map(memory.are_huge, arrays)):
        pytest.skip("this machine gave no huge pages")
    return arrays


def test_huge_pages_that_are_written_stay_huge(engine: Any) -> None:
    """From the first pass on."""
    arrays = _huge()
    for array in arrays:
        engine.register(array)
    for seed in range(WARM_UP):
        for array in arrays:
            _write_all(array, seed)
        engine.scan()
    assert all(map(memory.are_huge, arrays))


def test_huge_pages_are_merged_in_the_second_pass(engine: Any) -> None:
    """That the first one did not ask about them costs no pass."""
    arrays = _huge()
    for array in arrays:
        engine.register(array)
    engine.scan()
    assert engine.stats().pages_sharing == 0
    engine.scan()
    assert engine.stats().pages_sharing == len(arrays[0]) // PAGE
    engine._core.check()


def test_huge_pages_of_which_some_are_written(engine: Any) -> None:
    """The others are merged, a pass later at most."""
    arrays = _huge()
    count = len(arrays[0]) // PAGE
    for array in arrays:
        engine.register(array)
    for seed in range(4):
        for array in arrays:
            array[:: 8 * PAGE] = seed
        engine.scan()
    assert engine.stats().pages_sharing == count - count // 8
    engine._core.check()
