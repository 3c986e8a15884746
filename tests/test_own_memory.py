"""The engine's own memory: windows, stages and shadows that have to be empty when they are used.

What lies in them would be taken for pages of the owner's. mlockall() fills them and keeps them
full, whoever looks at the process from outside makes the fault thread fill them, and a call that
fails may leave something behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ksmpy
from conftest import EACH_FREEZE, Mode
from support import memory, oracle
from support.build import shared_library
from support.onlooker import read_all_memory
from support.procs import in_child, python_ok
from support.torture import ENOUGH, Torture, duration, lasting

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MIB = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)
pytestmark = pytest.mark.timeout(120 + 4 * duration())
needs_locking = pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock all memory")


def _lock(what: int) -> None:
    """All memory of this process; a child that grows too big by it is the one to be killed."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    assert libc.mlockall(what) == 0, os.strerror(ctypes.get_errno())


def _engine(mode: Mode) -> Any:
    return ksmpy.Engine(**mode.options)  # type: ignore[arg-type]


@needs_locking
@pytest.mark.parametrize("count", [8, 64])
def test_unmerging_while_new_memory_is_locked(count: int, mode: Mode) -> None:
    """The memory that takes an overlay's place was filled with zeros: the bytes come all the same.

    Nothing is merged meanwhile, as each new overlay would be filled with copies, and that is said.
    """

    def child() -> None:
        one = memory.distinct(count)
        two, wanted = memory.twin(one), one.tobytes()
        with _engine(mode) as engine:
            for array in (one, two):
                engine.register(array)
            assert engine.scan(eager=True).merged == 2 * count
            _lock(MCL_FUTURE)
            engine.unmerge()
            assert one.tobytes() == wanted == two.tobytes()
            result = engine.scan(2, eager=True)
            assert result.merged == 0 and result.busy >= count
            libc.munlockall()
            assert engine.scan(2, eager=True).merged == 2 * count
            assert one.tobytes() == wanted == two.tobytes()
            engine._core.check()

    in_child(child)


@needs_locking
@pytest.mark.parametrize(
    ("what", "count"),
    [
        pytest.param(MCL_CURRENT | MCL_ONFAULT, 31, id="onfault"),
        pytest.param(MCL_CURRENT, 192, id="all", marks=pytest.mark.rest),
    ],
)
def test_no_increment_is_lost_once_memory_is_locked(what: int, count: int, mode: Mode) -> None:
    """Of what was frozen before nothing is left where the next pages go."""

    def child() -> None:
        merged = 0
        going_on = lasting(duration() / 2)
        while going_on(merged):
            with _engine(mode) as engine, Torture(efault_ok=mode.efault_ok, count=count) as torture:
                for buffer in torture.buffers:
                    engine.register(buffer)
                merged += engine.scan(eager=True).merged
                _lock(what)
                for _ in range(3):
                    engine.scan(eager=True)
                    engine._core.check()
                libc.munlockall()
                engine.unmerge()
                torture.assert_alive()

    in_child(child, seconds=1.5 * ENOUGH)


@needs_locking
@pytest.mark.parametrize("future", [False, True], ids=["current", "future"])
def test_locking_memory_does_not_fill_the_store(future: bool) -> None:
    """The store has room for frames as big as all memory; what was never one takes none."""

    def child() -> None:
        if future:
            _lock(MCL_FUTURE)
        one = memory.distinct(64)
        wanted = one.tobytes()
        with ksmpy.Engine() as engine:
            if not future:
                for array in (one, memory.twin(one)):
                    engine.register(array)
                engine.scan(eager=True)
            assert _readable_store() <= 16 * MIB
            _lock(MCL_CURRENT)
            assert _store_memory() <= 16 * MIB
            engine.unmerge()
            engine._core.check()
            assert one.tobytes() == wanted
            libc.munlockall()

    in_child(child)


def _readable_store() -> int:
    """Bytes of the store's memory that a lock, or a core dump, would read."""
    pattern = re.compile(r"^(\w+)-(\w+) r.*memfd:ksmpy ", re.MULTILINE)
    maps = Path("/proc/self/maps").read_text()
    return sum(int(end, 16) - int(start, 16) for start, end in pattern.findall(maps))


def _store_memory() -> int:
    """Bytes that the store's file takes."""
    files = [file for file in Path("/proc/self/fd").iterdir() if "memfd:ksmpy " in _target(file)]
    assert files
    return max(file.stat().st_blocks * 512 for file in files)


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


@contextlib.contextmanager
def _onlooker() -> Iterator[None]:
    stop = threading.Event()
    count = 0

    def look() -> None:
        nonlocal count
        while not stop.is_set():
            count += read_all_memory(stop)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert count > 100


@pytest.mark.parametrize("count", [8, 64])
def test_an_onlooker_changes_nothing(count: int, engine: Any) -> None:
    """Another program reads all of our memory between merging and unmerging."""
    one = memory.distinct(count)
    two, wanted = memory.twin(one), one.tobytes()
    for array in (one, two):
        engine.register(array)
    for _ in range(3):
        assert engine.scan(eager=True).merged == 2 * count
        assert read_all_memory() > 100
        engine.unmerge()
        assert one.tobytes() == wanted == two.tobytes()
    assert not oracle.maps_store(*memory.span(one))


def test_no_increment_is_lost_under_an_onlooker(mode: Mode, engine: Any) -> None:
    """It reads all of our memory all the time."""
    merged = 0
    with Torture(efault_ok=mode.efault_ok, count=64) as torture, _onlooker():
        for buffer in torture.buffers:
            engine.register(buffer)
        going_on = lasting(duration() / 2)
        while going_on(merged):
            merged += engine.scan(eager=True).merged
            engine.unmerge()
            engine._core.check()
        torture.assert_alive()


STUBBORN = """
import ctypes
import sys
import ksmpy
from support import memory

stubborn = ctypes.CDLL(None)
stubborn.stubborn_arm.argtypes = [ctypes.c_void_p, ctypes.c_int]
one = memory.distinct(64)
two = memory.twin(one)
with ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2]) as engine:
    for array in (one, two):
        engine.register(array)
    stubborn.stubborn_arm(memory.address_of(one), 66)
    engine.scan(eager=True)
    assert stubborn.stubborn_left() == 0, "the call never failed: this proves nothing"
    assert engine.stats().pages_sharing == 64
    one[100] ^= 1
    wanted = two.copy()
    wanted[100] ^= 1
    engine.unmerge()
    assert (one == wanted).all()
    engine._core.check()
"""


@pytest.mark.parametrize(
    "chosen", [mode for mode in EACH_FREEZE if mode.freeze in ("uffd-move", "uffd-remap")], ids=str
)
def test_a_shadow_keeps_nothing_of_its_region(chosen: Mode) -> None:
    """The page that casts it cannot be moved back for a while, and is copied."""
    if reason := chosen.missing():
        pytest.skip(reason)
    python_ok("-c", STUBBORN, *chosen, env={"LD_PRELOAD": str(shared_library("stubborn"))})
