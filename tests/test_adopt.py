"""Memory that enable() finds by itself: what is taken, what is left and why."""

from __future__ import annotations

import csv
import ctypes
import errno
import gc
import json
import mmap
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import ksmpy
from ksmpy import RegionError, native
from ksmpy.engine.region import Region
from ksmpy.memory import mappings, maps
from ksmpy.memory.objects import named_memory
from ksmpy.whole import adopt
from ksmpy.whole.adopt import Adopter
from support import memory, oracle
from support.background import over_and_over
from support.patience import patience, until
from support.procs import python, python_ok

MIB = 1 << 20
PAGE = oracle.PAGE
WAYS = adopt.WAYS

_libc = ctypes.CDLL(None)


# malloc maps what is larger than 32 MiB by itself, at the same place within a page.
LARGE = 33


def weights(seed: int, mebibytes: int = 4) -> np.ndarray[Any, Any]:
    """An ordinary array of its own memory."""
    return np.random.default_rng(seed).integers(0, 256, mebibytes * MIB, dtype=np.uint8)


def resize(state: dict[str, Any], key: str, nbytes: int) -> None:
    """In place. From Python 3.14 on numpy lets only what a local variable alone has be resized."""
    array = state.pop(key)
    array.resize(nbytes)
    state[key] = array


@pytest.fixture
def looking(auto: Any) -> Any:
    """An engine and a look for all mappings of 1 MiB, taken by hand."""
    if auto.freeze == "signal":
        pytest.skip("no userfaultfd")
    return auto, Adopter(auto._core, MIB, "all")


@pytest.fixture
def choosing(looking: Any) -> Any:
    """The same for mappings of which it is known that their owner does not count on zeros."""
    engine, _ = looking
    return engine, Adopter(engine._core, MIB, "mappings")


def merged(engine: Any, pages: int) -> None:
    """Wait until so many pages are saved."""
    until(lambda: engine.stats().pages_sharing >= pages, ksmpy.coverage, limit=patience(30))


# ---- found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_arrays_in_a_dict(enabled: Any, way: str) -> None:
    """A dict of equal arrays, which the collector does not track, is found, merged and named."""
    holder = [{f"layer{i}": weights(1, LARGE) for i in range(3)}]
    state = holder[0]
    wanted = state["layer0"].copy()
    engine = enabled(adopt=way)
    merged(engine, 2 * len(wanted) // PAGE - 64)
    assert all(np.array_equal(each, wanted) for each in state.values())
    text = str(ksmpy.coverage())
    assert (
        text.startswith("found ")
        and "adopted" in text
        and ksmpy.coverage().adopted_bytes > 98 * MIB
    )
    until(
        lambda: any(region.name.startswith("layer") for region in engine.regions()), engine.regions
    )
    state.clear()
    gc.collect()
    engine.scan(eager=True)
    assert np.array_equal(wanted, weights(1, LARGE))


class Model:
    """Keeps arrays in its attributes."""


class Slotted:
    """Keeps an array in a slot."""

    __slots__ = ("weights",)


def capsule_owned() -> Any:
    """An array whose last owner is a capsule."""
    return np.from_dlpack(weights(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": weights(2)},
        lambda: ((weights(2),),),
        lambda: pickle.loads(pickle.dumps([weights(2)], protocol=2))[0],
        lambda: np.frombuffer(weights(2).tobytes(), np.uint8),
        lambda: np.frombuffer(bytearray(weights(2)), np.uint8),
        lambda: weights(2).tobytes(),
        lambda: bytearray(weights(2)),
        capsule_owned,
        lambda: weights(2).reshape(1024, -1)[:, ::2],
    ],
)
@pytest.mark.parametrize("holder", [dict, list, Model, Slotted])
def test_objects_are_found(make: Any, holder: Any) -> None:
    """Whoever holds an array and whoever owns its memory."""
    held = holder()
    others = [held]  # a dict that only a local variable holds is not found everywhere
    value = make()
    if holder is dict:
        held["weights"] = value
    elif holder is list:
        held.append(value)
    else:
        held.weights = value
    del value
    gc.collect()
    assert any(item.nbytes >= 4 * MIB for item in named_memory(4 * MIB))
    assert others


def test_unpickled_objects_are_found() -> None:
    """An object that comes from a pickle keeps its attributes in a dict of its own."""
    model = Model()
    model.weights = weights(3)  # type: ignore[attr-defined]
    model = pickle.loads(pickle.dumps(model))
    gc.collect()
    address = model.weights.ctypes.data  # type: ignore[attr-defined]
    found = [item for item in named_memory(4 * MIB) if item.address == address]
    # From Python 3.13 on attributes may lie in the object itself, and then have no names; pickle
    # may hold the buffer that it read from.
    assert found and {item.name for item in found} <= {
        "weights",
        "in a Model",
        "in a managedbuffer",
    }


def test_memory_without_an_object_is_found(looking: Any) -> None:
    """What a library allocates is adopted like any other, once two looks have seen it."""
    engine, adopter = looking
    _libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, ctypes.c_size_t(8 * MIB), 3, flags, -1, 0)
    ctypes.memset(address, 1, 8 * MIB)
    try:
        adopter.look(engine._core)
        assert engine.regions() == ()
        adopter.look(engine._core)
        covered = sum(
            min(r.address + r.nbytes, address + 8 * MIB) - max(r.address, address)
            for r in engine._core.overlapping(address, address + 8 * MIB)
        )
        assert covered == 8 * MIB
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(8 * MIB))
    engine.scan(2, eager=True)
    engine.close()


