"""Threads and system calls that write into pages while these are merged and given back.

The writers are C threads that need no GIL. Each test also asserts that pages really were merged
meanwhile: it could not fail otherwise. KSMPY_TORTURE_SECONDS sets how long each one lasts.
"""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Mode
from support import memory
from support.background import merging, over_and_over
from support.oracle import PAGE
from support.slow_files import slow_file
from support.torture import DirectIo, Hammer, Torture, direct_blocks, duration, lasting, library

pytestmark = pytest.mark.timeout(120 + 4 * duration())


def _torture(mode: Mode, **options: Any) -> Torture:
    return Torture(efault_ok=mode.efault_ok, **options)


def test_no_increment_is_lost_while_everything_happens(mode: Mode, engine: Any) -> None:
    """Merged, unmerged, released and registered again and again, no write and no read is wrong."""
    merged = 0
    with _torture(mode, count=192) as torture:
        regions = [engine.register(buffer) for buffer in torture.buffers]
        number = 0
        going_on = lasting(duration())
        while going_on(merged > 4):
            merged += engine.scan(2, eager=True).merged
            regions[number % 3].unmerge()
            merged += engine.scan(eager=True).merged
            merged += engine.scan(3).merged
            regions.pop(0).release()
            merged += engine.scan(eager=True).merged
            regions.append(engine.register(torture.buffers[number % 3]))
            engine.unmerge()
            engine._core.check()
            torture.assert_alive()
            number += 1
        engine.unmerge()


def test_no_increment_is_lost_under_ksmd(mode: Mode, engine: Any) -> None:
    """The background thread merges while knobs.run goes through all of its values."""
    with _torture(mode) as torture:
        for buffer in torture.buffers:
            engine.register(buffer)
        engine.knobs.sleep_millisecs = 0
        shared, pause = 0, 0.1
        going_on = lasting(duration())
        while going_on(shared):
            engine.knobs.run = 1
            time.sleep(pause)
            pause *= 1.1  # a loaded machine may need longer to merge anything
            shared += engine.stats().pages_sharing
            engine.knobs.run = 0
            torture.assert_alive()
            engine.knobs.run = 2
            assert engine.stats().pages_sharing == 0
            engine._core.check()


def test_no_increment_is_lost_in_huge_pages(mode: Mode, engine: Any) -> None:
    """Huge pages are frozen, compared and given back as one; unmerged, they are small ones."""
    merged = 0
    going_on = lasting(duration())
    while going_on(merged > memory.HUGE):
        with _torture(mode, count=2 * memory.HUGE, buffers=2, huge=True) as torture:
            if not all(map(memory.are_huge, torture.buffers)):
                pytest.skip("this machine gave no huge pages")
            regions = [engine.register(buffer) for buffer in torture.buffers]
            for _ in range(3):
                merged += engine.scan(eager=True).merged
            torture.assert_alive()
            engine._core.check()
            for region in regions:
                region.release()


def test_no_increment_is_lost_with_zero_pages(mode: Mode, engine: Any) -> None:
    """A page going to and from the zero page keeps what is written into it meanwhile."""
    engine.knobs.use_zero_pages = 1
    array = memory.pages(256)
    array[:] = 0  # touched: memory of its own
    engine.register(array)
    counters = array.view(np.uint64).reshape(256, -1)[:, 5]
    rng = np.random.default_rng(7)
    with over_and_over(lambda: engine.scan(eager=True).zeroed) as zeroed:
        going_on = lasting(duration() / 2)
        while going_on(zeroed[0] > 256):
            page = int(rng.integers(256))
            value = int(rng.integers(1, 2**60))
            assert counters[page] == 0
            counters[page] = value
            assert counters[page] == value, "a write into a zero page was lost"
            counters[page] = 0
    assert not array.any()


def _repeated(call: Callable[[], int], mode: Mode) -> int:
    """Call until it does not fail with EFAULT, where that may happen at all."""
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno != errno.EFAULT or not mode.efault_ok:
                raise


def _read_file(view: memoryview, data: bytes, scratch: Path) -> None:
    scratch.write_bytes(data)
    with io.FileIO(scratch) as source:
        assert source.readinto(view) == len(data)


def _receive(view: memoryview, data: bytes, _: Path) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(data)
        assert there.recv_into(view, len(data), socket.MSG_WAITALL) == len(data)


def _preadv(view: memoryview, data: bytes, scratch: Path) -> None:
    scratch.write_bytes(data)
    half = len(data) // 2
    fd = os.open(scratch, os.O_RDONLY)
    try:
        assert os.preadv(fd, [view[:half], view[half:]], 0) == len(data)
    finally:
        os.close(fd)


@pytest.mark.parametrize("transfer", [_read_file, _receive, _preadv], ids=lambda f: f.__name__[1:])
def test_the_kernel_writes_into_pages_being_merged(
    mode: Mode, engine: Any, tmp_path: Path, transfer: Callable[[memoryview, bytes, Path], None]
) -> None:
    """readinto, recv_into and preadv deliver every byte into pages that come and go."""
    buffers = [memory.distinct(64, seed=5) for _ in range(2)]
    model = [bytearray(buffer.tobytes()) for buffer in buffers]
    rng = np.random.default_rng(11)
    with merging(engine, buffers) as merged:
        going_on = lasting(duration() / 3)
        while going_on(merged[0]):
            size = int(rng.integers(1, 4 * PAGE))
            at = int(rng.integers(0, 64 * PAGE - size))
            data = rng.bytes(size)
            for index, buffer in enumerate(buffers):
                view = buffer.data[at : at + size]
                _delivered(transfer, view, data, tmp_path / "data", mode)
                model[index][at : at + size] = data
                assert buffer[at : at + size].tobytes() == data
    for buffer, wanted in zip(buffers, model, strict=True):
        assert buffer.tobytes() == bytes(wanted)


