"""mremap() of merged memory by a library in C: what was there stays, and all else is zero."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from conftest import MakeEngine, Mode
from support import memory
from support.build import shared_library
from support.libc import libc
from support.memory import Bytes
from support.oracle import PAGE
from support.patience import until
from test_growth import FAILED

pytestmark = pytest.mark.timeout(120)

PAGES = 64
NBYTES = PAGES * PAGE
FIRST, COUNT = 8, 16  # pages of the part that is moved
AT, PART = FIRST * PAGE, COUNT * PAGE
MAYMOVE, FIXED, DONTUNMAP = 1, 2, 4
_DONTNEED = 4

Moves = Callable[..., int]


def _map(nbytes: int) -> int:
    at: int = libc.mmap(None, nbytes, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert at != FAILED
    return at


def _bytes(address: int, nbytes: int) -> Bytes:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


@pytest.fixture
def wanted() -> Bytes:
    return memory.distinct(PAGES, seed=31)


@pytest.fixture
def engine(mode: Mode, make_engine: MakeEngine) -> Any:
    """An engine where calls are led: where the kernel does not wait for what is frozen."""
    if not mode.efault_ok:
        pytest.skip("no calls are led where the kernel waits")
    return make_engine()


@pytest.fixture
def mremap(engine: Any) -> Moves:
    """The call, as a library makes it that was loaded before the last scan."""
    library = ctypes.CDLL(str(shared_library("moving")), use_errno=True)
    library.moving_call.restype = ctypes.c_void_p
    library.moving_call.argtypes = libc.mremap.argtypes

    def is_led() -> bool:
        engine.scan()
        return bool(library.moving_is_led())

    until(is_led, "mremap() is not led")
    call: Moves = library.moving_call
    return call


@pytest.fixture
def blocks(engine: Any, wanted: Bytes) -> Iterator[list[int]]:
    """Three equal blocks, merged; what is moved away or unmapped in the end keeps no frame."""
    found = [_map(NBYTES) for _ in range(3)]
    for block in found:
        ctypes.memmove(block, memory.address_of(wanted), NBYTES)
        engine.register_range(block, NBYTES)
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 2 * (PAGES - 1)
    yield found
    for block in found:
        libc.munmap(block, NBYTES)
    engine.scan(4)
    assert engine.stats().frame_bytes == 0


def _has(address: int, wanted: Bytes, first: int = FIRST, count: int = COUNT) -> bool:
    part = wanted[first * PAGE : (first + count) * PAGE]
    return bool((_bytes(address, count * PAGE) == part).all())


def test_a_part_grows_with_zeros(mremap: Moves, blocks: list[int], wanted: Bytes) -> None:
    """The kernel would show the frames that follow those of the part."""
    at = mremap(blocks[0] + AT, PART, 2 * PART, MAYMOVE, None)
    assert at != FAILED
    assert _has(at, wanted)
    assert not _bytes(at + PART, PART).any()
    assert _has(blocks[0], wanted, 0, FIRST)
    assert _has(blocks[0] + AT + PART, wanted, FIRST + COUNT, PAGES - FIRST - COUNT)
    libc.munmap(at, 2 * PART)


def test_a_mapping_that_is_merged_in_part_grows(
    mremap: Moves, blocks: list[int], wanted: Bytes
) -> None:
    """The kernel would not make it longer, as it is several mappings."""
    at = mremap(blocks[0], NBYTES - 1, 2 * NBYTES - 1, MAYMOVE, None)
    assert at != FAILED
    assert _has(at, wanted, 0, PAGES)
    assert not _bytes(at + NBYTES, NBYTES).any()
    libc.munmap(at, 2 * NBYTES)


@pytest.mark.parametrize("places", [0, COUNT // 2])
def test_what_was_moved_is_zero_once_it_is_given_back(
    mremap: Moves, blocks: list[int], wanted: Bytes, places: int
) -> None:
    """To a given place, all of it or a part; the kernel would move the frames."""
    nbytes = PART - places * PAGE
    place = _map(PART)
    assert mremap(blocks[1] + AT, PART, nbytes, MAYMOVE | FIXED, place) == place
    assert _has(place, wanted, FIRST, nbytes // PAGE)
    assert libc.madvise(place, nbytes, _DONTNEED) == 0
    assert not _bytes(place, PART).any()
    libc.munmap(place, PART)


def test_who_reads_where_it_is_moved_to_sees_all_of_it(engine: Any, mremap: Moves) -> None:
    """A program may exchange what others are reading in one step. The byte is the last one that
    would be copied there.
    """
    pages = 2048
    wanted = memory.distinct(pages, seed=32) | 1
    nbytes = wanted.nbytes
    one, two, place = (_map(nbytes) for _ in range(3))
    for block in (one, two):
        ctypes.memmove(block, memory.address_of(wanted), nbytes)
        engine.register_range(block, nbytes)
    _bytes(place, nbytes)[:] = 1
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == pages - 1
    library = ctypes.CDLL(str(shared_library("moving")))
    library.moving_watched_call.argtypes = [*libc.mremap.argtypes, ctypes.c_void_p]
    end = place + nbytes - 1
    assert library.moving_watched_call(one, nbytes, nbytes, MAYMOVE | FIXED, place, end) == 0
    assert _has(place, wanted, 0, pages)
    libc.munmap(place, nbytes)
    libc.munmap(two, nbytes)


def test_what_was_moved_leaves_zeros(mremap: Moves, blocks: list[int], wanted: Bytes) -> None:
    """With MREMAP_DONTUNMAP."""
    at = mremap(blocks[2] + AT, PART, PART, MAYMOVE | DONTUNMAP, None)
    assert at != FAILED
    assert _has(at, wanted)
    assert not _bytes(blocks[2] + AT, PART).any()
    libc.munmap(at, PART)


def test_what_may_not_move_does_not_grow(mremap: Moves, blocks: list[int], wanted: Bytes) -> None:
    """As where there is no room behind it; and what gets shorter stays where it is."""
    assert mremap(blocks[0] + AT, PART, 2 * PART, 0, None) == FAILED
    assert ctypes.get_errno() == errno.ENOMEM
    assert mremap(blocks[0] + AT, PART, PART - PAGE, 0, None) == blocks[0] + AT
    assert _has(blocks[0] + AT, wanted, FIRST, COUNT - 1)


@pytest.mark.parametrize(
    ("before", "after", "flags", "place"),
    [
        (PART, 2 * PART, FIXED, 0),
        (PART, PART, MAYMOVE | FIXED, PAGE // 2),
        (PART, PART, MAYMOVE | FIXED, AT + PAGE),
        (PART, 2 * PART, MAYMOVE | DONTUNMAP, 0),
        (PART, 0, MAYMOVE, 0),
        (PART, 2 * PART, MAYMOVE | 64, 0),
    ],
)
def test_what_the_kernel_refuses_changes_nothing(
    mremap: Moves, blocks: list[int], wanted: Bytes, before: int, after: int, flags: int, place: int
) -> None:
    """A place that is none, or lies in what is moved; sizes and flags that do not go together."""
    at = mremap(blocks[0] + AT, before, after, flags, blocks[0] + place)
    assert (at, ctypes.get_errno()) == (FAILED, errno.EINVAL)
    assert _has(blocks[0], wanted, 0, PAGES)