def test_stats_tell_what_was_found(enabled: Any) -> None:
    """`ksmpy stats PID` says from outside what was found, adopted and left."""
    holder = [{"a": weights(1), "b": weights(1)}]
    enabled()
    said: list[str] = []

    def told() -> bool:
        said[:] = [python("-m", "ksmpy", "stats", str(os.getpid())).stdout]
        return "found " in said[0] and "adopted" in said[0] and "left" in said[0]

    until(told, lambda: said[0], limit=patience(30))
    assert holder


# ---- left ----------------------------------------------------------------------------------


def test_what_must_not_be_adopted(looking: Any) -> None:
    """Neither stacks nor the engines' own memory; locked and shared memory is left, and told."""
    engine, adopter = looking
    arr = weights(4)
    engine.register(arr)  # the engine has memory of its own
    twin = arr.copy()
    engine.track(twin)
    engine.scan(eager=True)
    ready, done, frames = threading.Event(), threading.Event(), []

    def wait() -> None:
        local = ctypes.c_int()
        frames.append(ctypes.addressof(local))
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    locked = mmap.mmap(-1, 2 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    locked.write(bytes([7]) * (2 * MIB))
    where = np.frombuffer(locked, np.uint8)
    is_locked = _libc.mlock(ctypes.c_void_p(where.ctypes.data), ctypes.c_size_t(2 * MIB)) == 0
    for _ in range(2):
        adopter.look(engine._core)
    ours = native.own_memory()
    stacks = [(m.start, m.end) for m in oracle.mappings() if m.path == "[stack]"]
    pointers = [
        int(words[-2], 16)
        for task in Path("/proc/self/task").iterdir()
        if len(words := (task / "syscall").read_text().split()) > 2
    ]
    done.set()
    thread.join()
    assert len(engine.regions()) > 2
    for region in engine.regions():
        start, end = region.address, region.address + region.nbytes
        for a, b in [*ours, *stacks]:
            assert end <= a or b <= start, (region, hex(a), hex(b))
        assert not any(start <= pointer < end for pointer in pointers)
    if is_locked:
        address = where.ctypes.data
        assert not any(engine._core.overlapping(address, address + 2 * MIB))
        assert any("mlock" in reason for reason, _ in adopter.coverage.left), adopter.coverage
    assert np.array_equal(arr, twin)
    del where
    engine.close()


def test_untouched_memory_is_left(looking: Any) -> None:
    """A reservation without a page in memory stays without, until it is filled."""
    engine, adopter = looking
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    room = mmap.mmap(-1, 256 * MIB, flags=flags)
    address = np.frombuffer(room, np.uint8).ctypes.data // (64 * MIB) * (64 * MIB) + 64 * MIB
    for _ in range(2):
        adopter.look(engine._core)
    assert not any(engine._core.overlapping(address, address + 64 * MIB))
    assert not mappings.is_in_memory((address, address + 64 * MIB))
    assert dict(adopter.coverage.left)["not in memory"] >= 64 * MIB
    engine.close()
    room.close()


def test_a_reservation_is_adopted_as_far_as_it_is_used(looking: Any) -> None:
    """Of memory that is filled from its start, like malloc's arenas, that part is adopted."""
    engine, adopter = looking
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    room = mmap.mmap(-1, 256 * MIB, flags=flags)
    address = np.frombuffer(room, np.uint8).ctypes.data // (64 * MIB) * (64 * MIB) + 64 * MIB
    ctypes.memset(address, 1, 8 * MIB)
    for _ in range(2):
        adopter.look(engine._core)
    found = list(engine._core.overlapping(address, address + 64 * MIB))
    assert sum(region.nbytes for region in found) == 8 * MIB
    ctypes.memset(address + 8 * MIB, 1, 8 * MIB)
    for _ in range(2):
        adopter.look(engine._core)
    found = list(engine._core.overlapping(address, address + 64 * MIB))
    assert sum(region.nbytes for region in found) == 16 * MIB
    engine.close()
    room.close()


def test_what_is_reserved_and_not_used_costs_nothing() -> None:
    """Programs reserve terabytes: what is in memory is found without a byte for each page."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    room = mmap.mmap(-1, 64 << 30, flags=flags)
    whole = np.frombuffer(room, np.uint8)
    address = whole.ctypes.data
    middle = (address + (40 << 30)) // (8 * MIB) * (8 * MIB)
    ctypes.memset(middle + 6 * MIB, 1, 4 * MIB)
    tracemalloc.start()
    interval = (address, address + len(room))
    found = (middle + 6 * MIB, middle + 10 * MIB)
    here = (middle, middle + 16 * MIB)
    assert list(mappings.pieces([interval])) == [
        (here[0], here[0] + 8 * MIB),
        (here[0] + 8 * MIB, here[1]),
    ]
    assert list(mappings.pieces([found])) == [
        (found[0], found[0] + 2 * MIB),
        (found[1] - 2 * MIB, found[1]),
    ]
    for looked in interval, here:
        parts = mappings.parts_in_memory(looked, MIB)
        assert len(parts) == 1
        assert all(abs(a - b) <= MIB for a, b in zip(parts[0], found, strict=True))
    assert mappings.is_in_memory(here)
    assert not mappings.is_in_memory(interval)
    assert tracemalloc.get_traced_memory()[1] < MIB
    tracemalloc.stop()
    assert list(mappings.pieces([(PAGE, 2 * PAGE)])) == []
    del whole
    room.close()


def test_what_lies_beside_a_stack_is_found() -> None:
    """Of what is near a thread's stack pointer only the mapping around it may be its stack."""
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    until(lambda: _stack_pointer(thread) != 0, "it does not wait")
    page = _stack_pointer(thread) // memory.PAGE * memory.PAGE
    below, around, above = (
        (page - 3 * MIB, page - MIB),
        (page - MIB, page + MIB),
        (page + MIB, page + 3 * MIB),
    )
    try:
        near = sorted(mappings._near_stack_pointers([below, around, above]))
        assert around in near
        assert mappings.subtract([below, above], near) == [below, above]
    finally:
        done.set()
        thread.join()


def _stack_pointer(thread: threading.Thread) -> int:
    words = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    return int(words[-2], 16) if len(words) > 2 else 0


def test_intervals() -> None:
    """Interval arithmetic agrees with sets of numbers."""
    rng = random.Random(1)

    def some(overlap: bool) -> list[tuple[int, int]]:
        found, at = [], 0
        for _ in range(rng.randrange(7)):
            start = rng.randrange(50) if overlap else at + rng.randrange(5)
            at = start + rng.randrange(1, 9)
            found.append((start, at))
        return sorted(found)

    def numbers(intervals: list[tuple[int, int]]) -> set[int]:
        return {number for start, end in intervals for number in range(start, end)}

    for _ in range(5000):
        one, other, holes = some(False), some(False), some(True)
        assert numbers(mappings.subtract(one, holes)) == numbers(one) - numbers(holes)
        assert numbers(mappings.intersect(one, other)) == numbers(one) & numbers(other)


def test_no_look_where_nothing_changed(looking: Any) -> None:
    """A look follows a change of the address space, and nothing else for half a minute."""
    engine, adopter = looking
    until(lambda: not adopter.step(engine._core), lambda: adopter.coverage)
    more = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    until(lambda: adopter.step(engine._core), "the new mapping was not noticed")
    more.close()
    engine.close()


def test_a_look_makes_the_collector_run_no_more_often(looking: Any) -> None:
    """However many mappings there are: in a forked child a full run copies what the fork shares."""
    engine, adopter = looking
    pages = 6000
    shared = np.frombuffer(mmap.mmap(-1, pages * PAGE), np.uint8)
    for page in range(0, pages, 2):
        memory.protect(memory.address_of(shared) + page * PAGE, mmap.PROT_READ)
    adopter.look(engine._core)
    before = gc.get_stats()[0]["collections"]
    for _ in range(10):
        adopter.look(engine._core)
        maps.AddressSpace.read(1 << 64)
    assert gc.get_stats()[0]["collections"] - before < pages // 700


class _Lazy(types.ModuleType):
    """As importlib.util.LazyLoader makes them: a question imports the module."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize("make", [MagicMock, partial(_Lazy, "x"), lambda: None])
def test_what_stands_in_for_a_module_is_not_asked(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test's mock, and a module that would be imported by that."""
    for name in ("numpy", "torch", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, make())
    held = [bytes(4 * MIB)]
    assert any(item.nbytes >= 4 * MIB for item in named_memory(4 * MIB))
    assert held


def test_no_look_while_objects_come_and_go(looking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look leaves would lie between them; but it does not wait for ever."""
    engine, adopter = looking
    made: list[list[object]] = []
    for _ in range(3):
        made.append([object() for _ in range(1_000_000)])
        assert not adopter.step(engine._core)
    monkeypatch.setattr("ksmpy.whole.adopt._MOST_MOVING_SECONDS", 0.0)
    made.clear()
    assert adopter.step(engine._core)
    monkeypatch.undo()
    made.append([object() for _ in range(1_000_000)])
    assert not adopter.step(engine._core)
    until(lambda: adopter.step(engine._core), "a look waits though nothing moves")
    engine.close()


def test_it_looks_again_once_there_are_descriptors(
    looking: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may have all its descriptors in use for a while, and let go of them; and another
    process be stopped with the store's lock.
    """
    engine, adopter = looking
    errors: list[Exception] = [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ksmpy.StoreError(errno.ETIMEDOUT, "its holder is stopped"),
        MemoryError(),
    ]
    real = adopter.look

    def look(engine: Any) -> None:
        if errors:
            raise errors.pop()
        real(engine)

    monkeypatch.setattr(adopter, "look", look)
    held = weights(1, LARGE)
    adopter.start()
    until(lambda: bool(engine.regions()), "nothing is adopted", limit=patience(20))
    adopter.stop()
    assert not errors and held.any()
    assert "not adopted" not in caplog.text


def test_memory_that_comes_and_goes_for_days(looking: Any) -> None:
    """However often memory was lost in one place, it is waited for, and no more than that."""
    engine, adopter = looking
    region = Region.__new__(Region)
    region.address, region.nbytes = 1 << 40, MIB
    for _ in range(2000):
        adopter._adopted = {region}
        adopter._note_losses(engine._core)
    assert adopter._trusted([(1 << 40, (1 << 40) + MIB)], time.monotonic()) == []
    engine.close()


def test_memory_that_comes_and_goes_is_waited_for(looking: Any) -> None:
    """Where memory was lost lately the next is adopted later."""
    engine, adopter = looking

    def seconds_until_adopted() -> float:
        arr = weights(6, 40)
        begin = time.monotonic()

        def adopted() -> bool:
            adopter.look(engine._core)
            return any(engine._core.overlapping(*_whole(arr)))

        until(adopted, lambda: adopter.coverage, limit=patience(30))
        return time.monotonic() - begin

    seconds_until_adopted()
    engine._core.drop_lost()
    assert seconds_until_adopted() > 1
    engine.close()


def _whole(arr: Any) -> tuple[int, int]:
    address, nbytes = memory.span(arr)
    return address, address + nbytes


# ---- nobody notices ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_adopted_arrays_can_be_resized(enabled: Any, way: str) -> None:
    """ndarray.resize and ctypes.resize work in place, and keep the bytes."""
    state: dict[str, Any] = {"a": weights(1, LARGE), "b": weights(1, LARGE)}
    state["c"] = (ctypes.c_char * (LARGE * MIB))()
    holder = [state]
    wanted = state["a"].tobytes()
    state["c"].raw = wanted
    engine = enabled(adopt=way)
    merged(engine, 8000)
    resize(state, "a", 40 * MIB)
    ctypes.resize(state["c"], 40 * MIB)
    assert state["a"][: LARGE * MIB].tobytes() == wanted == state["b"].tobytes()
    assert state["c"].raw[: LARGE * MIB] == wanted
    engine.scan(eager=True)
    assert not state["a"][LARGE * MIB :].any()
    assert holder


def test_looks_take_no_references() -> None:
    """A resize that happens while a look is under way never fails for want of a sole owner."""
    state = {"a": np.zeros(2 * MIB, np.uint8)}
    holder = [state]
    seen = []

    def look() -> None:
        seen.append(sum(item.name == "a" for item in named_memory(MIB)))

    with over_and_over(look):
        for i in range(3000):
            resize(state, "a", 2 * MIB + i % 2 * PAGE)
        until(lambda: len(seen) > 1, "no look")
    assert any(seen) and holder


class Subclass(np.ndarray[Any, Any]):
    """The collector knows its objects, as it does not know numpy's own arrays."""


def test_looks_hinder_nobody_who_makes_a_tuple_or_resizes() -> None:
    """A tuple that is being filled has one owner, and so has an array of a subclass."""
    held = [np.zeros(2 * MIB, np.uint8)]
    state: dict[str, Any] = {"a": Subclass((2 * MIB,), np.uint8)}
    looks = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            if number == 5:
                look = named_memory(MIB)
                looks.append((next(look), look))  # it is under way from now on
            yield number

    assert tuple(numbers()) == tuple(range(40))
    resize(state, "a", 3 * MIB)
    assert state["a"].nbytes == 3 * MIB
    found = {looks[0][0].address, *(item.address for item in looks[0][1])}
    assert held[0].ctypes.data in found


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("collected", [False, True])
def test_looks_keep_no_file_open(tmp_path: Path, collected: bool) -> None:
    """json.dump(x, open(path, "w")) has written all when it returns, also while a look is under way
    among many objects, and however old the file is; so has a writer that was made lately.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    array = np.zeros(2 * MIB, np.uint8)
    held = [[array] for _ in range(60_000)]
    files = [one.open("w")]
    gc.collect()
    held += [[array] for _ in range(60_000)]
    writers = [csv.writer(two.open("w"))]
    if collected:
        gc.collect()
    look = named_memory(MIB)
    assert next(look).address == array.ctypes.data
    json.dump([1, 2], files.pop())
    writers.pop().writerow("ab")
    assert one.read_text() == "[1, 2]"
    assert two.read_bytes() == b"a,b\r\n"
    look.close()
    assert len(held) == 120_000


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_looks_keep_no_file_open_that_a_variable_has(tmp_path: Path) -> None:
    """A function's file is written when the function is over, also while a look is under way."""
    path = tmp_path / "file"
    opened, may_end = threading.Event(), threading.Event()
    held = [np.zeros(2 * MIB, np.uint8)]

    def write() -> None:
        file = path.open("w")
        file.write("ab")
        opened.set()
        may_end.wait()

    thread = threading.Thread(target=write)
    thread.start()
    opened.wait()
    look = named_memory(MIB)
    next(look)
    may_end.set()
    thread.join()
    assert path.read_text() == "ab"
    look.close()
    assert held


def test_what_tuples_hold_is_found() -> None:
    """Also of one that nothing but a local variable holds."""
    held = ([np.zeros(2 * MIB, np.uint8)], np.zeros(2 * MIB, np.uint8))
    found = {item.address for item in named_memory(MIB)}
    assert {held[0][0].ctypes.data, held[1].ctypes.data} <= found


def test_adopted_memory_gives_way(looking: Any) -> None:
    """What the program registers, with any engine, takes the place of what was found."""
    engine, adopter = looking
    arr = weights(7, 8)
    for _ in range(2):
        adopter.look(engine._core)
    assert all(region._adopted for region in engine._core.overlapping(*_whole(arr)))
    region = engine.register(arr[: 4 * MIB], name="mine")
    assert (region.name, region._adopted) == ("mine", False)
    with ksmpy.Engine() as other, pytest.raises(RegionError, match="mine"):
        other.register(arr[MIB : 2 * MIB])
    with ksmpy.Engine() as other:
        other.register(arr[4 * MIB :])
        for _ in range(2):
            adopter.look(engine._core)
        assert len(other.regions()) == 1
    assert np.array_equal(arr, weights(7, 8))
    engine.close()


# ---- register_range ------------------------------------------------------------------------


def test_register_range(engine: Any) -> None:
    """Memory known by its address is merged in place, under its name, and keeps its bytes."""
    one, two = memory.distinct(64), memory.distinct(64)
    regions = [
        engine.register_range(memory.address_of(each), each.nbytes, name=name)
        for each, name in ((one, "one"), (two, None))
    ]
    assert regions[0].name == "one" and not regions[0]._adopted
    assert hex(memory.address_of(two)) in regions[1].name
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 63  # not the last page
    one[0] ^= 1
    assert one[0] != two[0] and np.array_equal(one[1:], two[1:])
    for region in regions:
        region.release()
    assert np.array_equal(two, memory.distinct(64))


class Owner:
    """Takes weak references."""


def test_register_range_ends_with_its_owner(engine: Any) -> None:
    """The owner's death ends the region; what is written to the memory then is there."""
    one, two = memory.distinct(64), memory.distinct(64)
    owner = Owner()
    region = engine.register_range(memory.address_of(one), one.nbytes, owner=owner)
    engine.register(two)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 63
    del owner
    gc.collect()
    assert region._released
    assert np.array_equal(one, two)


def test_bad_ranges(engine: Any) -> None:
    """Each is refused with the name of the thing, and nothing is left registered."""
    arr = memory.distinct(8)
    address = memory.address_of(arr)
    file = mmap.mmap(-1, 8 * PAGE)  # shared
    shared = np.frombuffer(file, np.uint8)
    for start, nbytes, words in (
        (address, 0, "'thing' is empty"),
        (address + 1, PAGE, "'thing' .* no whole"),
        (-1, PAGE, "thing .* no range"),
        (2**64 - PAGE, 2 * PAGE, "thing .* no range"),
        (PAGE, PAGE, "'thing' .* not mapped"),
        (memory.address_of(shared), shared.nbytes, "'thing' .* shared"),
    ):
        with pytest.raises(RegionError, match=words):
            engine.register_range(start, nbytes, name="thing")
    for bad in ("1", 1.5, None):
        with pytest.raises(TypeError):
            engine.register_range(bad, PAGE)
    with pytest.raises(TypeError, match="weak"):
        engine.register_range(address, arr.nbytes, owner=3)
    assert engine.regions() == ()
    engine.register_range(address, arr.nbytes)
    with pytest.raises(RegionError, match="'thing' overlaps"):
        engine.register_range(address, arr.nbytes, name="thing")
    del shared


def test_words_for_adopt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another word is a ValueError, and leaves nothing enabled; KSMPY_ADOPT takes the same."""
    with pytest.raises(ValueError, match="mappings, objects, all or False"):
        ksmpy.enable(adopt="everything")
    for word in ("0", "objects", "mappings", "all"):
        monkeypatch.setenv("KSMPY_ADOPT", word)
        ksmpy.enable(run=0)
        ksmpy.disable()
    monkeypatch.setenv("KSMPY_ADOPT", "everything")
    with pytest.raises(ValueError, match="KSMPY_ADOPT"):
        ksmpy.enable()


@pytest.mark.parametrize(
    ("function", "name"), [("mallctl", "jemalloc"), ("__asan_init", "sanitizer")]
)
def test_nothing_is_adopted_where_malloc_is_another(
    function: str, name: str, tmp_path: Path
) -> None:
    """Jemalloc and sanitizers are known by a function: a library that has it is preloaded here."""
    source, library = tmp_path / "fake.c", tmp_path / "fake.so"
    source.write_text(f"int {function}(void) {{ return 0; }}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    code = """
import ksmpy
from ksmpy.whole import enable as enabling
engine = ksmpy.enable()
assert engine is not None and enabling._state.adopter is None
ksmpy.disable()
"""
    said = python("-c", code, env={"LD_PRELOAD": str(library)})
    assert said.returncode == 0 and name in said.stderr, said
    plain = python("-c", code.replace("is None\n", "is not None\n", 1))
    assert plain.returncode == 0, plain.stderr


# ---- whose memory it is --------------------------------------------------------------------


def mapping(nbytes: int) -> int:
    """Memory that nobody tells anything of, filled; side by side with what was mapped last."""
    _libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, ctypes.c_size_t(nbytes), 3, flags, -1, 0)
    ctypes.memset(address, 7, nbytes)
    return int(address)


def unmap(address: int, nbytes: int) -> None:
    """Its end."""
    assert _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes)) == 0


def block(nbytes: int, alignment: int = 16) -> int:
    """Memory from malloc or memalign, filled."""
    _libc.memalign.restype = ctypes.c_void_p
    address = _libc.memalign(ctypes.c_size_t(alignment), ctypes.c_size_t(nbytes))
    ctypes.memset(address, 7, nbytes)
    return int(address)


def free(address: int) -> None:
    """Give it back to malloc."""
    _libc.free(ctypes.c_void_p(address))


def covered(engine: Any, start: int, nbytes: int) -> int:
    """Bytes of whole pages of it that are registered."""
    start, end = -(-start // PAGE) * PAGE, (start + nbytes) // PAGE * PAGE
    regions = engine._core.overlapping(start, end)
    return sum(min(r.address + r.nbytes, end) - max(r.address, start) for r in regions)


@pytest.mark.parametrize("alignment", [16, 64, PAGE, 2 * MIB])
def test_blocks_of_malloc_are_adopted_and_nothing_beside_them(
    choosing: Any, alignment: int
) -> None:
    """Foreign memory that lies in one mapping with blocks of malloc's is left, and told."""
    engine, adopter = choosing
    nbytes = 40 * MIB
    blocks, foreign = [], []
    for _ in range(3):
        blocks.append(block(nbytes, alignment))
        foreign.append(mapping(2 * MIB))
        blocks.append(block(nbytes, alignment))
    try:
        whole = [((each + nbytes) // PAGE - -(-each // PAGE)) * PAGE for each in blocks]

        def all_adopted() -> bool:
            adopter.look(engine._core)
            return [covered(engine, address, nbytes) for address in blocks] == whole

        until(
            all_adopted,
            lambda: (whole, blocks, engine.regions(), adopter.coverage, native.own_memory()),
        )
        for address in foreign:
            assert covered(engine, address, 2 * MIB) == 0
        assert dict(adopter.coverage.left)[mappings.UNKNOWN] >= 6 * MIB
        assert any(region.name.startswith("malloc-") for region in engine.regions())
        # Merged pages are mappings of a file: the walk goes on behind them.
        engine.scan(2, eager=True)
        free(blocks.pop())
        blocks.append(block(2 * nbytes, alignment))
        for _ in range(2):
            adopter.look(engine._core)
        for address in foreign:
            assert covered(engine, address, 2 * MIB) == 0
    finally:
        engine.close()
        for address in blocks:
            free(address)
        for address in foreign:
            unmap(address, 2 * MIB)


def test_words_like_those_of_malloc(choosing: Any) -> None:
    """In the middle of foreign memory nothing is taken for a block for two words' sake."""
    engine, adopter = choosing
    address = mapping(16 * MIB)
    (ctypes.c_uint64 * 2).from_address(address + 4 * MIB)[:] = (0, 8 * MIB | 2)
    try:
        for _ in range(2):
            adopter.look(engine._core)
        assert covered(engine, address, 16 * MIB) == 0
    finally:
        engine.close()
        unmap(address, 16 * MIB)


def test_a_block_between_a_stack_and_the_engines_memory_is_malloc_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that adjoins it is malloc's or an arena, as where the first block of a program that
    forked lies between a thread's stack and the records of the engine.
    """
    whole = 27 * MIB
    address = mapping(whole)
    stack, block_bytes, own = 8 * MIB, 16 * MIB + PAGE, address + 24 * MIB + PAGE
    try:
        # memalign(64, 16 MiB): two headers, the first one as malloc() has made it.
        words = ctypes.c_uint64 * 2
        words.from_address(address + stack)[:] = (0, block_bytes | 2)
        words.from_address(address + stack + 0x30)[:] = (0x30, block_bytes - 0x30 | 2)
        monkeypatch.setattr(native, "own_memory", lambda: [(own, own + MIB)])
        found = mappings.survey(MIB, [], every=False)
        here = [(address, address + whole)]
        assert mappings.intersect(found.malloced, here) == [(address + stack, own)]
        monkeypatch.undo()
        found = mappings.survey(MIB, [], every=False)
        assert mappings.intersect(found.malloced, here) == []
    finally:
        unmap(address, whole)


def test_a_block_between_a_stack_and_foreign_memory_is_malloc_s() -> None:
    """As where a thread's stack came to lie below the only block."""
    whole = 30 * MIB
    address = mapping(whole)
    start = mappings._stack_end(address + PAGE, address + whole)
    size = 16 * MIB + PAGE
    try:
        (ctypes.c_uint64 * 2).from_address(start)[:] = (0, size | 2)
        here = [(address, address + whole)]
        found = mappings.survey(MIB, [], every=False)
        assert mappings.intersect(found.malloced, here) == [], "there is no stack below it"
        assert _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0) == 0
        found = mappings.survey(MIB, [], every=False)
        assert mappings.intersect(found.malloced, here) == [(start, start + size)]
        assert mappings.intersect(found.free, here) == [(start, start + size)]
    finally:
        unmap(address, whole)


def test_heaps_of_malloc_are_adopted(choosing: Any) -> None:
    """What malloc has from brk(), and what it has for the arena of a thread."""
    engine, adopter = choosing
    each = 100_000  # too small for a mapping of its own
    mine = [block(each) for _ in range(100)]
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.extend(block(each) for _ in range(100)))
    thread.start()
    thread.join()
    try:
        for _ in range(2):
            adopter.look(engine._core)
        for blocks in (mine, other):
            assert sum(covered(engine, address, each) for address in blocks) > 80 * each, blocks
        heap = next(m for m in oracle.mappings() if m.path == "[heap]")
        assert any(heap.start <= address < heap.start + (1 << 32) for address in mine)
    finally:
        engine.close()
        for address in (*mine, *other):
            free(address)


def test_foreign_memory_is_adopted_where_an_object_has_it(choosing: Any) -> None:
    """As long as the object does: what its allocator does afterwards is not for us."""
    engine, adopter = choosing
    state = {"mapped": np.frombuffer(mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE), np.uint8)}
    holder = [state]
    state["mapped"].fill(3)
    address = memory.address_of(state["mapped"])
    foreign = mapping(8 * MIB)
    try:
        for _ in range(2):
            adopter.look(engine._core)
        assert covered(engine, address, 8 * MIB) == 8 * MIB
        assert covered(engine, foreign, 8 * MIB) == 0
        assert "mapped" in {region.name for region in engine.regions()}
        kept = state.pop("mapped").base
        adopter.look(engine._core)
        assert covered(engine, address, 8 * MIB) == 0
        assert holder and kept
    finally:
        engine.close()
        unmap(foreign, 8 * MIB)


def test_a_forked_child_copies_no_objects_for_a_little_memory() -> None:
    """A look at Python's objects takes references, and so copies what the fork has shared: only for
    memory that is worth it.
    """
    code = """
import mmap, os, sys
import numpy as np
import ksmpy
from ksmpy import proc
from ksmpy.memory import mappings
from ksmpy.whole.adopt import Adopter
from support.procs import in_child
MIB = 1 << 20
objects = [[i, str(i)] for i in range(400_000)]
memory = mmap.mmap(-1, 192 * MIB, flags=mmap.MAP_PRIVATE)
def mapped(begin, mebibytes):
    arr = np.frombuffer(memory, np.uint8, mebibytes * MIB, begin * MIB)
    arr.fill(3)
    return [{"mapped": arr}]
def private():
    return proc.rollup()["Private_Dirty"]
little = mapped(16, 8)  # not at the beginning, which may lie behind a guard page
def look(held, is_asked):
    with ksmpy.Engine() as engine:
        adopter = Adopter(engine._core, MIB, "mappings")
        before = private()
        for _ in range(3):
            adopter.look(engine._core)
        arr = held[0]["mapped"]
        at = arr.ctypes.data
        there = any(r.address <= at < r.address + r.nbytes for r in engine._core.all_regions())
        assert there == is_asked, (there, adopter.coverage)
        return private() - before
def child():
    assert proc.is_forked()
    taken = look(little, False)
    assert taken < 16 * MIB, taken
    look(mapped(32, 128), True)
in_child(child)
assert not proc.is_forked()
look(little, True)
"""
    python_ok("-c", code)


def test_memory_that_took_the_place_of_adopted_memory_merges(choosing: Any) -> None:
    """A block that is given back and taken anew at the same place, before a pass comes by: its
    region ends, and the new one merges. Of the others none does.
    """
    engine, adopter = choosing
    nbytes = 40 * MIB
    blocks = [block(nbytes) for _ in range(2)]
    middle = (blocks[0] + 16 * MIB) // PAGE * PAGE
    try:
        for _ in range(2):
            adopter.look(engine._core)
        engine.scan(2, eager=True)
        others = set(engine._core.overlapping(middle, middle + 8 * MIB))
        # The kernel gives the same place again, but for what others map meanwhile.
        place = blocks[1] // PAGE * PAGE
        header = (ctypes.c_uint64 * 2).from_address(place)
        told = tuple(header)  # how large the block is, in the words of this glibc
        free(blocks.pop())
        _libc.mmap.restype = ctypes.c_void_p
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE
        where, size = ctypes.c_void_p(place), ctypes.c_size_t(nbytes + PAGE)
        assert _libc.mmap(where, size, 3, flags, -1, 0) == place
        ctypes.memset(place, 7, nbytes + PAGE)
        header[:] = told
        blocks.append(place + 16)

        def merges() -> bool:
            adopter.look(engine._core)
            engine.scan(2, eager=True)
            regions = engine._core.overlapping(place, place + nbytes)
            return sum(region.stats().merging_pages for region in regions) > nbytes // PAGE - 64

        until(merges, lambda: (adopter.coverage, engine.stats()), limit=patience(60))
        assert others and others <= set(engine.regions())
    finally:
        engine.close()
        for address in blocks:
            free(address)


# Never gives anything back; what it maps begins as glibc's blocks do.
ANOTHER_MALLOC = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
static uint8_t room[256 << 20];
static _Atomic size_t used;
static void *take(size_t alignment, size_t bytes)
{
    uint8_t *at;
    if (bytes >= 1 << 20) {
        size_t whole = (bytes + 2 * alignment + 8191) / 4096 * 4096;
        at = mmap(0, whole, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return 0;
        ((uint64_t *)at)[1] = whole | 2;
    } else {
        at = room + atomic_fetch_add(&used, bytes + 2 * alignment + 64);
        if (at + bytes + 2 * alignment + 64 > room + sizeof room)
            return 0;
    }
    at = (uint8_t *)(((uintptr_t)at + 32 + alignment - 1) & -alignment);
    memcpy(at - 8, &bytes, 8);
    return at;
}
void *malloc(size_t bytes) { return take(16, bytes); }
void *calloc(size_t n, size_t bytes) { return take(16, n * bytes); }
void free(void *at) { (void)at; }
void *memalign(size_t alignment, size_t bytes)
{
    return take(alignment < 16 ? 16 : alignment, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void **out, size_t alignment, size_t bytes)
{
    return (*out = memalign(alignment, bytes)) ? 0 : ENOMEM;
}
size_t malloc_usable_size(void *at) { return at ? ((size_t *)at)[-1] : 0; }
void *realloc(void *at, size_t bytes)
{
    size_t old = malloc_usable_size(at);
    void *to = take(16, bytes);
    return at && to ? memcpy(to, at, old < bytes ? old : bytes) : to;
}
"""


def test_another_malloc_is_not_known(tmp_path: Path) -> None:
    """Where malloc is not glibc's own, no mapping is taken for a block of its."""
    source, library = tmp_path / "another.c", tmp_path / "another.so"
    source.write_text(ANOTHER_MALLOC)
    subprocess.run(
        ["cc", "-O1", "-fno-builtin", "-shared", "-fPIC", "-o", library, source],
        check=True,
        timeout=60,
    )
    code = """
import ctypes
from ksmpy import native
from ksmpy.memory import mappings
blocks = [ctypes.CDLL(None)["malloc"] for _ in range(3)]
for i, malloc in enumerate(blocks):
    malloc.restype = ctypes.c_void_p
    blocks[i] = malloc(ctypes.c_size_t(8 << 20))
    ctypes.memset(blocks[i], 1, 8 << 20)
found = mappings.survey(1 << 20, [], every=False)
print(len(found.malloced), sum(map(mappings.size, found.unknown)) >= 24 << 20)
"""
    said = python("-c", code, env={"LD_PRELOAD": str(library)})
    assert (said.returncode, said.stdout.split()) == (0, ["0", "True"]), said
    plain = python("-c", code)
    assert plain.returncode == 0 and plain.stdout.split()[1] == "False", plain


def test_looks_beside_busy_allocators(choosing: Any) -> None:
    """Blocks and foreign memory that come and go while looks read them: nobody is hurt, and no
    foreign memory is adopted.
    """
    engine, adopter = choosing
    stop, wrong = threading.Event(), []
    foreign = mapping(4 * MIB)

    def churn(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            nbytes = rng.randrange(1, 5) * MIB
            mine, alien = block(nbytes, rng.choice([16, 64, PAGE])), mapping(nbytes)
            _libc.realloc.restype = ctypes.c_void_p
            mine = _libc.realloc(ctypes.c_void_p(mine), ctypes.c_size_t(rng.randrange(1, 5) * MIB))
            unmap(alien, nbytes)
            free(mine)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            adopter.look(engine._core)
            wrong.append(covered(engine, foreign, 4 * MIB))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        engine.close()
        unmap(foreign, 4 * MIB)
    assert not any(wrong)
