"""What was one mapping before it was merged is one mapping again after it was given back."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Mode
from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(120)

#: Mappings that the interpreter or the engine may have made meanwhile.
OTHERS = 16
#: How often a place is merged and given back, and after how many times it is the same again.
LIVES, PERIOD = 50, 5
_FIXED, _NORESERVE, _DONTDUMP = 0x10, 0x4000, 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
]  # fmt: skip
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _pieces(arrays: list[Bytes]) -> int:
    return sum(len(oracle.overlapping(*memory.span(array))) for array in arrays)


@pytest.mark.parametrize("end", ["release", "unmerge", "close"])
def test_scattered_overlays_leave_no_islands(make_engine: Any, end: str) -> None:
    """Every third page stays the owner's own, so that there are many stretches to give back."""
    engine = make_engine()
    one, two = memory.alone(1500), memory.alone(1500)
    one[:] = two[:] = memory.distinct(1500)
    two.reshape(-1, PAGE)[::3, 0] ^= 1
    arrays = [one, two]
    wanted, before = [array.tobytes() for array in arrays], _pieces(arrays)
    all_before = len(oracle.mappings())
    for array in arrays:
        engine.register(array)
    memory.make_room(*arrays)
    engine.scan(2, eager=True)
    assert _pieces(arrays) > 1000
    if end == "release":
        for region in engine.regions():
            region.release()
    elif end == "unmerge":
        engine.unmerge()
        assert _pieces(arrays) <= before + 4
    engine.close()
    assert _pieces(arrays) <= before + 1
    assert len(oracle.mappings()) <= all_before + OTHERS
    assert [array.tobytes() for array in arrays] == wanted


def test_a_written_page_parts_its_run_and_nothing_else(make_engine: Any) -> None:
    """It takes two mappings, its own and that of the rest: where it came from stays one."""
    engine = make_engine()
    one = memory.distinct(512)
    two = memory.twin(one)
    for array in (one, two):
        engine.register(array)
    engine.scan(2, eager=True)
    assert engine.stats().merging_pages == 1024
    before = len(oracle.mappings())
    one[:: 8 * PAGE] += 1
    engine.scan()
    assert engine.stats().merging_pages == 1024 - 64
    assert len(oracle.mappings()) <= before + 2 * 64 + OTHERS


def _roomless(count: int) -> Bytes:
    """Random pages with no free place next to them."""
    array = memory.alone(count)
    array[:] = memory.distinct(count)
    return array


def test_written_pages_come_back_in_place(make_engine: Any) -> None:
    """Pages that come out of their runs one by one, in passes, leave no mapping either.

    Nor do they where nothing is free next to their mapping.
    """
    engine = make_engine()
    arrays = [_roomless(1024), _roomless(1024)]
    one, before = arrays[0], _pieces(arrays)
    for array in arrays:
        engine.register(array)
    engine.scan(2, eager=True)
    for step in (64, 8, 2, 1):
        one[:: step * PAGE] += 1
        wanted = [array.tobytes() for array in arrays]
        engine.scan(eager=True)
        assert [array.tobytes() for array in arrays] == wanted
    assert _pieces(arrays) <= before + 4
    engine.close()
    assert _pieces(arrays) <= before + 1
    assert [array.tobytes() for array in arrays] == wanted


def _uncounted(array: Bytes) -> Bytes:
    """In its place memory that the system need not commit."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE | _FIXED
    rights, start = mmap.PROT_READ | mmap.PROT_WRITE, memory.address_of(array)
    assert _libc.mmap(start, array.nbytes, rights, flags, -1, 0) == start
    return array


def _advised(array: Bytes) -> Bytes:
    """All but its first page, which malloc would have its header in, gets a flag."""
    array[0] = 1
    rest = array[PAGE:]
    assert _libc.madvise(memory.address_of(rest), rest.nbytes, _DONTDUMP) == 0
    return rest


def _above_others(array: Bytes) -> Bytes:
    """A page of other memory ends where the room below it begins."""
    other = memory.address_of(array) - 2 * PAGE
    memory.protect(other, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.memset(other, 1, PAGE)
    return array


@pytest.mark.parametrize("kind", [_uncounted, _advised, _above_others])
@pytest.mark.parametrize("whole", [False, True])
def test_other_mappings_become_one_again(
    make_engine: Any, mode: Mode, kind: Callable[[Bytes], Bytes], whole: bool
) -> None:
    """Memory that is not counted as committed, what begins with a page of other flags, which may be
    registered too (whole), and what has memory of the same kind below the room for a page.
    """
    if kind is _above_others and mode == Mode("signal", "checksum"):
        pytest.skip("what is not registered becomes one mapping with what is below it")
    engine = make_engine()
    arrays = [memory.alone(300), memory.alone(300)]
    parts = [kind(array) for array in arrays]
    for array in arrays:
        array[:] = memory.distinct(300)
    arrays[1].reshape(-1, PAGE)[::3, 0] ^= 1
    wanted, before = [array.tobytes() for array in arrays], _pieces(arrays)
    for array, part in zip(arrays, parts, strict=True):
        if whole and part is not array:
            engine.register(array[:PAGE])
        engine.register(part)
    memory.make_room(*arrays)
    engine.scan(2, eager=True)
    assert _pieces(arrays) > 200
    engine.unmerge()
    engine.close()
    assert _pieces(arrays) <= before + 1
    assert [array.tobytes() for array in arrays] == wanted


def test_many_lives_in_a_place_without_room_lose_and_gather_nothing(make_engine: Any) -> None:
    """Merged in part, written and released again and again where nothing is free beside it."""
    engine = make_engine()
    arrays = [memory.alone(64), memory.alone(64)]
    common = memory.distinct(64)
    inside, everywhere = [], []
    for life in range(LIVES):
        for array in arrays:
            array[:] = common
        arrays[0].reshape(-1, PAGE)[life % PERIOD :: 2, 0] ^= 1
        regions = [engine.register(array) for array in arrays]
        engine.scan(2, eager=True)
        assert engine.stats().pages_sharing >= 28
        arrays[1].reshape(-1, PAGE)[life % PERIOD :: 7, 1] ^= 3
        wanted = [array.tobytes() for array in arrays]
        engine.scan()
        for region in regions:
            region.release()
        assert [array.tobytes() for array in arrays] == wanted
        inside.append(_pieces(arrays))
        everywhere.append(len(oracle.mappings()))
    assert max(inside) <= 2 * 64
    assert max(inside[-PERIOD:]) <= max(inside[: 2 * PERIOD]), inside
    assert everywhere[-1] <= max(everywhere[: 2 * PERIOD]) + OTHERS, everywhere
