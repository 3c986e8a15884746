"""What cannot be merged is refused with a reason; what changes behind the engine is survived."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import ksmpy
from conftest import MakeEngine, Mode
from support import memory, oracle
from support.knobs import refused
from support.libc import libc
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(60)

RW = mmap.PROT_READ | mmap.PROT_WRITE
ANON = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED, MAP_HUGETLB, FAILED = 0x10, 0x40000, 2**64 - 1
MAYMOVE_FIXED = 3
MADV_PAGEOUT = 21


class Raw:
    """Memory straight from mmap(2), seen through ctypes: nobody frees it but the test."""

    def __init__(self, count: int, *, prot: int = RW, flags: int = ANON) -> None:
        self.nbytes = count * PAGE
        self.address = libc.mmap(None, self.nbytes, prot, flags, -1, 0)
        assert self.address != FAILED, os.strerror(ctypes.get_errno())
        self.array = np.ctypeslib.as_array(
            (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        )

    def unmap(self, first: int = 0, count: int | None = None) -> None:
        """Unmap some pages behind everybody's back."""
        size = self.nbytes - first * PAGE if count is None else count * PAGE
        assert libc.munmap(self.address + first * PAGE, size) == 0

    def map_again(self, first: int, count: int, fd: int = -1) -> None:
        """Put something else where pages of this were."""
        flags = (ANON if fd < 0 else mmap.MAP_SHARED) | MAP_FIXED
        at = self.address + first * PAGE
        assert libc.mmap(at, count * PAGE, RW, flags, fd, 0) == at


def _refused(engine: Any, buffer: Any, *words: str) -> None:
    with pytest.raises(ksmpy.RegionError) as caught:
        engine.register(buffer)
    message = str(caught.value)
    del caught
    gc.collect()  # the traceback holds the buffer
    assert any(word in message for word in words), message
    assert engine.regions() == ()
    engine._core.check()


# ---- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [b"", bytearray(), np.empty(0), memoryview(b"")])
def test_empty(auto: Any, empty: Any) -> None:
    """An empty buffer has no page."""
    _refused(auto, empty, "empty")


def test_smaller_than_a_page(auto: Any) -> None:
    """Less than a page, or two halves of pages: there is nothing to merge."""
    _refused(auto, bytearray(100), "page")
    _refused(auto, memory.pages(2)[10 : 2 * PAGE - 10], "page")


def test_not_a_buffer(auto: Any) -> None:
    """Objects without memory of their own are a TypeError, as everywhere in Python."""
    for thing in (None, 1, "text", object(), [1, 2]):
        with pytest.raises(TypeError):
            auto.register(thing)


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a.reshape(8, -1)[:, :4096], lambda a: a[::-1]],
    ids=["strided", "columns", "reversed"],
)
def test_not_contiguous(auto: Any, view: Callable[[Any], Any]) -> None:
    """Memory with gaps in it is somebody else's too."""
    backing = memory.pages(16)
    strange = view(backing)
    if strange.flags.c_contiguous or strange.flags.f_contiguous:
        pytest.skip("numpy made it contiguous")
    _refused(auto, strange, "contiguous")


