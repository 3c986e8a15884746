"""The helpers themselves: a wrong oracle, or a torture that sees nothing, proves nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import MODES
from support import memory, oracle, short
from support.inject import preloaded
from support.libc import libc
from support.oracle import PAGE, Frame
from support.procs import python_ok
from support.torture import Torture, library

MAP_FIXED = 0x10


def _overlay(address: int, nbytes: int, fd: int, offset: int) -> None:
    prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
    assert libc.mmap(address, nbytes, prot, flags, fd, offset) == address


@pytest.fixture
def store() -> Iterator[int]:
    fd = os.memfd_create("ksmpy-by-hand")
    os.pwrite(fd, memory.contents([1, 2, 3, 4]), 0)
    yield fd
    os.close(fd)


def test_the_oracle_sees_overlays_made_by_hand(store: int) -> None:
    """Untouched and read overlays count as shared, written ones and plain memory do not."""
    array = memory.filled([1, 2, 3, 4])
    address, nbytes = memory.span(array)
    assert not oracle.maps_store(address, nbytes)
    assert oracle.frames_of(address, nbytes) == [None] * 4
    inode = os.fstat(store).st_ino
    _overlay(address + PAGE, 3 * PAGE, store, PAGE)
    assert array[PAGE] == memory.content(2)[0]
    array[3 * PAGE] ^= 1
    assert oracle.maps_store(address, nbytes)
    assert not oracle.maps_store(address, PAGE)
    wanted = [None, Frame(inode, PAGE), Frame(inode, 2 * PAGE), None]
    assert oracle.frames_of(address, nbytes) == wanted
    assert memory.content(3) == array[2 * PAGE : 3 * PAGE].tobytes()
    assert oracle.frames_of(address, nbytes) == wanted


def test_the_oracle_counts_what_is_saved(store: int) -> None:
    """Three pages on two frames save one page."""
    one, two = memory.filled([2, 3]), memory.filled([2])
    _overlay(memory.address_of(one), 2 * PAGE, store, PAGE)
    _overlay(memory.address_of(two), PAGE, store, PAGE)
    regions = [memory.span(one), memory.span(two)]
    assert oracle.true_saved_pages(regions) == 1
    two[5] = 7
    assert oracle.true_saved_pages(regions) == 0


def test_the_oracle_knows_the_zero_page() -> None:
    """A read of untouched memory maps the zero page; a written zero is memory of its own."""
    if not oracle.sees_pfns():
        pytest.skip("page frame numbers are hidden from this user")
    array = memory.pages(4)
    assert oracle.zero_pages(*memory.span(array)) == 0
    assert not array[: 3 * PAGE].any()
    array[0] = 0
    assert oracle.zero_pages(*memory.span(array)) == 2


def _torture_with_broken_merger(seconds: float) -> Torture:
    with Torture(count=64, buffers=2, window=2, epoch_us=500, rest_us=200) as torture:
        torture.verdict = False
        stop = ctypes.c_int(0)
        one, two = (memory.address_of(buffer) for buffer in torture.buffers)
        merger = threading.Thread(
            target=library().broken_merger, args=(one, two, 64, ctypes.byref(stop))
        )
        merger.start()
        time.sleep(seconds)
        stop.value = 1
        merger.join()
    return torture


@pytest.mark.timeout(60)
def test_the_torture_catches_a_merger_that_loses_writes() -> None:
    """Merging without freezing loses increments and spoils what the kernel wrote; both show."""
    lost = spoiled = 0
    deadline = time.monotonic() + 40
    while not (lost and spoiled) and time.monotonic() < deadline:
        totals = _torture_with_broken_merger(1.0).totals
        lost, spoiled = lost + totals.lost, spoiled + totals.spoiled
    assert lost, "no lost increment was noticed"
    assert spoiled, "no lost write of the kernel was noticed"


@pytest.mark.timeout(60)
def test_the_torture_is_content_with_plain_memory() -> None:
    """Nothing is reported where nothing merges, all threads work, and the pages end up equal."""
    with Torture(count=64) as torture:
        time.sleep(0.5)
        torture.assert_alive()
    assert torture.totals.increments and torture.totals.reads and torture.totals.syscalls
    assert np.array_equal(torture.buffers[0], torture.buffers[1])
    assert np.array_equal(torture.buffers[0], torture.buffers[2])


_FAIL_MMAP = """
import ctypes, mmap
from support.inject import Injector
injector = Injector("/mmap.")
with injector.counting():
    mmap.mmap(-1, 4096).close()
