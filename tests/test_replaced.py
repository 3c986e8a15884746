"""The owner puts other memory where registered memory was, between two passes.

The engine finds it anonymous and writable, as its own would be, but it is registered for nothing:
who touches a page that is taken away would not wait. So it must be left alone.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import pytest

from conftest import Mode
from support import memory, oracle
from support.libc import libc
from support.memory import Bytes
from support.oracle import PAGE
from support.procs import python_ok

pytestmark = pytest.mark.timeout(60)

_RW = mmap.PROT_READ | mmap.PROT_WRITE
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAP_FIXED = 0x10


def _replace(array: Bytes, *, huge: bool = False) -> None:
    """Other anonymous memory in the place of an array, with the same bytes."""
    wanted = array.tobytes()
    address, nbytes = memory.span(array)
    assert libc.mmap(address, nbytes, _RW, _PRIVATE | _MAP_FIXED, -1, 0) == address
    if huge:
        assert libc.madvise(address, nbytes, mmap.MADV_HUGEPAGE) == 0
    ctypes.memmove(address, wanted, nbytes)


def _tracked_only(array: Bytes) -> bool:
    """Whether any of it is registered for write tracking (uw), and not for missing pages (um)."""
    return any(
        "uw" in fields["VmFlags"] and "um" not in fields["VmFlags"]
        for mapping, fields in oracle.details()
        if mapping.overlaps(*memory.span(array))
    )


def test_replaced_memory_is_tracked_only_with_the_rest(engine: Any) -> None:
    """What was refused is not registered by half, which would make it look like our own."""
    one = memory.distinct(64, seed=11)
    two = memory.twin(one)
    wanted = one.tobytes()
    for array in (one, two):
        engine.register(array)
    _replace(two)
    for _ in range(4):
        engine.scan(eager=True)
        one[::PAGE] = one[::PAGE]  # a write that changes nothing, so that it is looked at again
        two[::PAGE] = two[::PAGE]
        assert one.tobytes() == wanted == two.tobytes()
        assert engine.freeze in ("signal", "uffd-wp") or not _tracked_only(two)
    engine._core.check()


BESIDE = """
import ctypes, mmap, sys
import ksmpy
from support import memory
from support.oracle import PAGE
from support.procs import python_ok
from support.libc import libc
from test_replaced import _PRIVATE, _RW, _replace

gap, block = 128 * PAGE, memory.HUGE * PAGE
small = memory.filled([1, 1])
one = memory.huge_pages(2 * memory.HUGE)
pool = libc.mmap(None, 24 * (gap + block), _RW, _PRIVATE, -1, 0)
ctypes.memset(pool, 0x42, 24 * (gap + block))
starts = range(pool, pool + 24 * (gap + block), gap + block)
for start in starts:
    assert libc.munmap(start, gap) == 0  # the engine puts its window into one of these
with ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2]) as engine:
    one[:block] = memory.distinct(memory.HUGE, seed=12)
    one[block:] = one[:block]
    wanted = one.tobytes()
    engine.register(small)
    engine.register(one)
    _replace(one, huge=True)
    for _ in range(3):
        engine.scan(eager=True)
        assert one.tobytes() == wanted
        for start in starts:
            assert ctypes.string_at(start + gap, block) == bytes([0x42]) * block
    engine._core.check()
"""


def test_replaced_by_huge_pages_nobody_else_is_touched(mode: Mode) -> None:
    """A huge page that is refused: only our own window is cleared, and not what lies beside it."""
    python_ok("-c", BESIDE, mode.freeze, mode.tracking)