def test_file_backed_mapping(auto: Any, tmp_path: Path) -> None:
    """A private mapping of a file, and a shared one, belong to the page cache."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    with path.open("r+b") as file:
        for access in (mmap.ACCESS_WRITE, mmap.ACCESS_COPY, mmap.ACCESS_READ):
            mapped = mmap.mmap(file.fileno(), 0, access=access)
            _refused(auto, mapped, "file", "shared", "read")
            mapped.close()


def test_shared_anonymous_mapping(auto: Any) -> None:
    """Shared memory is written by others, and must stay shared."""
    shared = mmap.mmap(-1, 8 * PAGE)
    _refused(auto, shared, "shared", "file")
    shared.close()


def test_protected_mapping(auto: Any) -> None:
    """Memory mapped without PROT_WRITE, or without any right, is refused."""
    raw = Raw(8, prot=mmap.PROT_READ)
    _refused(auto, raw.array, "writable", "rw-")
    assert libc.mprotect(raw.address, raw.nbytes, 0) == 0
    _refused(auto, raw.array, "writable", "rw-")
    raw.unmap()


def test_partly_protected_mapping(auto: Any) -> None:
    """One bad page is enough."""
    raw = Raw(8)
    assert libc.mprotect(raw.address + 4 * PAGE, PAGE, mmap.PROT_READ) == 0
    _refused(auto, raw.array, "writable", "rw-")
    raw.unmap()


def test_partly_unmapped(auto: Any) -> None:
    """A buffer with a hole in it is refused."""
    raw = Raw(8)
    raw.unmap(3, 1)
    _refused(auto, raw.array, "mapped")
    raw.unmap(0, 3)
    raw.unmap(4)


def test_hugetlb(auto: Any) -> None:
    """Huge pages of hugetlbfs cannot be taken apart."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    try:
        pool.write_text("2")
        size = 2 << 20
        address = libc.mmap(None, size, RW, ANON | MAP_HUGETLB, -1, 0)
        if address == FAILED:
            pytest.skip("no huge pages to be had")
        huge = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        _refused(auto, huge, "huge")
        assert libc.munmap(address, size) == 0
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    finally:
        if os.access(pool, os.W_OK):
            pool.write_text(before)


def test_overlapping_and_twice(engine: Any) -> None:
    """A byte belongs to one region at most; what was refused leaves the first one as it was."""
    big = memory.distinct(16)
    region = engine.register(big[2 * PAGE : 10 * PAGE])
    for part in (big, big[: 3 * PAGE], big[9 * PAGE :], big[4 * PAGE : 5 * PAGE], big[100:]):
        with pytest.raises(ksmpy.RegionError):
            engine.register(part)
    with pytest.raises(ksmpy.RegionError):
        engine.register(big[2 * PAGE : 10 * PAGE])
    assert [r.address for r in engine.regions()] == [region.address]
    engine.register(big[10 * PAGE :])
    engine.register(big[: 2 * PAGE + 100])
    assert len(engine.regions()) == 3
    engine._core.check()


def test_registered_with_another_engine(make_engine: MakeEngine) -> None:
    """Two engines of one process cannot have the same memory."""
    first, second = make_engine(), make_engine()
    one = memory.distinct(8)
    region = first.register(one)
    with pytest.raises(ksmpy.RegionError):
        second.register(one)
    region.release()
    second.register(one)


def test_foreign_userfaultfd(make_engine: MakeEngine, mode: Mode) -> None:
    """Memory that some other library watches with userfaultfd is left alone, or merged rightly."""
    other = make_engine()
    one = memory.distinct(8)
    wanted = one.tobytes()
    other._core._native.register(*memory.span(one), 0)  # what ksmpy's Python side knows nothing of
    number = other._core._native._pointer  # keep the engine alive
    engine = make_engine()
    try:
        engine.register(one)
        engine.scan(2, eager=True)
    except ksmpy.RegionError:
        pass
    assert one.tobytes() == wanted
    for found in list(range(8)):
        try:
            other._core._native.release(found, discard=False)
        except OSError:
            continue
    assert number


def test_refused_options() -> None:
    """Words that are none of the choices."""
    for options in ({"freeze": "cold"}, {"tracking": "none"}, {"freeze": 3}):
        with pytest.raises((ValueError, TypeError)):
            ksmpy.Engine(**options)


# ---- allowed, and strange -----------------------------------------------------------------------


def test_unaligned_buffers_merge_their_whole_pages(engine: Any) -> None:
    """Head and tail fragments stay out; neighbours in the same page are never touched."""
    one, two = memory.distinct(10), memory.pages(10)
    two[:] = one
    views = [array[100 : 9 * PAGE + 50] for array in (one, two)]
    regions = [engine.register(view) for view in views]
    assert [region.pages for region in regions] == [8, 8]
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(view) for view in views]) == 8
    assert oracle.frames_of(memory.address_of(one), PAGE) == [None]
    one[:100] = 5
    assert (one[:100] == 5).all()
    assert (one[100:] == two[100:]).all()


