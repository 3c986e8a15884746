"""estimate() promises what dedup() of the same objects delivers: never more, and hardly less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from support import memory, oracle
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(120)

PAGES = 3200
#: More mappings than the process has: a few MiB of scattered pages take more.
ROOM = 2400


@pytest.fixture
def scarce() -> Iterator[Any]:
    """The engine that dedup() uses may take few mappings."""
    engine = ksmpy.enable(adopt=False, run=0)
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit // 100 > ROOM:
        pytest.skip("vm.max_map_count is too high: one percent of it is enough for everything")
    engine.knobs.vma_share_percent = 100 * (len(oracle.mappings()) + ROOM) // limit + 1
    yield engine
    ksmpy.disable()


def _random(pages: int, seed: int) -> Any:
    rows = memory.pages(pages).reshape(pages, PAGE)
    rows[:] = np.random.default_rng(seed).integers(0, 256, (pages, PAGE), np.uint8)
    return rows


def _filled(rows: Any) -> Any:
    copy = memory.pages(len(rows)).reshape(len(rows), PAGE)
    copy[:] = rows
    return copy


def _scattered() -> list[Any]:
    one, two = _random(PAGES, 1), _random(PAGES, 2)
    two[::2] = one[::2]
    return [one, two]


def _shuffled() -> list[Any]:
    one = _random(PAGES, 1)
    return [one, _filled(one[np.random.default_rng(3).permutation(PAGES)])]


def _stretches() -> list[Any]:
    one = _random(PAGES, 1)
    order = np.random.default_rng(3).permutation(PAGES // 8)
    return [one, _filled(one.reshape(-1, 8, PAGE)[order].reshape(PAGES, PAGE))]


def _halves() -> list[Any]:
    """A run that is worth it comes after scattered pages, and before more of them."""
    one, two = _scattered()
    two[800:1600] = one[800:1600]
    return [one, two]


def _many_copies() -> list[Any]:
    one = _random(64, 1)
    return [one, *(_filled(one) for _ in range(9))]


def _constant() -> list[Any]:
    rows = memory.pages(4 * PAGES)
    rows[:] = 7
    return [rows]


def _zeros() -> list[Any]:
    rows = memory.pages(PAGES)
    rows[:] = 1
    rows[:] = 0
    return [rows, _random(PAGES, 1)]


def _misaligned() -> list[Any]:
    one = _random(PAGES, 1).reshape(-1)
    room = memory.pages(PAGES + 1)
    room[100 : 100 + one.size] = one
    return [one, room]


def _views() -> list[Any]:
    """Several objects have parts of one buffer, or all of it."""
    one, two = _random(PAGES // 8, 1), _random(PAGES // 8, 1)
    return [one, one[10:], {"again": one, "other": two}, memoryview(two)]


def _delivered(objs: list[Any]) -> int:
    with ksmpy.dedup(*objs, min_bytes=PAGE) as report:
        return report.stats.pages_sharing + report.stats.ksm_zero_pages


DATA: list[Callable[[], list[Any]]] = [
    _scattered, _shuffled, _stretches, _halves, _many_copies,
    _constant, _zeros, _misaligned, _views,
]  # fmt: skip


@pytest.mark.parametrize("data", DATA)
def test_where_mappings_are_scarce(scarce: Any, data: Callable[[], list[Any]]) -> None:
    """What takes more mappings than the engine may have is not promised."""
    objs = data()
    guess = ksmpy.estimate(*objs, min_bytes=PAGE)
    delivered = _delivered(objs)
    assert guess.duplicate_pages <= delivered <= guess.duplicate_pages * 1.1 + 1
    assert sum(buffer.duplicate_pages for buffer in guess.buffers) == guess.duplicate_pages


@pytest.mark.parametrize("data", DATA)
def test_where_they_are_not(data: Callable[[], list[Any]]) -> None:
    """Every page that merges is promised."""
    objs = data()
    guess = ksmpy.estimate(*objs, min_bytes=PAGE)
    assert guess.duplicate_pages <= _delivered(objs) <= guess.duplicate_pages + 1


def test_there_was_too_much_of_it(scarce: Any) -> None:
    """The limit above cuts off most of the scattered pages, and none of the stretches."""
    assert ksmpy.estimate(*_scattered()).duplicate_pages < PAGES // 3
    assert ksmpy.estimate(*_stretches()).duplicate_pages == PAGES


@pytest.mark.parametrize("sharing", [2, 5])
def test_frames_are_no_fuller_than_they_may_be(scarce: Any, sharing: int) -> None:
    """Each max_page_sharing pages take one."""
    scarce.knobs.max_page_sharing = sharing
    objs = _many_copies()
    guess = ksmpy.estimate(*objs, min_bytes=PAGE)
    assert guess.duplicate_pages == _delivered(objs) == 64 * (10 - 10 // sharing)


def test_what_is_merged_already_takes_more(scarce: Any) -> None:
    """dedup(a, b), then estimate(a, c): what c saves, which dedup() then adds."""
    one, other, third = _random(256, 1), _random(256, 1), _random(256, 1)
    with ksmpy.dedup(one, other) as report:
        assert report.stats.pages_sharing == 256
        guess = ksmpy.estimate(one, third)
        assert guess.duplicate_pages == 256 and len(guess.skipped) == 1
        assert _delivered([one, third]) == 2 * 256
