"""What was one mapping before it was merged is one mapping again after it was given back."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(120)

#: Mappings that the interpreter or the engine may have made meanwhile.
OTHERS = 16


def _pieces(arrays: list[Bytes]) -> int:
    return sum(len(oracle.overlapping(*memory.span(array))) for array in arrays)


def _make_room(array: Bytes) -> None:
    """Nothing is mapped any more right below a guarded array."""
    below = ctypes.c_void_p(memory.address_of(array) - PAGE)
    assert ctypes.CDLL(None).munmap(below, ctypes.c_size_t(PAGE)) == 0


def _free(arrays: list[Bytes]) -> None:
    for array in arrays:
        ctypes.CDLL(None).munmap(
            ctypes.c_void_p(memory.address_of(array)), ctypes.c_size_t(array.nbytes)
        )


@pytest.mark.parametrize("end", ["release", "unmerge", "close"])
def test_scattered_overlays_leave_no_islands(make_engine: Any, end: str) -> None:
    """Every third page stays the owner's own, so that there are many stretches to give back."""
    engine = make_engine()
    one, two = memory.guarded(1500), memory.guarded(1500)
    one[:] = two[:] = memory.distinct(1500)
    two.reshape(-1, PAGE)[::3, 0] ^= 1
    arrays = [one, two]
    wanted, before = [array.tobytes() for array in arrays], _pieces(arrays)
    all_before = len(oracle.mappings())
    for array in arrays:
        engine.register(array)
        _make_room(array)
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
    _free(arrays)


def _roomless(count: int) -> Bytes:
    """Random pages with no free place next to them."""
    array = memory.guarded(count)
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
    _free(arrays)
