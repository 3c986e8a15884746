"""A thread that blocks all signals waits at a frozen page like any other, in the mode "signal".

The kernel ends a process of which a thread faults with SIGSEGV blocked.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy.whole.adopt import Adopter
from support import memory
from support.build import shared_library
from support.patience import until
from support.procs import python_ok

PAGES = 256
ALL = (1 << 31) - 1 & ~(1 << (signal.SIGKILL - 1)) & ~(1 << (signal.SIGSTOP - 1))
SIGSEGV = 1 << (signal.SIGSEGV - 1)


@pytest.fixture
def masks() -> Any:
    library = ctypes.CDLL(str(shared_library("masks")))
    library.masks_block_all.restype = ctypes.c_uint64
    library.masks_suspend.restype = ctypes.c_uint64
    return library


@pytest.fixture
def pair() -> tuple[Any, Any]:
    one = memory.distinct(PAGES)
    return one, memory.twin(one)


@pytest.fixture
def engine(masks: Any, pair: tuple[Any, Any]) -> Iterator[Any]:
    """One that has led the calls of the library."""
    with ksmpy.Engine(freeze="signal", tracking="checksum") as made:
        for array in pair:
            made.register(array)

        def is_led() -> bool:
            """Whoever looked for libraries a moment ago lets others wait before it looks again."""
            made.scan(1, eager=True)
            return not masks.masks_block_all(0) & SIGSEGV

        until(is_led, "the library's calls are not led")
        yield made


@pytest.mark.parametrize("which", range(4))
def test_all_signals_but_one_are_blocked(engine: Any, masks: Any, which: int) -> None:
    """By pthread_sigmask() and sigprocmask(), added to what is blocked and in its place."""
    assert masks.masks_block_all(which) & ALL == ALL & ~SIGSEGV


def test_who_waits_for_a_signal_blocks_all_but_one(engine: Any, masks: Any) -> None:
    """A handler runs with what sigsuspend() blocks."""
    assert masks.masks_suspend() & ALL == ALL & ~SIGSEGV


@pytest.mark.parametrize("which", range(4))
def test_all_are_blocked_where_pages_are_frozen_otherwise(
    engine: Any, masks: Any, which: int
) -> None:
    """And where nothing is frozen any more."""
    engine.close()
    assert masks.masks_block_all(which) & ALL == ALL
    assert masks.masks_suspend() & ALL == ALL


WRITES = """
import ctypes, os, sys
import ksmpy
from support import memory
from support.patience import until

library, pages = sys.argv[1], int(sys.argv[2])
masks = ctypes.CDLL(library)
one = memory.distinct(pages)
two = memory.twin(one)
engine = ksmpy.Engine(freeze="signal", tracking="checksum")
engine.register(one), engine.register(two)
engine.scan(2, eager=True)
at = ctypes.c_void_p(memory.address_of(one))
assert masks.masks_begin(at, ctypes.c_size_t(pages), False) == 0
merged = 0

def has_merged_again():
    global merged
    merged += engine.scan(1, eager=True).merged
    return merged > 500

until(has_merged_again, "nothing is merged", limit=30)
masks.masks_end()
assert (one == two).all()
"""


def test_a_thread_that_blocks_all_signals_writes() -> None:
    """Beside a scanner; with a call that is not led such a process ended in three of three runs."""
    python_ok("-c", WRITES, str(shared_library("masks")), str(PAGES))


def test_nothing_is_adopted_beside_a_thread_that_blocks_all_signals(masks: Any) -> None:
    """One that did so before there was an engine, and may write to memory of malloc's."""
    one = memory.distinct(32 * PAGES)
    arrays = [np.frombuffer(bytearray(one), np.uint8) for _ in range(4)]
    with ksmpy.Engine(freeze="signal", tracking="checksum") as engine:
        adopter = Adopter(engine._core, PAGES * 4096 // 2, "mappings")

        def look() -> int:
            adopter.look(engine._core)
            return len(engine.regions())

        look()
        assert look() > 0
        assert masks.masks_begin(None, ctypes.c_size_t(0), True) == 0
        try:
            assert look() > 0  # it may do so for a moment only
            assert look() == 0
            assert adopter.coverage is not None
            look(), look()
            assert any("SIGSEGV" in reason for reason, _ in adopter.coverage.left)
        finally:
            masks.masks_end()
        look()
        assert look() > 0
    assert all((array == one).all() for array in arrays)


BESIDE_ARROW = """
import signal
import pyarrow as pa
import ksmpy
from ksmpy import proc
from ksmpy.whole.adopt import Adopter

table = pa.table({"numbers": list(range(100_000))})
if not proc.threads_that_block(signal.SIGSEGV):
    print("none")
    raise SystemExit
for way, is_adopted in (("mappings", True), ("all", False)):
    with ksmpy.Engine(freeze="signal", tracking="checksum") as engine:
        adopter = Adopter(engine._core, 1 << 20, way)
        blocks = [bytearray(40 << 20) for _ in range(2)]
        for each in blocks:
            each[:] = b"k" * len(each)
        for _ in range(3):
            adopter.look(engine._core)
        assert bool(engine.regions()) == is_adopted, (way, adopter.coverage)
"""


def test_arrows_own_thread_is_no_obstacle(arrow: Any) -> None:
    """jemalloc's: it blocks all signals, and writes to nobody's memory."""
    if "none" in python_ok("-c", BESIDE_ARROW):
        pytest.skip("this pyarrow has no such thread")
