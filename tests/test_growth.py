"""mremap() and realloc() of merged memory: what was there stays, and what is new is zero."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support import memory
from support.libc import libc
from support.memory import Bytes
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
PAGES = 512
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.realloc.restype = ctypes.c_void_p
_libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


def _map() -> int:
    """A block with room behind it, and too far from anything else to be taken for a stack."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start: int = libc.mmap(None, 24 * MIB, mmap.PROT_READ, flags, -1, 0)
    assert start != FAILED
    block = start + 9 * MIB
    assert libc.mprotect(block, PAGES * PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert libc.munmap(block + PAGES * PAGE, 4 * MIB) == 0
    return block


def _bytes(address: int, nbytes: int) -> Bytes:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


@pytest.fixture
def blocks() -> Iterator[list[int]]:
    """Three equal mappings of 2 MiB."""
    wanted = memory.distinct(PAGES, seed=5)
    found = [_map() for _ in range(3)]
    for block in found:
        ctypes.memmove(block, memory.address_of(wanted), PAGES * PAGE)
    starts = [block - 9 * MIB for block in found]
    yield found
    for block in found:
        libc.munmap(block, PAGES * PAGE)
    for start in starts:
        libc.munmap(start, 9 * MIB)
        libc.munmap(start + 15 * MIB, 9 * MIB)


def _registered(engine: Any, block: int) -> Any:
    return engine.register_range(block, PAGES * PAGE)


def _adopted(engine: Any, block: int) -> Any:
    """As enable() does with what it finds."""
    return engine._core.adopt([(block, block + PAGES * PAGE, "block")])[0][0]


@pytest.mark.parametrize("take", [_registered, _adopted])
@pytest.mark.parametrize("may_move", [0, 1])
def test_a_merged_mapping_grows_with_zeros(
    engine: Any, blocks: list[int], take: Any, may_move: int
) -> None:
    """In place or elsewhere, growing a merged mapping fails, or what is new of it is zero."""
    wanted = memory.distinct(PAGES, seed=5)
    regions = [take(engine, block) for block in blocks]
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 2 * (PAGES - 1)
    for i, block in enumerate(blocks):
        grown = libc.mremap(block, PAGES * PAGE, 2 * PAGES * PAGE, may_move, None)
        if grown != FAILED:
            blocks[i] = grown
            assert not _bytes(grown + PAGES * PAGE, PAGES * PAGE).any()
            libc.munmap(grown + PAGES * PAGE, PAGES * PAGE)
        assert (_bytes(blocks[i], PAGES * PAGE) == wanted).all()
    for region in regions:
        region.release()
    assert all((_bytes(block, PAGES * PAGE) == wanted).all() for block in blocks)


def _neighbours(size: int) -> list[int]:
    """Three blocks of malloc's that follow each other, each a mapping of `size` bytes."""
    tried = sorted(_libc.malloc(size - 32) for _ in range(16))
    first = next(block for block in tried if {block + size, block + 2 * size} < set(tried))
    found = [first, first + size, first + 2 * size]
    for block in set(tried) - set(found):
        _libc.free(block)
    return found


def test_blocks_of_malloc_that_are_one_mapping(engine: Any) -> None:
    """Neighbours in one mapping, registered as one: each can be made longer by realloc()."""
    size = 33 * MIB
    found = _neighbours(size)
    wanted = memory.distinct(size // PAGE, seed=6)
    nbytes = size - 16
    for block in found:
        ctypes.memmove(block, memory.address_of(wanted), nbytes)
    engine.register_range(found[0] - 16, 3 * size)
    others = memory.distinct(PAGES, seed=7)  # whose frames come after theirs
    twins = memory.twin(others)
    for array in (others, twins):
        engine.register(array)
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing >= 2 * size // PAGE - 8
    for i, block in enumerate(found):
        found[i] = _libc.realloc(block, 36 * MIB)
        assert (_bytes(found[i], nbytes) == wanted[:nbytes]).all()
        assert not _bytes(found[i] + size, 2 * MIB).any()
    for block in found:
        _libc.free(block)
    engine.scan()