def test_read_only_arrays_are_welcome(engine: Any) -> None:
    """The flag is Python's; the memory is private and writable all the same."""
    one = memory.distinct(8)
    two = memory.twin(one)
    one.flags.writeable = two.flags.writeable = False
    text = one.tobytes()
    copy = bytes(bytearray(text))
    for buffer in (one, two):
        engine.register(buffer)
    big = [text * 64, copy * 64]  # bytes objects large enough to have pages of their own
    for text_buffer in big:
        engine.register(text_buffer)
    engine.scan(2, eager=True)
    spans = [memory.span(one), memory.span(two)]
    assert oracle.true_saved_pages(spans) == 8
    assert one.tobytes() == text == two.tobytes() and big[0] == big[1] == text * 64


def test_numpy_refuses_to_resize(engine: Any) -> None:
    """An array that is referenced cannot be resized in place, or the region ends first."""
    one = np.zeros(16 * PAGE, dtype=np.uint8)
    one[:] = memory.distinct(16)
    wanted = one.tobytes()
    engine.register(one)
    engine.scan(2, eager=True)
    try:
        one.resize(64 * PAGE)
    except ValueError:
        assert one.tobytes() == wanted
    else:
        assert one[: 16 * PAGE].tobytes() == wanted and not one[16 * PAGE :].any()
        pytest.fail("numpy moved memory that is registered")


def test_locked_memory(engine: Any) -> None:
    """Mlock'ed pages are refused, or merged and given back without losing a byte."""
    one, two = memory.distinct(8), memory.distinct(8)
    wanted = one.tobytes()
    if libc.mlock(memory.address_of(one), one.nbytes):
        pytest.skip("mlock is not allowed here")
    try:
        engine.register(one)
    except ksmpy.RegionError:
        return
    engine.register(two)
    engine.scan(2, eager=True)
    assert one.tobytes() == wanted == two.tobytes()
    one[::PAGE] ^= 1
    engine.scan(2, eager=True)
    one[::PAGE] ^= 1
    engine.unmerge()
    assert one.tobytes() == wanted == two.tobytes()
    assert not oracle.maps_store(*memory.span(one))


def test_transparent_huge_pages(engine: Any) -> None:
    """A huge page is split where it merges, and keeps its bytes."""
    size = 4 << 20
    arrays = []
    for _ in range(2):
        raw = mmap.mmap(-1, size, flags=ANON)
        raw.madvise(mmap.MADV_HUGEPAGE)
        arrays.append(np.frombuffer(raw, dtype=np.uint8))
        arrays[-1][:] = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    arrays[1][5 * PAGE] ^= 1
    wanted = [a.tobytes() for a in arrays]
    for one in arrays:
        engine.register(one)
    engine.scan(2, eager=True)
    assert [a.tobytes() for a in arrays] == wanted
    assert oracle.true_saved_pages(map(memory.span, arrays)) >= size // PAGE - 1 - 1024
    arrays[0][::PAGE] ^= 1
    engine.unmerge()
    arrays[0][::PAGE] ^= 1
    assert [a.tobytes() for a in arrays] == wanted


def test_many_mappings_in_one_buffer(engine: Any) -> None:
    """A buffer that spans mappings with different flags is one region, or refused."""
    raw = Raw(16)
    raw.array[:] = memory.distinct(16)
    twin = memory.twin(raw.array)
    assert libc.madvise(raw.address + 4 * PAGE, 4 * PAGE, mmap.MADV_DONTDUMP) == 0
    assert libc.madvise(raw.address + 8 * PAGE, 2 * PAGE, mmap.MADV_NOHUGEPAGE) == 0
    try:
        region = engine.register(raw.array)
    except ksmpy.RegionError:
        pass
    else:
        engine.register(twin)
        engine.scan(2, eager=True)
        assert raw.array.tobytes() == twin.tobytes()
        region.release()
    assert raw.array.tobytes() == twin.tobytes()
    raw.unmap()


# ---- behind our back ----------------------------------------------------------------------------


class Victim(NamedTuple):
    """Registered memory that is about to be mistreated, its twin, and memory that will be.

    The last is there before, or it could come to lie where the first had been.
    """

    engine: Any
    raw: Raw
    twin: memory.Bytes
    other: memory.Bytes


