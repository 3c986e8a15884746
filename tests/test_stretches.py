"""Neighbours that are equal to each other: as many frames as the kernel takes, on few mappings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Mode
from support import memory, oracle
from support.background import merging
from support.memory import Bytes
from support.oracle import PAGE
from support.torture import duration, lasting

pytestmark = pytest.mark.timeout(120 + 2 * duration())


def _constant(count: int, value: int = 7) -> Bytes:
    array = memory.pages(count)
    array[:] = value
    return array


def _inside(*arrays: Bytes) -> int:
    """Mappings that lie in the arrays' pages."""
    return sum(len(oracle.overlapping(*memory.span(array))) for array in arrays)


def _frames(*arrays: Bytes) -> Counter[oracle.Frame]:
    return oracle.shared_pages(memory.span(array) for array in arrays)


def _leave_room(engine: Any, mappings: int) -> None:
    """Let the process have about so many mappings more than it has."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    engine.knobs.vma_share_percent = 100 * (len(oracle.mappings()) + mappings) // limit + 1


def _frames_of_the_kernel(pages: int, sharing: int) -> int:
    return pages // sharing + (pages % sharing > 1)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", ""])
def test_a_constant_array_takes_few_mappings(eager: bool, engine: Any) -> None:
    """32 MiB of one page: 32 frames with 256 sharers each, and a mapping for 32 pages or so."""
    count = 8192
    array = _constant(count)
    engine.register(array)
    engine.scan(1 if eager else 3, eager=eager)
    stats = engine.stats()
    frames = _frames(array)
    assert (stats.pages_shared, stats.pages_sharing) == (32, count - 32)
    assert (len(frames), max(frames.values())) == (32, 256)
    assert _inside(array) <= 2 * 256 + 32
    assert (array == 7).all()
    engine._core.check()


def test_each_doubling_takes_as_many_mappings_as_the_one_before(engine: Any) -> None:
    """Blocks grow with the data: 16 times the pages, four times as many mappings more."""
    sharing = 8
    engine.knobs.max_page_sharing = sharing
    inside = []
    for count in (2048, 16 * 2048):
        array = _constant(count)
        region = engine.register(array)
        engine.scan(eager=True)
        frames = _frames(array)
        assert len(frames) == count // sharing == engine.stats().pages_shared
        assert max(frames.values()) == sharing
        inside.append(_inside(array))
        region.release()
    assert inside[1] <= inside[0] + (4 + 4) * sharing, inside


def test_stretches_of_any_length(engine: Any) -> None:
    """Stretches of a few contents, of any length, in any order: the kernel's number of frames."""
    sharing = 8
    engine.knobs.max_page_sharing = sharing
    rng = np.random.default_rng(1)
    kinds = [int(kind) for kind in rng.integers(1, 4, 150) for _ in range(rng.integers(1, 40))]
    half = len(kinds) // 2
    arrays = memory.filled(kinds[:half]), memory.filled(kinds[half:])
    for array in arrays:
        engine.register(array)
        engine.scan(2, eager=True)
    contents = Counter(kinds)
    frames = _frames(*arrays)
    assert max(frames.values()) <= sharing
    assert len(frames) == sum(_frames_of_the_kernel(n, sharing) for n in contents.values())
    stats = engine.stats()
    assert stats.pages_shared == len(frames)
    assert stats.pages_unshared == sum(n % sharing == 1 for n in contents.values())
    assert b"".join(array.tobytes() for array in arrays) == memory.contents(kinds)
    engine._core.check()


def test_a_guess_about_the_rest_is_worth_a_few_frames(engine: Any) -> None:
    """Pages further on that only seem to belong to the stretch cost at most twice its frames.

    For a guess of any length 256 of them are looked at, of this array every 121st.
    """
    sharing, run, step = 16, 2048, 121
    engine.knobs.max_page_sharing = sharing
    array = memory.distinct(10 * run)
    pages = array.reshape(-1, PAGE)
    first = -memory.span(array)[0] // PAGE % run  # a run begins there
    pages[first : first + run] = 7
    pages[first + run :: step] = 7
    engine.register(array)
    engine.scan(eager=True)
    sharers = int((pages == 7).all(axis=1).sum())
    assert len(_frames(array)) <= 2 * _frames_of_the_kernel(sharers, sharing)
    assert max(_frames(array).values()) <= sharing


