"""Regions end by themselves, before the memory under them goes; engines end safely."""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import mmap
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

import ksmpy
from ksmpy import KsmpyError, RegionError
from ksmpy.memory.buffers import locate
from support import memory, oracle, procs
from support.background import over_and_over
from support.patience import patience, until

MIB = 1 << 20


def pattern(seed: int, nbytes: int = MIB) -> np.ndarray[Any, Any]:
    """An ordinary array of its own memory."""
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def merged_pair(engine: Any, make: Any) -> tuple[Any, Any]:
    """Two equal buffers, page-congruent, registered and merged."""
    pair = make(), make()
    for each in pair:
        engine.register(each)
    engine.scan(eager=True)
    return pair


def still_there(region: Any) -> bool:
    """Whether memory is mapped at a region's place."""
    return bool(oracle.overlapping(region.address, region.nbytes))


# ---- arrays ------------------------------------------------------------------------------


def test_region_ends_with_its_array(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is released while the memory of the dying array is still there."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(1)))
    region = engine.regions()[0]
    seen = []
    release = engine._core._native.release

    def watch(number: int, *, discard: bool) -> None:
        seen.append((still_there(region), discard))
        release(number, discard=discard)

    monkeypatch.setattr(engine._core._native, "release", watch)
    del first
    assert len(engine.regions()) == 1
    assert seen == [(True, True)]
    assert region._released
    assert engine.stats().pages_sharing == 0
    assert np.array_equal(second, pattern(1))


@pytest.mark.parametrize("others", [0, 1], ids=["", "behind another"])
def test_a_pass_ends_with_its_last_region(others: int, engine: Any) -> None:
    """Passes whose last region goes while they are in it count, and the next one begins at once."""
    kept = [memory.distinct(8, seed=seed) for seed in range(others)]
    for each in kept:
        engine.register(each)
    for passes in range(6):
        assert engine.stats().full_scans == max(0, passes - 1)
        pages = memory.distinct(64, seed=9)
        region = engine.register(pages)
        result = engine.scan(max_pages=len(kept) * 8 + 10)
        assert (result.full, engine.stats().full_scans) == (passes > 0, passes)
        assert result.scanned + result.skipped >= 10
        region.release()
    assert engine.scan().full == 1
    assert engine.stats().full_scans == 7
    engine._core.check()


def test_the_dead_are_reaped_though_every_pass_loses_its_last_region(engine: Any) -> None:
    """Frames that only a child mapped are freed after it, whatever ends the passes."""
    arrays = merged_pair(engine, lambda: memory.distinct(16))
    child = procs.Child(lambda: None).ready()
    for region in engine.regions():
        region.release()
    assert engine.stats().stale_frames == 16
    child.finish()
    for seed in range(2):
        pages = memory.distinct(64, seed=seed)
        region = engine.register(pages)
        engine.scan(max_pages=10)
        region.release()
    assert engine.stats().stale_frames == 0
    assert np.array_equal(*arrays)
    engine._core.check()


def test_memory_is_intact_when_a_region_ends(auto: Any) -> None:
    """Nothing is done to memory that malloc has back already: the heap survives many deaths."""
    for _ in range(3):
        arrays = [ksmpy.copy(pattern(i % 10, 2 * oracle.PAGE)) for i in range(300)]
        auto.track(arrays, min_bytes=1)
        auto.scan(eager=True)
        del arrays
        assert auto.regions() == ()
        assert all(bytearray(size) is not None for size in range(100, 30_000, 50))


def test_views_keep_the_region(engine: Any) -> None:
    """A view keeps the owner, and so the region; the last view ends it."""
    arr = pattern(2)
    engine.register(arr[100:])
    view = arr[5:9]
    del arr
    assert len(engine.regions()) == 1
    del view
    assert engine.regions() == ()


def test_registered_array_cannot_be_resized(engine: Any) -> None:
    """An array that is registered refuses to move its memory."""
    arr = pattern(3)
    engine.register(arr)
    for refcheck in (True, False):
        with pytest.raises(ValueError, match="resize"):
            arr.resize(4 * MIB, refcheck=refcheck)
    engine.regions()[0].release()
    arr.resize(2 * MIB)


class Saver(np.ndarray[Any, Any]):
    """An array of a class that takes part in garbage collection."""


class Holder:
    """Reads its array when it is collected, in a cycle with itself."""

    def __init__(self, data: Any, seen: list[bytes]) -> None:
        self.data = data
        self.seen = seen
        self.me = self

    def __del__(self) -> None:
        self.seen.append(self.data.tobytes())


@pytest.fixture(params=[True, False], ids=["", "no callbacks"])
def told(engine: Any, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether anybody is told of collections, or the program has taken the callbacks away."""
    callbacks = gc.callbacks[:]
    if not request.param:
        gc.callbacks.clear()
    yield request.param
    gc.callbacks[:] = callbacks


@pytest.mark.parametrize("kind", [np.ndarray, Saver])
def test_finalizer_sees_the_bytes(engine: Any, kind: Any, told: bool) -> None:
    """A finalizer that reads an array which dies in its own cycle reads what was written."""
    # Where malloc puts an array within a page is its own affair: every 16 bytes are the same.
    content = np.tile(np.arange(16, dtype=np.uint8), MIB // 8)

    def make() -> Any:
        arr = np.ndarray.__new__(kind, content.shape, np.uint8)
        arr[:] = content
        return arr

    first, second = merged_pair(engine, make)
    assert engine.stats().pages_sharing > 0
    seen: list[bytes] = []
    Holder(first, seen)
    first = None
    gc.collect()
    assert seen == [content.tobytes()]
    assert len(engine.regions()) == 1
    assert np.array_equal(second, content)


def test_death_during_scans(engine: Any) -> None:
    """Arrays that die in one thread while another scans leave the others' bytes alone."""
    stay = [ksmpy.copy(pattern(5)) for _ in range(3)]
    for arr in stay:
        engine.register(arr)
    with over_and_over(lambda: engine.scan(eager=True).merged):
        for _ in range(50):
            engine.register(ksmpy.copy(pattern(5)))
    assert len(engine.regions()) == 3
    for arr in stay:
        assert np.array_equal(arr, pattern(5))
    engine._core.check()


class Reader(np.ndarray[Any, Any]):
    """Notes its bytes when it dies."""

    seen: ClassVar[list[bytes]] = []

    def __del__(self) -> None:
        self.seen.append(self.tobytes())


def test_its_own_finalizer_sees_the_bytes(engine: Any) -> None:
    """That of the array's class, however its death is noticed."""
    content = np.tile(np.arange(16, dtype=np.uint8), MIB // 8)

    def make() -> Any:
        arr = np.ndarray.__new__(Reader, content.shape, np.uint8)
        arr[:] = content
        return arr

    pair = merged_pair(engine, make)
    assert engine.stats().pages_sharing > 0
    Reader.seen.clear()  # of views that were made on the way
    del pair
    gc.collect()
    assert engine.regions() == ()
    assert Reader.seen == [content.tobytes()] * 2


class Item:
    """What weak references can be made to."""


@pytest.mark.parametrize("kind", [np.ndarray, Saver, Reader])
def test_weak_references_are_trusted_if_they_are_told_in_time(kind: Any) -> None:
    """An array is watched if its callbacks come before its data is freed, else it is held."""
    arr = np.ndarray.__new__(kind, (1,), object)
    arr[0] = Item()
    order: list[str] = []
    kept = (
        weakref.ref(arr, lambda _: order.append("array")),
        weakref.ref(arr[0], lambda _: order.append("data")),
    )
    watched = locate(arr).watched
    del arr
    assert kept and watched == (order == ["array", "data"])


def discards(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What will be said of the bytes at each release from here on."""
    seen: list[bool] = []
    release = engine._core._native.release

    def watch(number: int, *, discard: bool) -> None:
        seen.append(discard)
        release(number, discard=discard)

    monkeypatch.setattr(engine._core._native, "release", watch)
    return seen


def _finalize(arr: Any, call: Any) -> Any:
    return weakref.finalize(arr, call)


def _reference(arr: Any, call: Any) -> Any:
    return weakref.ref(arr, lambda _: call())


def _proxy(arr: Any, call: Any) -> Any:
    return weakref.proxy(arr, lambda _: call())


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("way", [_finalize, _reference, _proxy], ids=lambda each: each.__name__)
def test_callbacks_see_the_bytes(engine: Any, way: Any, first: bool) -> None:
    """Who is told of an array's death, before or after us, may still read its memory."""
    if not locate(pattern(1)).watched:
        pytest.skip("this numpy's arrays are without memory when callbacks come")
    content = np.tile(np.arange(16, dtype=np.uint8), MIB // 8)
    seen: list[bytes] = []

    def watched(arr: Any) -> Any:
        place, nbytes = memory.address_of(arr), arr.nbytes
        return way(arr, lambda: seen.append(ctypes.string_at(place, nbytes)))

    pair = [content.copy() for _ in range(2)]
    kept = watched(pair[0]) if first else None
    for each in pair:
        engine.register(each)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing > 0
    if not first:
        kept = watched(pair[0])
    pair.pop(0)
    assert kept is not None and seen == [content.tobytes()]
    assert len(engine.regions()) == 1
    assert np.array_equal(pair[0], content)


def test_references_that_call_nobody_do_not_keep_bytes(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither plain weak references, nor those of another region of the same array."""
    if not locate(pattern(1)).watched:
        pytest.skip("this numpy's arrays are held")
    seen = discards(engine, monkeypatch)
    arr = pattern(1, 2 * MIB)
    plain = weakref.ref(arr)
    for half in (arr[:MIB], arr[MIB + oracle.PAGE :]):
        engine.register(half)
        del half
    del arr
    assert plain() is None and engine.regions() == () and seen == [True, True]


def test_arrays_of_objects_give_up_their_references(engine: Any) -> None:
    """An array finds the objects that it refers to by its bytes, at its end as well."""
    item = object()
    pair = merged_pair(engine, lambda: np.full(MIB // 8, item))
    assert engine.stats().pages_sharing > 0
    assert sys.getrefcount(item) > MIB // 4
    del pair
    gc.collect()
    assert engine.regions() == () and sys.getrefcount(item) < 10


def test_array_that_is_copied_back_at_its_end(engine: Any) -> None:
    """Who has memory of its own, and another array to which that is copied in the end, ends the
    region when it dies itself, and copies what was written.
    """
    if not locate(pattern(1)).watched:
        pytest.skip("this numpy leaves an error where such an array has a weak reference")
    try:
        from numpy._core import _multiarray_tests as numpys
    except ImportError:
        numpys = pytest.importorskip("numpy.core._multiarray_tests")
    content = np.tile(np.arange(16, dtype=np.uint8), MIB // 8).reshape(-1, 4096)
    target = np.zeros(content.shape, np.uint8).copy(order="F")
    arr = numpys.npy_create_writebackifcopy(target)
    assert arr.flags.owndata and arr.base is target and not locate(arr).owned
    arr[:] = content
    other = content.copy()
    regions = [engine.register(each) for each in (arr, other)]
    engine.scan(eager=True)
    assert engine.stats().pages_sharing > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody has copied it before
        del arr
        gc.collect()
        assert engine.regions() == (regions[1],)
    assert np.array_equal(target, content) and np.array_equal(other, content)


# ---- other owners ------------------------------------------------------------------------


_BASE = 48  # of struct PyArrayObject_fields


def _on_the_memory_of(arr: Any, keeper: object) -> Any:
    """An array on that memory whose base is something else, as libraries in C make them of memory
    that goes when the keeper dies, and of memory that stays.
    """
    view = arr[:]
    base = view.base
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(keeper))
    ctypes.c_void_p.from_address(id(view) + _BASE).value = id(keeper)
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(base))
    assert view.base is keeper and memory.address_of(view) == memory.address_of(arr)
    return view


@pytest.mark.parametrize(
    "keeper",
    [
        lambda: np.zeros(4 * MIB, np.uint8),
        lambda: bytearray(4 * MIB),
        lambda: bytes(4 * MIB),
        lambda: array.array("B", bytes(4 * MIB)),
        lambda: mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    ],
    ids=["numpy", "bytearray", "bytes", "array", "mmap"],
)
def test_memory_that_is_not_its_owners_keeps_its_bytes(engine: Any, keeper: Any) -> None:
    """Some objects keep memory without having it: their end may be somebody else's beginning."""
    mine, others = (memory.distinct(256) for _ in range(2))
    wanted = mine.tobytes()
    view = _on_the_memory_of(mine, keeper())
    region = engine.register(view)
    engine.register(others)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 256
    del view
    gc.collect()
    assert engine.regions() and region._released
    assert mine.tobytes() == others.tobytes() == wanted


def grown(data: bytearray) -> None:
    """Moves its memory."""
    data.extend(bytes(4 * MIB))


def appended(data: array.array[float]) -> None:
    """Moves its memory at some time."""
    for _ in range(100_000):
        data.append(1.0)


def resized(data: Any) -> None:
    """Moves its memory, though there may be views of it."""
    ctypes.resize(data, 8 * MIB)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: bytearray(pattern(6).tobytes()), grown),
        (lambda: array.array("d", pattern(7).tobytes()), appended),
        (lambda: (ctypes.c_char * MIB).from_buffer_copy(pattern(8)), resized),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_owners_may_change_their_memory(engine: Any, make: Any, change: Any) -> None:
    """What is registered may be resized as ever; the region ends, and nothing is written to what
    was given back.
    """
    owners = [make() for _ in range(3)]
    regions = [engine.register(owner) for owner in owners]
    before = [bytes(memoryview(owner).cast("B")[:MIB]) for owner in owners]
    engine.scan(eager=True)
    for owner in owners:
        change(owner)
    fresh = [b"\xaa" * size for size in range(1000, 300_000, 1000)]
    engine.scan(eager=True)
    assert engine.regions() == ()
    assert all(region._released for region in regions)
    assert all(block.count(0xAA) == len(block) for block in fresh)
    assert [bytes(memoryview(owner).cast("B")[:MIB]) for owner in owners] == before
    del fresh
    engine._core.check()


def test_mmap_cannot_be_resized_or_closed(engine: Any) -> None:
    """A merged mapping would grow by what follows in the store: it refuses while registered."""
    data = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region = engine.register(data)
    for change in (data.close, lambda: data.resize(2 * MIB)):
        with pytest.raises(BufferError):
            change()
    region.release()
    data.close()


def test_other_owners_end(engine: Any) -> None:
    """Once nobody holds them their regions end; a weak reference still finds the bytes."""
    data = bytearray(pattern(6).tobytes())
    numbers = array.array("d", pattern(7).tobytes())
    mapped = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    regions = [engine.register(each) for each in (data, numbers, mapped)]
    again = weakref.ref(numbers)
    assert len(engine.regions()) == 3
    del data, numbers, mapped
    gc.collect()
    assert engine.regions() == ()
    assert all(region._released for region in regions)
    assert again() is None and not still_there(regions[2])


def test_array_whose_data_is_exchanged(engine: Any) -> None:
    """An array that has lost its memory to somebody else takes nothing from that at its end."""
    one, two = merged_pair(engine, lambda: ksmpy.copy(pattern(9)))
    mine = pattern(9)
    life = engine.register(mine)._lifetime
    assert life.discard
    # As C code does that steals an array's memory (NPY_ARRAY_OWNDATA is cleared).
    flags = ctypes.c_int.from_address(id(mine) + 64)
    flags.value &= ~4
    assert not life.discard
    flags.value |= 4
    assert life.discard
    # As C code does that will have its bytes copied to another array (NPY_ARRAY_WRITEBACKIFCOPY).
    base = ctypes.c_void_p.from_address(id(mine) + _BASE)
    base.value = id(one)
    assert not life.discard
    base.value = None
    assert np.array_equal(one, two)


def test_bytes_may_be_registered(engine: Any) -> None:
    """Read-only objects are merged like any other; what matters is the memory."""
    first, second = pattern(8).tobytes(), bytearray(pattern(8).tobytes())
    engine.register(first)
    engine.register(second)
    engine.scan(eager=True)
    assert first == bytes(second)
    engine.regions()[0].release()
    assert first == bytes(second)


def test_mmap_cannot_be_closed_and_ends(engine: Any) -> None:
    """A registered mapping refuses to be closed; abandoned, it is unmapped."""
    data = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region = engine.register(data)
    with pytest.raises(BufferError):
        data.close()
    del data
    gc.collect()
    assert region._released
    assert not still_there(region)


def test_abandoned_buffers_are_noticed_by_the_collector(auto: Any) -> None:
    """A collection of the garbage collector's ends abandoned regions, without any call of ours."""
    region = auto.register(bytearray(MIB))
    gc.collect()
    assert region._released


INTERRUPT = """
import gc, signal, time
import ksmpy
class Interrupted(Exception):
    pass
def interrupt(*_):
    raise Interrupted
engine = ksmpy.Engine()
engine.register(bytearray(1 << 20))
much = [[number] for number in range(200_000)]  # some 10 ms to look through
signal.signal(signal.SIGALRM, interrupt)
for _ in range(10):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        gc.collect()
        time.sleep(PATIENCE)
    except Interrupted:
        continue
    raise SystemExit("an interrupt was lost")
"""


def test_an_interrupt_during_a_collection_arrives() -> None:
    """Ctrl-C, or a timeout, that comes while the garbage collector is at work is not lost in a
    callback of ours. In a process where nobody else has one.
    """
    done = procs.python("-c", INTERRUPT.replace("PATIENCE", str(patience(10))))
    assert (done.returncode, done.stderr) == (0, "")


TRACED = """
import gc, sys
import ksmpy
from ksmpy.engine import registry
live, collected, seen = registry.live, [], []

def collect_again():
    if not collected:
        collected.append(None)
        gc.collect()
    return live()

def trace(frame, *_):
    if "registry" in frame.f_code.co_filename:
        seen.append(frame.f_code.co_name)

engine = ksmpy.Engine()
registry.live = collect_again
sys.WAY(trace)
gc.collect()
for _ in range(100):
    (lambda: None)()
sys.WAY(None)
assert collected
print(seen)
"""


@pytest.mark.parametrize("way", ["settrace", "setprofile"])
def test_a_collection_in_the_midst_of_what_follows_one(way: str) -> None:
    """In a program that is traced, as by coverage. Python 3.11 was kept for ever by a pending call
    that came while another one ran. Nor does the tracer see what is ksmpy's.
    """
    done = procs.python("-c", TRACED.replace("WAY", way), seconds=30)
    without = sys.version_info < (3, 11)  # where tracing cannot be put off
    assert (done.returncode, done.stderr) == (0, "") and (without or done.stdout == "[]\n")


def test_abandoned_buffers_are_noticed_in_any_thread(auto: Any) -> None:
    """By a collection in another thread too, and at once though the main thread waits."""
    region = auto.register(bytearray(MIB))
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert region._released


def test_arrow_table_holds_its_regions(arrow: Any, engine: Any) -> None:
    """The buffers of an Arrow table stay registered as long as the table, and keep their bytes."""
    values = np.arange(MIB)
    tables = [arrow.table({"a": arrow.array(values.tolist())}) for _ in range(2)]
    regions = engine.track(tables)
    assert len(regions) == 2
    engine.scan(eager=True)
    gc.collect()
    assert len(engine.regions()) == 2
    slice_of_it = tables[0].slice(10, 1000)
    del tables
    gc.collect()
    assert engine.regions() == ()
    assert slice_of_it.column(0).to_pylist() == list(range(10, 1010))


@pytest.fixture(scope="module")
def torch() -> Any:
    """PyTorch, kept from starting threads of its own."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


def test_torch_storage_holds_its_region(torch: Any, engine: Any) -> None:
    """A model's parameters are merged, and stay so as long as any tensor uses their storage."""
    models = [torch.nn.Linear(1024, 1000) for _ in range(2)]
    # Where malloc puts a storage within a page is its own affair: every 64 bytes are the same.
    before = torch.arange(16.0).repeat(1000, 64)
    with torch.no_grad():
        for model in models:
            model.weight.copy_(before)
    assert len(engine.track(models)) == 2
    engine.scan(eager=True)
    assert engine.stats().pages_sharing > 1900
    view = models[0].weight.detach()[10:]
    models.pop(0)
    gc.collect()
    assert len(engine.regions()) == 2
    del view
    assert len(engine.regions()) == 1
    assert torch.equal(models[0].weight, before)
    with torch.no_grad():
        models[0].weight += 1
    assert torch.equal(models[0].weight, before + 1)


def test_torch_tensor_of_an_array_takes_nothing_from_it(torch: Any, engine: Any) -> None:
    """A storage on memory of somebody else's ends its region and leaves the bytes."""
    arrays = [pattern(17) for _ in range(2)]
    tensors = [torch.from_numpy(arr) for arr in arrays]
    engine.track(tensors)
    engine.scan(eager=True)
    del tensors
    gc.collect()
    assert engine.regions() == ()
    assert all(np.array_equal(arr, pattern(17)) for arr in arrays)


# ---- release and close -------------------------------------------------------------------


def test_release_keeps_the_bytes(engine: Any) -> None:
    """A released region maps nothing of the store and holds its bytes; twice is a no-op."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(9)))
    region = engine.regions()[0]
    region.release()
    region.release()
    assert not oracle.maps_store(region.address, region.nbytes)
    assert np.array_equal(first, second)
    for call in (region.stats, region.unmerge):
        with pytest.raises(KsmpyError, match="released"):
            call()
    engine.register(first)


def test_close_gives_everything_back(make_engine: Any) -> None:
    """close() unmerges all, is idempotent, and everything afterwards raises KsmpyError."""
    engine = make_engine()
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(10)))
    regions = engine.regions()
    engine.knobs.run = 1
    engine.close()
    engine.close()
    assert engine._core.closed
    for region in regions:
        assert region._released
        assert not oracle.maps_store(region.address, region.nbytes)
        region.release()
    assert np.array_equal(first, second)
    for call in (engine.scan, engine.stats, engine.regions, engine.shares, engine.unmerge):
        with pytest.raises(KsmpyError, match="closed"):
            call()
    with pytest.raises(KsmpyError, match="closed"):
        engine.register(first)
    with pytest.raises(KsmpyError, match="closed"), engine:
        pass


def test_close_while_others_work(make_engine: Any) -> None:
    """close() under scanning, registering threads: they get KsmpyError, nothing is left over."""
    for _ in range(5):
        engine = make_engine()
        data = [ksmpy.copy(pattern(11)) for _ in range(4)]
        errors: list[BaseException] = []

        def work(engine: Any = engine, data: Any = data, errors: Any = errors) -> None:
            try:
                while True:
                    for arr in data:
                        try:
                            engine.register(arr)
                        except RegionError:
                            pass
                    engine.scan(eager=True)
                    engine.stats()
            except KsmpyError as error:
                if "closed" not in str(error):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.05)
        engine.close()
        for thread in threads:
            thread.join()
        assert errors == []
        for arr in data:
            assert not oracle.maps_store(*memory.span(arr))
            assert np.array_equal(arr, pattern(11))


@contextlib.contextmanager
def being_released(region: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While another thread gives its pages back, which takes that thread some time longer."""
    native = region._home._native
    release, begun, go_on = native.release, threading.Event(), threading.Event()

    def slowly(number: int, *, discard: bool) -> None:
        begun.set()
        assert go_on.wait(patience(10))
        release(number, discard=discard)

    monkeypatch.setattr(native, "release", slowly)
    thread = threading.Thread(target=region.release)
    thread.start()
    assert begun.wait(patience(10))
    monkeypatch.setattr(native, "release", release)
    later = threading.Timer(0.05, go_on.set)
    later.start()
    yield
    later.join()
    thread.join()


@pytest.mark.parametrize(
    "take", [lambda engine, data: engine.register(data), lambda engine, data: engine.track(data)[0]]
)
def test_what_another_thread_is_about_to_end_makes_way(
    take: Any, auto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a tensor has moved, and the next one has got its memory: the scanner's thread may
    be the first to notice.
    """
    data = ksmpy.copy(pattern(21))
    with being_released(auto.register_range(*memory.span(data)), monkeypatch):
        region = take(auto, data)
    assert auto.regions() == (region,)
    auto._core.check()


def test_what_another_thread_is_about_to_end_has_ended(
    auto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When release() returns, whoever has called it."""
    first, second = merged_pair(auto, lambda: ksmpy.copy(pattern(22)))
    region, other = auto.regions()
    with being_released(region, monkeypatch):
        region.release()
        assert not oracle.maps_store(region.address, region.nbytes)
    assert auto.regions() == (other,)
    assert np.array_equal(first, second)


def test_many_threads_register_and_release(auto: Any) -> None:
    """Regions that come and go in several threads, and twice, end once each and no other's."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(200):
                data = ksmpy.copy(pattern(seed, 8 * oracle.PAGE))
                region = auto.register(data)
                assert region.stats().rmap_items <= 8
                region.release()
                region.release()
                assert region._released and np.array_equal(data, pattern(seed, 8 * oracle.PAGE))
                auto.register(data)
        except BaseException as error:
            errors.append(error)

    auto.knobs.sleep_millisecs = 0
    auto.knobs.run = 1
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert auto.regions() == ()
    assert auto.stats().registered_pages == 0
    auto._core.check()


def test_forgotten_engine_lives_for_its_regions(mode: Any) -> None:
    """An engine nobody holds stays for its regions, and closes itself with the last of them."""
    engine = ksmpy.Engine(**mode.options)
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(12)))
    native, alive = engine._core._native, weakref.ref(engine._core)
    engine.knobs.run = 1
    del engine
    gc.collect()
    assert alive() is not None
    del first
    gc.collect()
    assert alive() is not None and np.array_equal(second, pattern(12))
    del second
    # What the background thread still holds goes when its batch ends.
    until(lambda: alive() is None and native.closed, "the engine lives on")


def test_forgotten_engine_without_regions(mode: Any) -> None:
    """An engine without regions closes itself when it is forgotten, its thread as well."""
    engine = ksmpy.Engine(**mode.options)
    engine.knobs.run = 1
    native = engine._core._native
    del engine
    until(lambda: native.closed, "the engine lives on")


# ---- fork --------------------------------------------------------------------------------


def test_child_of_fork(engine: Any) -> None:
    """In a forked child the engine is the parent's: no scanning, but bytes, releases, deaths."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(13)))
    engine.knobs.run = 1

    def child() -> None:
        regions = engine._core.all_regions()
        assert engine.knobs.run == 0
        for call in (engine.scan, engine.stats, engine.unmerge, regions[0].stats):
            with pytest.raises(KsmpyError, match="in the child"):
                call()
        with pytest.raises(KsmpyError, match="in the child"):
            engine.knobs.run = 1
        assert np.array_equal(first, pattern(13)) and np.array_equal(second, pattern(13))
        first[0] ^= 1
        regions[0].release()
        assert not oracle.maps_store(regions[0].address, regions[0].nbytes)
        assert first[0] == pattern(13)[0] ^ 1 and np.array_equal(first[1:], second[1:])
        engine.close()
        assert not oracle.maps_store(regions[1].address, regions[1].nbytes)

    procs.in_child(child)
    assert np.array_equal(first, pattern(13)) and np.array_equal(second, pattern(13))
    assert engine.knobs.run == 1


def test_child_makes_an_engine_of_its_own(make_engine: Any) -> None:
    """A child registers inherited memory with an engine of its own, and merges it there."""
    engine = make_engine()
    pair = list(merged_pair(engine, lambda: ksmpy.copy(pattern(14))))

    def child() -> None:
        own = make_engine()
        own.track(pair)
        pair[1][-1] ^= 1
        own.scan(eager=True)
        assert own.stats().pages_sharing == len(pattern(14)) // oracle.PAGE - 1
        assert np.array_equal(pair[0], pattern(14))
        assert np.array_equal(pair[1][:-1], pattern(14)[:-1])
        pair.clear()
        assert own.regions() == ()
        own.close()

    procs.in_child(child)
    assert all(np.array_equal(arr, pattern(14)) for arr in pair)


def test_array_dies_in_the_child(engine: Any) -> None:
    """An inherited array that dies in the child takes nothing from the parent."""
    pair = list(merged_pair(engine, lambda: ksmpy.copy(pattern(15))))

    def child() -> None:
        pair.clear()
        gc.collect()
        assert engine._core.all_regions() == []

    procs.in_child(child)
    assert all(np.array_equal(arr, pattern(15)) for arr in pair)
    assert len(engine.regions()) == 2


# ---- exit --------------------------------------------------------------------------------

EXIT = """
import atexit, numpy, ksmpy
engine = ksmpy.Engine(freeze={freeze!r}, tracking={tracking!r})
arrays = [ksmpy.copy(numpy.arange(1 << 17)) for _ in range(4)]
for arr in arrays:
    engine.register(arr)
engine.knobs.sleep_millisecs = 0
engine.knobs.run = 1
while engine.stats().pages_sharing < 3 * 256:
    pass
print("merged", flush=True)
{after}
"""


@pytest.mark.parametrize("after", ["", "del engine", "raise SystemExit(0)", "engine.close()"])
def test_exit_is_quiet(mode: Any, after: str) -> None:
    """A program ends with merged arrays and a scanning thread as if there were none."""
    program = EXIT.format(freeze=mode.freeze, tracking=mode.tracking, after=after)
    done = procs.python("-X", "dev", "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "merged\n", "")


@pytest.mark.parametrize("begin", ["begin()", "atexit.register(begin)"])
def test_collections_at_the_very_end_are_quiet(begin: str) -> None:
    """A finalizer that collects when our modules are empty already, whenever the engine began."""
    program = f"""
import atexit, gc, os
class Late:
    def __del__(self, collect=gc.collect, write=os.write):
        collect()
        write(1, b"late")
os.late = Late()  # modules are emptied in the order opposite to that of their import
def begin():
    import ksmpy
    global engine
    engine = ksmpy.Engine()
    engine.register(bytearray(1 << 20))
{begin}
"""
    done = procs.python("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "late", "")


def test_os_exit_in_a_child(engine: Any) -> None:
    """A child that ends by os._exit leaves its parent's engine alone."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(16)))
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    engine.scan()
    assert np.array_equal(first, second)
    engine.unmerge()
    assert np.array_equal(first, pattern(16))


# ---- releases that fail --------------------------------------------------------------------


FAILURES = [MemoryError, KeyboardInterrupt, OSError]


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after it"])
@pytest.mark.parametrize("error", FAILURES, ids=lambda e: e.__name__)
def test_a_release_that_fails_forgets_no_region(
    engine: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: bool
) -> None:
    """The engine has the regions that are registered, whatever interrupts: it can be closed."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(1)))
    wanted = second.tobytes()
    region = engine.regions()[0]
    release = engine._core._native.release

    def fail(number: int, *, discard: bool) -> None:
        if after:
            release(number, discard=discard)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine._core._native, "release", fail)
        with pytest.raises(error):
            region.release()
    assert region._released == after
    assert len(engine.regions()) == (1 if after else 2)
    engine.close()
    assert first.tobytes() == second.tobytes() == wanted


def test_an_owner_whose_release_fails_is_tried_again(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the error: the region stays until it could be released, and the engine closes."""
    first, second = merged_pair(engine, lambda: ksmpy.copy(pattern(1)))
    region = engine.regions()[0]

    def fail(number: int, *, discard: bool) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine._core._native, "release", fail)
        del first
        gc.collect()
        assert not region._released
    assert len(engine.regions()) == 1 and region._released
    engine._core.check()
    engine.close()
    assert second.tobytes() == pattern(1).tobytes()