@pytest.fixture(params=[False, True], ids=["plain", "merged"])
def victim(request: pytest.FixtureRequest, engine: Any) -> Iterator[Victim]:
    """For the memory of each test."""
    other = memory.pages(32)
    raw = Raw(32)
    raw.array[:] = memory.distinct(32, seed=2)
    twin = memory.twin(raw.array)
    engine.register(raw.array)
    engine.register(twin)
    if request.param:
        engine.scan(2, eager=True)
        assert oracle.true_saved_pages([(raw.address, raw.nbytes), memory.span(twin)]) == 32
    yield Victim(engine, raw, twin, other)


def _goes_on(victim: Victim, wanted: bytes) -> None:
    """The rest of the engine works: other buffers merge, unmerge and keep their bytes."""
    engine, _, twin, other = victim
    other[:] = twin
    engine.register(other)
    for _ in range(3):
        engine.scan(2, eager=True)
    assert twin.tobytes() == wanted == other.tobytes()
    assert oracle.true_saved_pages([memory.span(twin), memory.span(other)]) >= 24
    engine._core.check()
    engine.unmerge()
    assert twin.tobytes() == wanted == other.tobytes()
    assert not oracle.maps_store(*memory.span(twin)) and not oracle.maps_store(*memory.span(other))


def test_unmapped_behind_our_back(victim: Victim) -> None:
    """Munmap of registered memory: counted as lost, and nothing is mapped there by us."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    raw.unmap()
    result = engine.scan(2, eager=True)
    # The kernel may put there what the engine notes of itself.
    there = oracle.overlapping(raw.address, raw.nbytes)
    assert all("history" in each.path for each in there), "something of ours is in the hole"
    assert result.lost and engine.stats().pages_lost
    _goes_on(victim, wanted)


def test_lost_memory_may_be_registered_again(victim: Victim) -> None:
    """Addresses that were lost belong to whoever maps them next, and merge again for them."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    raw.unmap()
    engine.scan(2, eager=True)
    raw.map_again(0, 32)
    raw.array[:] = twin
    engine.register(raw.array)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([(raw.address, raw.nbytes), memory.span(twin)]) == 32
    assert raw.array.tobytes() == wanted == twin.tobytes()
    engine._core.check()
    engine.close()
    raw.unmap()


def test_partly_unmapped_behind_our_back(victim: Victim) -> None:
    """A hole in the middle; the pages on both sides stay what they are."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    raw.unmap(8, 8)
    _goes_on(victim, wanted)
    assert raw.array[: 8 * PAGE].tobytes() == wanted[: 8 * PAGE]
    assert raw.array[16 * PAGE :].tobytes() == wanted[16 * PAGE :]
    # The place is anybody's: the engine may have kept a page of it, as an empty reservation.
    there = oracle.overlapping(raw.address + 8 * PAGE, 8 * PAGE)
    assert all(mapping.perms == "---p" for mapping in there)
    engine.close()
    assert not oracle.overlapping(raw.address + 8 * PAGE, 8 * PAGE)
    raw.unmap(0, 8)
    raw.unmap(16)


def test_other_memory_in_the_place(victim: Victim) -> None:
    """Unmapped and mapped anew by somebody else: their bytes and their mapping stay theirs."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    raw.unmap()
    raw.map_again(0, 32)
    strange = memory.distinct(32, seed=9)
    raw.array[:] = strange
    raw.array[: 4 * PAGE] = twin[: 4 * PAGE]
    theirs = raw.array.tobytes()
    _goes_on(victim, wanted)
    assert raw.array.tobytes() == theirs
    engine.close()
    assert raw.array.tobytes() == theirs
    raw.unmap()


def test_a_shared_file_in_the_place(victim: Victim) -> None:
    """A shared mapping of a file in the place of registered pages is never replaced."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    fd = os.memfd_create("theirs")
    os.ftruncate(fd, 8 * PAGE)
    raw.map_again(8, 8, fd)
    raw.array[8 * PAGE : 16 * PAGE] = twin[8 * PAGE : 16 * PAGE]
    _goes_on(victim, wanted)
    raw.array[9 * PAGE] = 0x42
    assert os.pread(fd, 1, PAGE) == b"\x42", "the mapping of their file was replaced"
    kinds = {m.perms[3] for m in oracle.overlapping(raw.address + 8 * PAGE, 8 * PAGE)}
    assert kinds == {"s"}
    engine.close()
    os.close(fd)
    raw.unmap()


def test_protected_behind_our_back(victim: Victim) -> None:
    """Mprotect to read-only: the bytes stay, and no page becomes writable by us."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    assert libc.mprotect(raw.address + 8 * PAGE, 8 * PAGE, mmap.PROT_READ) == 0
    engine.scan(2, eager=True)
    assert raw.array.tobytes() == wanted
    _goes_on(victim, wanted)
    assert raw.array.tobytes() == wanted
    engine.close()
    assert raw.array.tobytes() == wanted
    raw.unmap()