kinds = [call.kind for call in injector.calls()]
assert "mmap" in kinds and "munmap" in kinds, kinds
number = kinds.index("mmap") + 1
with injector.failing(number):
    try:
        mmap.mmap(-1, 4096)
    except OSError as error:
        assert error.errno == 12
    else:
        raise AssertionError("it did not fail")
    mmap.mmap(-1, 4096).close()
    assert injector.fired == 1
with injector.failing_kind("mmap"):
    for _ in range(2):
        try:
            mmap.mmap(-1, 4096)
        except OSError:
            continue
        raise AssertionError("it did not fail")
assert injector.fired == 2
mmap.mmap(-1, 4096).close()
"""


def test_calls_of_one_object_fail_and_of_no_other() -> None:
    """The preloaded library counts, fails one call or all of a kind, and stops when told to."""
    if not hasattr(sys.modules["mmap"], "__file__"):
        pytest.skip("mmap is built into this interpreter")
    python_ok("-c", _FAIL_MMAP, env=preloaded({}))


def _collected(*arguments: str) -> set[str]:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_the_short_form_and_the_rest_are_everything() -> None:
    """Each mode has its share, and of what is not marked `rest` only modes are left out."""
    files = ("tests/test_lifetime.py", "tests/test_exchanged.py", "tests/test_damaged_stores.py")
    mode = re.compile("|".join(re.escape(str(mode)) for mode in MODES))
    everything, some = _collected(*files), _collected(*files, "--short")
    there = {str(mode) for mode in MODES if mode.missing() is None}
    tests, of_some = ({mode.sub("", test) for test in which} for which in (everything, some))
    assert of_some < tests and len(tests - of_some) == 1, tests - of_some
    assert {test for test in everything - some if not mode.search(test)} == tests - of_some
    assert there <= {found[0] for test in some if (found := mode.search(test))}
    assert _collected(*files, "--rest") == everything - some


def test_each_test_is_in_one_half() -> None:
    """What must not run beside itself is all in one."""
    halves = [short.half_of(file.stem) for file in Path(__file__).parent.glob("test_*.py")]
    assert set(halves) == {1, 2}
    assert {short.half_of(module) for module in short.ONE_AT_A_TIME} == {1}


def test_what_the_short_form_names_is_there() -> None:
    """Modules that were renamed are not left in its lists."""
    there = {file.stem for file in Path(__file__).parent.glob("test_*.py")}
    assert there >= short.ONE_AT_A_TIME | short.IN_TWO_MODES


@pytest.mark.parametrize("own", ["a", "not among them"])
def test_the_short_form_takes_two_modes(own: str) -> None:
    """The machine's own one and another, or two others; all there are where they are few."""
    chosen = [short.modes_of(f"test_{i}", "abcd", own) for i in range(100)]
    assert all(len(modes) == 2 and (own in modes or own not in "abcd") for modes in chosen)
    assert set().union(*chosen) == set("abcd")
    assert short.modes_of("test", ["b"], own) == {"b"}
    assert short.modes_of("test", [own], own) == {own}
    ones = [short.modes_of(f"test_{i}", "abcd", own, count=1) for i in range(100)]
    assert all(len(one) == 1 and one < two for one, two in zip(ones, chosen, strict=True))
    assert set().union(*ones) == set("abcd")
    assert short.modes_of("test", ["b"], own, count=1) == {"b"}
