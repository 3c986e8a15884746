"""Registering: how many regions there may be, what one costs, and what is asked of its memory."""

from __future__ import annotations

import ctypes
import logging
import mmap
import random
import threading
import time
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksmpy import RegionError
from ksmpy.engine import regions as regions_module
from ksmpy.memory.maps import AddressSpace, Allowance
from support import memory, oracle
from support.libc import libc
from support.memory import Bytes
from support.oracle import PAGE
from support.tracked import track_all

pytestmark = pytest.mark.timeout(300)

#: What the engine may take for regions: half of vm.max_map_count.
LIMIT = int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
#: Mappings that the interpreter may have made since the engine last counted.
OTHERS = 16


def _every_other_page(count: int) -> tuple[Bytes, list[Bytes]]:
    """Memory, and `count` pages of it that are not neighbours."""
    whole = memory.pages(2 * count)
    whole[::PAGE] = 1
    return whole, [whole[2 * i * PAGE : (2 * i + 1) * PAGE] for i in range(count)]


def _takes_mappings(engine: Any) -> bool:
    return (engine.freeze, engine.tracking) != ("signal", "checksum")


def test_regions_leave_the_process_its_mappings(engine: Any) -> None:
    """Small buffers are refused with the way out while half of the mappings are left: threads
    start, larger buffers still have room, and so has whoever follows when some are released.
    """
    if LIMIT > 40_000:
        pytest.skip("vm.max_map_count is too high to be reached in a test")
    _, pages = _every_other_page(LIMIT // 2)
    regions, refused = track_all(engine, pages, min_bytes=1)
    if not _takes_mappings(engine):
        assert not refused
        return
    assert len(oracle.mappings()) <= LIMIT + OTHERS
    assert len(regions) > LIMIT // 4, "refused long before the limit"
    assert refused and all("vm.max_map_count" in reason for _, reason in refused)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    with pytest.raises(RegionError, match=r"vm\.max_map_count"):
        engine.register(pages[-1])
    engine.register(memory.distinct(512)).release()
    for region in regions[::2]:
        region.release()
    engine.register(pages[-1])
    engine._core.check()


def test_a_registration_costs_little_however_many_there_are(auto: Any) -> None:
    """The thousandth buffer registered by itself takes no more of the processor than the first
    hundred; all of the mappings are not read each time.
    """
    _, pages = _every_other_page(1500)
    begin = time.thread_time()
    for page in reversed(pages):
        auto.register(page)
    assert (time.thread_time() - begin) / len(pages) < 5e-3
    auto._core.check()


def test_regions_never_overlap(engine: Any) -> None:
    """Whatever is registered and released in whatever order, a buffer is refused if and only if
    one of its pages is a region's.
    """
    choice = random.Random(5)
    whole = memory.pages(64)
    regions: dict[tuple[int, int], Any] = {}
    for _ in range(600):
        first = choice.randrange(63)
        end = min(64, first + choice.randint(1, 6))
        taken = [span for span in regions if span[0] < end and first < span[1]]
        if choice.random() < 0.4 and regions:
            regions.pop(choice.choice(list(regions))).release()
            continue
        try:
            region = engine.register(whole[first * PAGE : end * PAGE])
        except RegionError as error:
            assert taken and "overlaps the region" in str(error)
        else:
            assert not taken
            regions[first, end] = region
    engine._core.check()


# ---- what is not asked at once -----------------------------------------------------------


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all of the mappings takes too long to do it at each registration."""
    monkeypatch.setattr(regions_module._allowance, "_spent", inf)


def _private(pages: int, *advice: int) -> Bytes:
    area = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for each in advice:
        area.madvise(each)
    array = np.frombuffer(area, np.uint8)
    array[:] = memory.distinct(pages, seed=9)
    return array


def test_what_was_not_asked_at_registration_is_asked_before_merging(
    dear: None, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory that children may not have, or that is locked, is released unmerged by the pass that
    finds it so; its equals beside it are merged.
    """
    kept, locked = _private(8, mmap.MADV_DONTFORK), _private(8)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(memory.address_of(locked))
    can_lock = not libc.mlock(address, ctypes.c_size_t(locked.nbytes))
    refused = [engine.register(array) for array in ([kept, locked] if can_lock else [kept])]
    equal = [_private(8), _private(8)]
    taken = [engine.register(array) for array in equal]
    with caplog.at_level(logging.WARNING, "ksmpy"):
        engine.scan(eager=True)
    assert all(region._released for region in refused)
    assert "kept from forked children" in caplog.text and "mlock" in caplog.text or not can_lock
    assert not any(oracle.maps_store(region.address, region.nbytes) for region in refused)
    assert engine.regions() == tuple(taken)
    assert engine.stats().pages_sharing == 8
    if can_lock:
        libc.munlock(address, ctypes.c_size_t(locked.nbytes))


def test_what_is_not_anonymous_is_refused_at_once(dear: None, engine: Any, tmp_path: Path) -> None:
    """Files, shared and read-only memory are refused at registration, in the same words as ever."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    read_only = mmap.mmap(
        -1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ
    )
    for buffer, words in (
        (np.memmap(path, np.uint8, mode="c"), "file-backed"),
        (mmap.mmap(-1, 8 * PAGE), "shared memory"),
        (read_only, "mapped r--"),
    ):
        with pytest.raises(RegionError, match=words):
            engine.register(buffer)
    assert engine.regions() == ()


def test_advice_is_kept_also_when_it_is_learned_late(dear: None, engine: Any) -> None:
    """A region that comes back from merging has the advice that its memory had before."""
    arrays = [_private(64, mmap.MADV_NOHUGEPAGE) for _ in range(2)]
    for array in arrays:
        engine.register(array)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 64
    engine.unmerge()
    for array in arrays:
        flags = [
            fields["VmFlags"]
            for vma, fields in oracle.details()
            if vma.overlaps(*memory.span(array))
        ]
        assert flags and all("nh" in each for each in flags)


def _is_left_out_of_cores(array: Bytes) -> bool:
    start, nbytes = memory.span(array)
    space = AddressSpace.read(start + nbytes)
    return all("dd" in (each.flags or ()) for each in space.covering(start, start + nbytes))


def test_flags_are_told_of_the_region_that_was_asked_about(
    auto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all mappings are read, which takes long, it ends, and another one gets its number."""
    read = AddressSpace.read
    one, kept = memory.distinct(64), memory.distinct(64)
    twin = memory.twin(kept)
    for array in (kept, twin):
        assert libc.madvise(*memory.span(array), mmap.MADV_DONTDUMP) == 0
    monkeypatch.setattr(Allowance, "_CREDIT", -1.0)  # what its mappings are like is asked later
    first = auto.register(one)
    monkeypatch.undo()
    number = first._number

    def read_slowly(limit: int) -> AddressSpace:
        space = read(limit)
        monkeypatch.undo()
        first.release()
        assert auto.register(kept)._number == number
        return space

    monkeypatch.setattr(AddressSpace, "read", read_slowly)
    auto.scan()
    auto.register(twin)
    auto.scan(2, eager=True)
    assert auto.stats().pages_sharing == 64
    assert _is_left_out_of_cores(twin) and _is_left_out_of_cores(kept)