def test_later_stretches_follow_the_frames_in_their_order(engine: Any) -> None:
    """Another array of the same bytes goes onto the frames that there are, in rows."""
    engine.knobs.max_page_sharing = 64
    first, second = _constant(640 - 64), _constant(64)
    engine.register(first)
    engine.scan(eager=True)
    assert len(_frames(first)) == 9
    first[: 9 * PAGE] += 1
    engine.scan(eager=True)
    engine.register(second)
    engine.scan(2, eager=True)
    users = _frames(first, second)
    assert max(users.values()) <= 64
    assert _inside(second) <= 64 // 9 + 64 - 9
    assert (second == 7).all()
    engine._core.check()


def test_written_pages_come_out_of_a_block(engine: Any, mode: Mode) -> None:
    """Writes into equal neighbours are kept, merge again where equal, and all of it heals."""
    count = 2048
    engine.knobs.max_page_sharing = 32
    array = _constant(count)
    before = _inside(array)
    engine.register(array)
    wanted = array.copy()
    rng = np.random.default_rng(2)
    for _ in range(8):
        chosen = rng.choice(count, 100, replace=False)
        marks = rng.integers(0, 4, 60)
        for pages in array.reshape(-1, PAGE), wanted.reshape(-1, PAGE):
            pages[chosen[:60], 9] = marks
            pages[chosen[60:]] = 7
        engine.scan(eager=True)
        users = _frames(array)
        assert max(users.values()) <= 32
        assert np.array_equal(array, wanted)
        engine._core.check()
    assert engine.stats().pages_sharing == oracle.true_saved_pages([memory.span(array)])
    engine.unmerge()
    assert np.array_equal(array, wanted)
    assert not oracle.maps_store(*memory.span(array))
    assert mode.freeze == "signal" or _inside(array) == before


def test_no_write_into_a_stretch_is_lost(engine: Any) -> None:
    """Equal neighbours are merged and given back while one after another is written."""
    engine.knobs.use_zero_pages = 0
    engine.knobs.max_page_sharing = 4
    count = 256
    array = _constant(count, 0)
    engine.register(array)
    counters = array.view(np.uint64).reshape(count, -1)[:, 5]
    rng = np.random.default_rng(7)
    with merging(engine) as merged:
        going_on = lasting(duration() / 2)
        while going_on(merged[0] > count):
            page, value = int(rng.integers(count)), int(rng.integers(1, 2**60))
            assert counters[page] == 0
            counters[page] = value
            assert counters[page] == value, "a write into a stretch was lost"
            counters[page] = 0
    assert not array.any()
    engine._core.check()


def test_a_constant_array_leaves_mappings_for_the_rest(engine: Any) -> None:
    """Scattered pairs merge although a constant array came before them."""
    _leave_room(engine, 2000)
    constant = _constant(8192)
    array = memory.distinct(512)
    pages = array.reshape(-1, PAGE)
    pages[256:] = pages[:256][np.random.default_rng(3).permutation(256)]
    for each in constant, array:
        engine.register(each)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(constant)]) == 8192 - 32
    assert oracle.true_saved_pages([memory.span(array)]) == 256


def test_zeros_take_neither_frames_nor_mappings(engine: Any, mode: Mode) -> None:
    """By default they go to the kernel's zero page, one alone too."""
    array = memory.distinct(1024)
    array.reshape(-1, PAGE)[::2] = 0
    zeros = _constant(4096, 0)
    before = _inside(array, zeros)
    for each in array, zeros:
        engine.register(each)
    engine.scan(eager=True)
    stats = engine.stats()
    assert (stats.pages_shared, stats.ksm_zero_pages) == (0, 4096 + 512)
    assert _inside(array, zeros) <= before + (2 if mode.freeze == "signal" else 0)
    assert not zeros.any() and not array.reshape(-1, PAGE)[::2].any()
    engine._core.check()


def test_refused_pages_wait_until_there_is_room(engine: Any, mode: Mode) -> None:
    """What had no mappings is passed over, counted, and merged as soon as there are some."""
    engine.knobs.smart_scan = 0
    array = memory.distinct(4096)
    pages = array.reshape(-1, PAGE)
    pages[2048:] = pages[:2048][np.random.default_rng(3).permutation(2048)]
    wanted = array.tobytes()
    engine.register(array)
    _leave_room(engine, 500)
    for _ in range(20):
        result = engine.scan(eager=True)
    assert 0 < oracle.true_saved_pages([memory.span(array)]) < 2048
    assert result.no_budget > 0 and result.merged == 0
    assert result.scanned == 0 or mode.tracking == "checksum"
    assert engine.scan(eager=True).no_budget == result.no_budget
    engine.knobs.vma_share_percent = 50
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(array)]) == 2048
    assert array.tobytes() == wanted
    engine._core.check()