@pytest.mark.parametrize("rights", [0, mmap.PROT_READ], ids=["none", "read"])
def test_merged_memory_is_protected(rights: int, engine: Any) -> None:
    """Mprotect of merged memory: we neither die of it nor undo it, and the bytes stay."""
    one = memory.distinct(64)
    two, wanted = memory.twin(one), one.tobytes()
    region = engine.register(one)
    engine.register(two)
    assert engine.scan(eager=True).merged == 128
    part = memory.address_of(one) + 8 * PAGE, 8 * PAGE
    assert libc.mprotect(*part, rights) == 0
    with contextlib.suppress(OSError):
        engine.unmerge()
    engine.scan(2, eager=True)
    with contextlib.suppress(OSError):
        region.release()
    assert {found.perms for found in oracle.overlapping(*part)} == {"r--p" if rights else "---p"}
    assert two.tobytes() == wanted
    assert libc.mprotect(*part, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert one.tobytes() == wanted
    engine.close()
    assert one.tobytes() == wanted == two.tobytes()


def test_merged_memory_is_protected_for_a_moment(engine: Any) -> None:
    """While it is unmerged: it stays an overlay then, and is not taken for memory of its own."""
    one = memory.distinct(64)
    two = memory.twin(one)
    regions = [engine.register(array) for array in (one, two)]
    assert engine.scan(eager=True).merged == 128
    one[5] ^= 1
    wanted, others = one.tobytes(), two.tobytes()
    part = memory.address_of(one), one.nbytes
    assert libc.mprotect(*part, mmap.PROT_READ) == 0
    with contextlib.suppress(OSError):
        regions[0].unmerge()
    assert libc.mprotect(*part, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert libc.madvise(*part, MADV_PAGEOUT) == 0
    assert engine.scan(3, eager=True).merged == 0
    assert len(engine.regions()) == 1
    assert one.tobytes() == wanted and two.tobytes() == others
    engine.close()
    assert one.tobytes() == wanted and two.tobytes() == others


def test_discarded_behind_our_back(victim: Victim) -> None:
    """MADV_DONTNEED on registered memory: zeros, or the frame's bytes, and the engine goes on."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    assert libc.madvise(raw.address, 16 * PAGE, mmap.MADV_DONTNEED) == 0
    seen = raw.array[: 16 * PAGE].tobytes()
    for at in range(0, 16 * PAGE, PAGE):
        assert seen[at : at + PAGE] in (bytes(PAGE), wanted[at : at + PAGE])
    assert raw.array[16 * PAGE :].tobytes() == wanted[16 * PAGE :]
    _goes_on(victim, wanted)
    assert raw.array.tobytes() == seen + wanted[16 * PAGE :]
    engine.close()
    assert raw.array.tobytes() == seen + wanted[16 * PAGE :]
    raw.unmap()


def test_moved_behind_our_back(victim: Victim) -> None:
    """Mremap of registered memory to another place: the bytes go along, the old place is lost."""
    engine, raw, twin, _ = victim
    wanted = twin.tobytes()
    half = 16 * PAGE
    moved = Raw(16)
    target = moved.address
    if (
        libc.mremap(raw.address, half, half, MAYMOVE_FIXED, target) == FAILED
    ):  # merged pages need not be one mapping
        pytest.skip(f"mremap: {os.strerror(ctypes.get_errno())}")
    assert moved.array.tobytes() == wanted[:half]
    _goes_on(victim, wanted)
    assert moved.array.tobytes() == wanted[:half]
    assert raw.array[half:].tobytes() == wanted[half:]
    engine.close()
    assert moved.array.tobytes() == wanted[:half]
    moved.unmap()
    raw.unmap(16)


def test_heap_memory_freed_and_used_again(engine: Any) -> None:
    """Arrays die and malloc hands their memory to the next one, many times over."""
    model = np.random.default_rng(3).integers(0, 256, 100_000, dtype=np.uint8)
    for turn in range(60):
        arrays = [model.copy() for _ in range(4)]
        for one in arrays:
            engine.register(one)
        engine.scan(2, eager=True)
        arrays[turn % 4][turn * 100] ^= 1
        arrays[turn % 4][turn * 100] ^= 1
        for one in arrays:
            assert np.array_equal(one, model)
        del arrays, one
        assert engine.regions() == ()
        fresh = np.zeros(100_000, dtype=np.uint8)
        assert not fresh.any(), "calloc handed out a frame's bytes"
    engine._core.check()


def test_owners_die_in_many_threads(engine: Any) -> None:
    """Buffers come and go in threads while another one scans."""
    model = np.random.default_rng(4).integers(0, 256, 64 * PAGE, dtype=np.uint8)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(40):
            mine = [model.copy() for _ in range(2)]
            for one in mine:
                engine.register(one)
            if not all(np.array_equal(one, model) for one in mine):
                wrong.append("bytes")
            del mine, one

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    merged = 0
    while any(thread.is_alive() for thread in threads):
        merged += engine.scan(eager=True).merged
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert engine.regions() == ()
    engine._core.check()


# ---- misuse of engine, region and knobs ----------------------------------------------------------


def test_released_twice_and_used_after(engine: Any) -> None:
    """A second release is nothing; a released region answers with an error."""
    one = memory.distinct(8)
    region = engine.register(one)
    region.release()
    region.release()
    for call in (region.unmerge, region.stats):
        with pytest.raises(ksmpy.KsmpyError):
            call()
    assert engine.regions() == ()


def test_closed_engine(engine: Any) -> None:
    """Everything but close() raises KsmpyError; closing again is nothing."""
    one = memory.distinct(8)
    region = engine.register(one)
    engine.close()
    engine.close()
    calls = (
        engine.scan, engine.stats, engine.unmerge, engine.regions, engine.shares,
        lambda: engine.register(one), lambda: engine.track([one]), region.stats,
        lambda: setattr(engine.knobs, "run", 1), lambda: engine.knobs.run,
        engine.__enter__,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ksmpy.KsmpyError):
            call()
    region.release()


@pytest.mark.parametrize("value", ["1", None, 1.5, b"1", [1]])
def test_knobs_want_integers(auto: Any, value: Any) -> None:
    """Something that is no integer is a TypeError, and changes nothing."""
    before = auto.knobs.asdict()
    for knob in ("run", "pages_to_scan", "sleep_millisecs", "use_zero_pages", "max_page_sharing"):
        with pytest.raises(TypeError):
            setattr(auto.knobs, knob, value)
    assert auto.knobs.asdict() == before


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("run", 3), ("run", -1), ("max_page_sharing", 1), ("max_page_sharing", -5),
        ("use_zero_pages", 2), ("smart_scan", 2), ("merge_across_nodes", 2),
        ("pages_to_scan", -1), ("sleep_millisecs", 2**40),
    ],
)  # fmt: skip
def test_knobs_refuse_what_the_kernel_refuses(auto: Any, knob: str, value: int) -> None:
    """OSError with EINVAL, and the old value stays."""
    refused(auto, knob, value, errno.EINVAL)


def test_unknown_knobs_are_attribute_errors(auto: Any) -> None:
    """A misspelt knob is not silently kept."""
    with pytest.raises(AttributeError):
        auto.knobs.pages_to_skan = 5
    with pytest.raises(AttributeError):
        _ = auto.knobs.pages_to_skan


def test_bad_scan_arguments(auto: Any) -> None:
    """Passes and pages are counted from one."""
    for options in ({"passes": 0}, {"passes": -1}, {"max_pages": 0}, {"max_pages": -5}):
        with pytest.raises(ValueError):
            auto.scan(**options)


def test_scanning_nothing(engine: Any) -> None:
    """Without a region a pass ends at once, in every call."""
    for _ in range(3):
        result = engine.scan(2, eager=True)
        assert result.scanned == 0 and result.full >= 1
    engine.unmerge()
    engine._core.check()