def _delivered(
    transfer: Callable[[memoryview, bytes, Path], None],
    view: memoryview,
    data: bytes,
    scratch: Path,
    mode: Mode,
) -> None:
    while True:
        try:
            transfer(view, data, scratch)
            return
        except OSError as error:
            if error.errno != errno.EFAULT or not mode.efault_ok:
                raise
        except AssertionError:  # a frozen page in the middle: the kernel stopped short there
            if not mode.efault_ok:
                raise


def test_the_kernel_reads_pages_being_merged(mode: Mode, engine: Any) -> None:
    """What write() and send() take out of merged pages is what was written into them."""
    buffers = [memory.distinct(64, seed=6) for _ in range(2)]
    wanted = buffers[0].tobytes()
    fd = os.memfd_create("sink")
    try:
        with merging(engine, buffers) as merged:
            going_on = lasting(duration() / 3)
            while going_on(merged[0]):
                for buffer in buffers:
                    done = 0
                    while done < buffer.nbytes:
                        rest = buffer.data[done:]
                        done += _repeated(partial(os.pwrite, fd, rest, done), mode)
                    assert os.pread(fd, len(wanted), 0) == wanted
    finally:
        os.close(fd)


def test_sparse_writes_never_come_undone(mode: Mode, engine: Any) -> None:
    """One byte here and there, with passes in between: merged pages come apart, one by one."""
    one = memory.distinct(300, seed=8)
    two = memory.twin(one)
    model = bytearray(one.tobytes())
    engine.register(one)
    engine.register(two)
    rng = np.random.default_rng(9)
    merged = 0
    for _ in range(40):
        merged += engine.scan(eager=True).merged
        for offset in rng.integers(0, len(model), 20).tolist():
            value = int(rng.integers(256))
            one[offset] = two[offset] = model[offset] = value
        assert one.tobytes() == model and two.tobytes() == model
        engine._core.check()
    assert merged > 4


def test_one_word_hammered_by_many_threads(mode: Mode, engine: Any) -> None:
    """Threads that write the same word without pause meet every freeze, and survive each."""
    one = memory.distinct(2, seed=12)
    two = memory.twin(one)
    wanted = one.tobytes()
    engine.register(one)
    engine.register(two)
    hammers = [Hammer(memory.address_of(one) + 8 * 7 * i) for i in (0, 0, 1)]
    threads = [
        threading.Thread(target=library().hammer_run, args=(ctypes.byref(hammer),))
        for hammer in hammers
    ]
    for thread in threads:
        thread.start()
    merged = 0
    going_on = lasting(duration())
    try:
        while going_on(merged > 10):
            merged += engine.scan(4, eager=True).merged
            engine.unmerge()
    finally:
        for hammer in hammers:
            hammer.stop = 1
        for thread in threads:
            thread.join()
    assert all(hammer.writes for hammer in hammers)
    assert one.tobytes() == wanted == two.tobytes()


@pytest.fixture(params=["disk", "fuse"])
def direct_fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A file of 16 blocks that is read directly: O_DIRECT, or as its file system likes it."""
    path = tmp_path / "blocks"
    path.write_bytes(direct_blocks(16, 3))
    if request.param == "fuse":
        with slow_file(path, tmp_path / "mount") as fd:
            yield fd
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on this file system: {error}")
    yield fd
    os.close(fd)


def test_direct_io_into_pages_being_merged(mode: Mode, engine: Any, direct_fd: int) -> None:
    """A device that writes into a page is not cut off from it by a merge, or by its end."""
    buffers = [memory.pages(32) for _ in range(2)]
    for buffer in buffers:
        buffer[:] = 0
    addresses = (ctypes.c_void_p * 2)(*map(memory.address_of, buffers))
    job = DirectIo(direct_fd, 16, 32, addresses, 3)
    reader = threading.Thread(target=library().direct_run, args=(ctypes.byref(job),))
    regions = [engine.register(buffer) for buffer in buffers]
    merged = 0
    reader.start()
    going_on = lasting(duration() / 2)
    try:
        while going_on(merged and job.reads):
            merged += engine.scan(2, eager=True).merged
            time.sleep(0.001)
    finally:
        job.stop = 1
        reader.join()
    assert not job.spoiled and not job.errors, f"{job.spoiled} of {job.reads} reads were lost"
    for region in regions:
        region.release()


def test_owner_gives_pages_back_while_they_are_merged(mode: Mode, engine: Any) -> None:
    """MADV_DONTNEED by the owner never brings back a byte that is neither zero nor what was there.

    From a merged page the frame's bytes come back: what the page had when it was merged, which may
    have been in the middle of a write.
    """
    buffers = [memory.distinct(32, seed=10) for _ in range(2)]
    wanted = buffers[0].tobytes()
    pages = np.frombuffer(wanted, dtype=np.uint8).reshape(32, PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    with merging(engine, buffers) as merged:
        going_on = lasting(duration() / 3)
        while going_on(merged[0]):
            for page in range(32):
                at = memory.address_of(buffers[0]) + page * PAGE
                libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(PAGE), mmap.MADV_DONTNEED)
                now = buffers[0][page * PAGE : (page + 1) * PAGE].copy()
                assert ((now == pages[page]) | (now == 0)).all()
                buffers[0][page * PAGE : (page + 1) * PAGE] = pages[page]
    assert buffers[0].tobytes() == wanted and buffers[1].tobytes() == wanted
