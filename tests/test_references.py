"""What refers to a page and maps it nowhere reads what was there when it asked, whatever becomes of
the page: a pipe after vmsplice() here, as the kernel holds on to pages for it like for a socket
(MSG_ZEROCOPY), a write around the page cache, or another process (process_vm_readv).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import pytest

from support import memory
from support.memory import PAGE, Bytes

_PAGES = 2048
_CHOSEN = range(5, _PAGES, 137)

_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class _Held:
    """References to some pages of an array, and what their bytes were."""

    def __init__(self, array: Bytes) -> None:
        self._read, self._write = os.pipe()
        self._wanted = b""
        for page in _CHOSEN:
            piece = _Piece(array.ctypes.data + page * PAGE, PAGE)
            done = _libc.vmsplice(self._write, ctypes.byref(piece), 1, 0)
            assert done == PAGE, os.strerror(ctypes.get_errno())
            self._wanted += array[page * PAGE : (page + 1) * PAGE].tobytes()

    def wrong(self) -> list[int]:
        """Which pages have other bytes now."""
        got = b"".join(os.read(self._read, PAGE) for _ in _CHOSEN)
        os.close(self._read)
        os.close(self._write)
        parts = [slice(i * PAGE, (i + 1) * PAGE) for i in range(len(_CHOSEN))]
        return [
            page
            for page, part in zip(_CHOSEN, parts, strict=True)
            if got[part] != self._wanted[part]
        ]


@pytest.fixture(params=["huge", "small"])
def pair(request: pytest.FixtureRequest) -> tuple[Bytes, Bytes]:
    """Two equal arrays, on huge pages or not: the frames are, where the machine has any."""
    make = memory.huge_pages if request.param == "huge" else memory.pages
    one, two = make(_PAGES), make(_PAGES)
    one[:] = memory.distinct(_PAGES, seed=31)
    two[:] = one
    return one, two


def _unmerge(engine: Any, regions: list[Any], arrays: tuple[Bytes, Bytes]) -> None:
    engine.unmerge()


def _release(engine: Any, regions: list[Any], arrays: tuple[Bytes, Bytes]) -> None:
    for region in regions:
        region.release()


def _write_some(engine: Any, regions: list[Any], arrays: tuple[Bytes, Bytes]) -> None:
    """The frames of what was held are freed, some of their neighbours' too, and others are made."""
    for seed, array in enumerate(arrays):
        for page in range(0, _PAGES, 3):
            array[page * PAGE : page * PAGE + 8] = np.frombuffer(
                np.uint64(page << 8 | seed).tobytes(), np.uint8
            )
        for page in _CHOSEN:
            array[page * PAGE + 100] ^= 0xFF
    for _ in range(4):
        engine.scan(2, eager=True)


def _exchange(engine: Any, regions: list[Any], arrays: tuple[Bytes, Bytes]) -> None:
    """Everything gets other bytes, and is merged again."""
    engine.unmerge()
    arrays[0][:] = memory.distinct(_PAGES, seed=32)
    arrays[1][:] = arrays[0]
    engine.scan(3, eager=True)


@pytest.mark.parametrize("change", [_unmerge, _release, _write_some, _exchange])
def test_what_is_held_stays(engine: Any, pair: tuple[Bytes, Bytes], change: Any) -> None:
    """Frames are freed, given back and made anew, and whoever holds their pages sees none of it."""
    regions = [engine.register(array) for array in pair]
    assert engine.scan(3, eager=True).merged == 2 * _PAGES
    held = [_Held(array) for array in pair]
    change(engine, regions, pair)
    assert [each.wrong() for each in held] == [[], []]
    engine.unmerge()
    engine.scan()
    assert engine.stats().frame_bytes == 0
