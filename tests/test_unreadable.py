"""Reading what its owner has taken away: no merge, and no harm.

Each case runs in a process of its own, which a read that is not guarded would end.
"""

from __future__ import annotations

import pytest

from conftest import EACH_FREEZE, Mode
from support.procs import python, python_ok

pytestmark = pytest.mark.timeout(60)

_HALFWAY = """
import ctypes, mmap, os, signal, sys, threading
import numpy as np
from ksmpy import native
from support import memory, oracle
from support.libc import libc
from support.oracle import PAGE

PAGES, SEEN, RW, PRIVATE, FIXED = 512, 100, 3, 0x22, 0x10
what, eager = sys.argv[1], int(sys.argv[2])
engine = native.NativeEngine(sys.argv[3], sys.argv[4])
twin, other = memory.distinct(PAGES, seed=3), memory.distinct(PAGES, seed=3)
address = libc.mmap(None, PAGES * PAGE, RW, PRIVATE, -1, 0)
ctypes.memmove(address, memory.address_of(twin), PAGES * PAGE)
regions = [engine.register(address, PAGES * PAGE, 0)]
for array in (twin, other):
    regions.append(engine.register(*memory.span(array), 0))
wanted = twin.tobytes()

def take_away(first, count):
    at, size = address + first * PAGE, count * PAGE
    if what == "unmapped":
        assert libc.munmap(at, size) == 0
    elif what == "protected":
        assert libc.mprotect(at, size, 0) == 0
    else:  # a file that ends before its mapping does
        file = os.memfd_create("short")
        assert libc.mmap(at, size, RW, 1 | FIXED, file, 0) == at
        os.close(file)

def merge(flags=native.SCAN_EAGER):
    result = engine.scan(1 << 30, flags | native.SCAN_RESTART)
    assert result["full"], result
"""

_DIES = (
    _HALFWAY
    + """
if eager < 2:
    # In the middle of a pass, which has asked for the pages of the region.
    engine.scan(PAGES if eager else 3 * PAGES, 0)
    engine.scan(SEEN, native.SCAN_EAGER * eager)
    take_away(10, PAGES - 20)
else:
    # Candidates, which others are compared with.
    engine.release(regions.pop(), discard=False)
    engine.release(regions.pop(), discard=False)
    merge()
    take_away(0, PAGES)
    regions.append(engine.register(*memory.span(other), 0))
while not engine.scan(1 << 30, native.SCAN_EAGER)["full"]:
    pass
merge()
assert twin.tobytes() == other.tobytes() == wanted
engine.check()
for region in regions:
    engine.release(region, discard=False)
assert engine.stats()["frame_bytes"] == 0
engine.close()
"""
)


_CASES = [("unmapped", 0), ("protected", 1), ("short", 1), ("unmapped", 2)]


@pytest.mark.parametrize(
    ("what", "when"), _CASES, ids=["unmapped", "protected", "short", "candidates"]
)
def test_memory_that_goes_away_in_the_middle_of_a_pass(mode: Mode, what: str, when: int) -> None:
    """The scanner reads it, lives, and merges the rest."""
    python_ok("-c", _DIES, what, str(when), *mode)


_MASKED = (
    _HALFWAY
    + """
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
engine.scan(SEEN, native.SCAN_EAGER)
take_away(10, PAGES - 20)
engine.scan(1 << 30, native.SCAN_EAGER)
assert signal.SIGSEGV in signal.pthread_sigmask(signal.SIG_BLOCK, ())
engine.unmerge()
assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert twin.tobytes() == other.tobytes() == wanted
"""
)


@pytest.mark.parametrize("what", ["unmapped", "short"])
@pytest.mark.parametrize("mode", EACH_FREEZE, ids=str, indirect=True)
def test_a_thread_that_blocks_all_signals(mode: Mode, what: str) -> None:
    """The kernel would kill it at its first fault; its mask is as before afterwards."""
    python_ok("-c", _MASKED, what, "1", *mode)


_FOREIGN = (
    _HALFWAY
    + """
import faulthandler
if eager:
    faulthandler.enable()
merge()
if eager > 1:
    faulthandler.enable()
merge()
take_away(0, PAGES)
merge()
ctypes.string_at(address)
"""
)


@pytest.mark.parametrize(
    ("what", "number", "order"), [("unmapped", 11, 0), ("unmapped", 11, 2), ("short", 7, 1)]
)
@pytest.mark.parametrize("mode", EACH_FREEZE, ids=str, indirect=True)
def test_a_fault_of_the_program_is_its_own(mode: Mode, what: str, number: int, order: int) -> None:
    """It ends the process by the signal that it is, after the handler that was there before."""
    none = {"PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""}  # of the tests' own environment
    done = python("-c", _FOREIGN, what, str(order), *mode, env=none)
    assert done.returncode == -number, done.stderr
    assert ("Fatal Python error" in done.stderr) == (order > 0), done.stderr
