"""Devices that write into memory with no thread waiting: io_uring, libaio, and others by name.

What they write goes past the page tables, where only "uffd-move" refuses their pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import ksmpy
from conftest import Mode
from ksmpy import native, proc
from support import memory, procs
from support.patience import until

# The numbers of io_setup and io_destroy.
_LIBAIO = {"x86_64": (206, 207), "aarch64": (0, 1)}

pytestmark = [
    pytest.mark.skipif(platform.machine() not in _LIBAIO, reason="system calls by their number"),
    pytest.mark.skipif(
        Mode("uffd-wp", "checksum").missing() is not None, reason="auto does not take uffd-wp here"
    ),
]

IO_URING_SETUP = 425

# Seconds after which every kind of device is noticed: merge/bar.c asks for them now and then.
_NOTICED = 0.25

_KERNEL = tuple(int(part) for part in platform.release().split(".")[:2])

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _io_uring() -> Iterator[None]:
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    fd = _libc.syscall(IO_URING_SETUP, 1, parameters)
    if fd < 0:
        pytest.skip(f"no io_uring here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def _libaio() -> Iterator[None]:
    ring = ctypes.c_ulong()
    setup, destroy = _LIBAIO[platform.machine()]
    if _libc.syscall(setup, 1, ctypes.byref(ring)) < 0:
        pytest.skip(f"no libaio here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        _libc.syscall(destroy, ring)


@pytest.mark.parametrize("devices", [_io_uring, _libaio])
def test_auto_takes_the_way_that_refuses_pinned_pages(devices: Callable[[], Any]) -> None:
    """With devices "auto" is not "uffd-wp", and without them it is."""
    with ksmpy.Engine() as engine:
        assert engine.freeze == "uffd-wp"
    with devices():
        assert native.has_devices()
        with ksmpy.Engine() as engine:
            assert engine.freeze != "uffd-wp"
        assert not next(check for check in ksmpy.doctor() if check.name == "device I/O").ok
    assert not native.has_devices()


@pytest.mark.parametrize("devices", [_io_uring, _libaio])
def test_devices_that_come_later_end_merging(devices: Callable[[], Any]) -> None:
    """An engine that chose by itself merges nothing while there are devices, and goes on after."""
    arrays = [memory.distinct(64, seed=5)]
    arrays.append(memory.twin(arrays[0]))
    wanted = arrays[0].tobytes()
    with ksmpy.Engine() as engine:
        for array in arrays:
            engine.register(array)
        with devices():
            until(lambda: engine.scan(eager=True).busy > 0, "devices were not noticed")
            assert engine.stats().pages_sharing == 0
        until(
            lambda: engine.scan(eager=True).merged > 0 or engine.stats().pages_sharing == 64,
            "merging did not go on",
        )
        assert [array.tobytes() for array in arrays] == [wanted] * 2


def _map(fd: int, size: int, offset: int = 0) -> ctypes.Array[ctypes.c_uint8]:
    """Of a file, shared; mmap.mmap() would keep another descriptor of it."""
    _libc.mmap.restype = ctypes.c_void_p
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    length, start = ctypes.c_size_t(size), ctypes.c_long(offset)
    place = _libc.mmap(None, length, rights, mmap.MAP_SHARED, fd, start)
    return (ctypes.c_uint8 * size).from_address(place)


class Ring:
    """A ring of io_uring, and what a program needs to ask it for something."""

    ENTER, REGISTER, OFF_ENTRIES, ENTRY, WAIT = 426, 427, 0x10000000, 64, 1
    NOTHING, READ_FIXED, READ, EPOLL_CTL = 0, 4, 22, 29
    BUFFERS, NO_BUFFERS, RING_FDS, NO_RING_FDS = 0, 1, 20, 21  # what is registered
    ENTER_REGISTERED, USE_REGISTERED = 1 << 4, 1 << 31

    def __init__(self, entries: int = 256, flags: int = 0, entry: int = ENTRY) -> None:
        parameters = bytearray(120)
        struct.pack_into("I", parameters, 8, flags)
        text = (ctypes.c_char * 120).from_buffer(parameters)
        self.fd = _libc.syscall(IO_URING_SETUP, entries, text)
        if self.fd < 0:
            pytest.skip(f"no io_uring here: {os.strerror(ctypes.get_errno())}")
        self.number, self.registered = self.fd, False
        self.head, self.tail, *_, self.array = struct.unpack_from("7I", parameters, 40)
        self.queue = _map(self.fd, self.array + 4 * entries)
        self.entries = _map(self.fd, entry * entries, self.OFF_ENTRIES)
        self.mapped = [self.queue, self.entries]

    def ask(self, kind: int, fd: int, off: int = 0, address: int = 0, length: int = 0) -> None:
        """Make a request, and wait until it and all before it are carried out: nobody takes the
        answers away.
        """
        (tail,) = struct.unpack_from("I", self.queue, self.tail)
        entry = struct.pack("BBHiQQI", kind, 0, 0, fd, off, address, length)
        ctypes.memmove(ctypes.addressof(self.entries) + self.ENTRY * tail, entry, len(entry))
        struct.pack_into("I", self.queue, self.array + 4 * tail, tail)
        struct.pack_into("I", self.queue, self.tail, tail + 1)
        flags = self.WAIT | self.ENTER_REGISTERED * self.registered
        assert _libc.syscall(self.ENTER, self.number, 1, tail + 1, flags, None, 0) == 1

    def register(self, what: int, entry: bytes) -> None:
        """io_uring_register(); some kernels take no registered ring for that."""
        what |= self.USE_REGISTERED * self.registered
        given = ctypes.create_string_buffer(entry) if entry else None
        if _libc.syscall(self.REGISTER, self.number, what, given, len(entry) // 16) < 0:
            pytest.skip(f"io_uring_register: {os.strerror(ctypes.get_errno())}")

    def pin(self, buffer: np.ndarray) -> None:
        """The memory is the ring's first registered buffer (IORING_REGISTER_BUFFERS)."""
        self.register(self.BUFFERS, struct.pack("QQ", buffer.ctypes.data, buffer.nbytes))

    def close_descriptor(self) -> None:
        """As liburing's io_uring_close_ring_fd() does it. Before Linux 6.3 nothing could be
        registered with such a ring, nor what it has pinned let go.
        """
        if _KERNEL < (6, 3):
            self.close()
            pytest.skip("io_uring_register takes no registered ring here")
        update = ctypes.create_string_buffer(struct.pack("IIQ", 0xFFFFFFFF, 0, self.fd))
        if _libc.syscall(self.REGISTER, self.fd, self.RING_FDS, update, 1) != 1:
            pytest.skip(f"no registered rings here: {os.strerror(ctypes.get_errno())}")
        os.close(self.fd)
        (self.number,) = struct.unpack_from("I", update)
        self.registered = True

    def unmap(self) -> None:
        """What is left is a descriptor, or a ring that is registered."""
        while self.mapped:
            mapping = self.mapped.pop()
            assert _libc.munmap(ctypes.c_void_p(ctypes.addressof(mapping)), len(mapping)) == 0

    def close(self) -> None:
        """It goes; what is mapped keeps it."""
        self.unmap()
        if self.registered:
            self.register(self.NO_RING_FDS, struct.pack("IIQ", self.number, 0, 0))
        else:
            os.close(self.fd)


@pytest.fixture
def ring() -> Iterator[Ring]:
    """As libuv has one in each loop."""
    ring = Ring()
    yield ring
    ring.close()


def watch(ring: Ring, epoll: select.epoll, fd: int) -> None:
    """epoll_ctl(EPOLL_CTL_ADD) by the ring."""
    event = ctypes.create_string_buffer(struct.pack("=IQ", select.EPOLLIN, fd))
    ring.ask(Ring.EPOLL_CTL, epoll.fileno(), fd, ctypes.addressof(event), 1)
    assert epoll.poll(0) == [(fd, select.EPOLLIN)]


def test_a_ring_that_only_tells_an_epoll_is_no_device(ring: Ring) -> None:
    """libuv's, which every program with uvloop has; until something else is asked of it."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with select.epoll() as epoll:
        assert native.has_devices()  # it may be for anything
        watch(ring, epoll, reading)
        assert not native.has_devices()
        with ksmpy.Engine() as engine:
            assert engine.freeze == "uffd-wp"
        there = ctypes.create_string_buffer(1)
        ring.ask(Ring.READ, reading, address=ctypes.addressof(there), length=1)
        assert there.raw == b"x"
        assert native.has_devices()
    os.close(reading)
    os.close(writing)


def test_merging_goes_on_beside_a_ring_that_only_tells_an_epoll(ring: Ring) -> None:
    """Also where the engine was there before the loop."""
    arrays = [memory.distinct(64, seed=7)]
    arrays.append(memory.twin(arrays[0]))
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with select.epoll() as epoll, ksmpy.Engine() as engine:
        for array in arrays:
            engine.register(array)
        watch(ring, epoll, reading)
        until(
            lambda: engine.scan(eager=True) and engine.stats().pages_sharing == 64,
            "nothing was merged",
        )
    os.close(reading)
    os.close(writing)


def test_a_ring_whose_entries_are_larger_is_a_device() -> None:
    """What lies in the second half of its entries cannot be told from a request."""
    setup_sqe128 = 1 << 10
    ring = Ring(64, setup_sqe128, 2 * Ring.ENTRY)
    ring.entries[0] = Ring.EPOLL_CTL
    assert native.has_devices()
    ring.close()


def test_a_ring_that_a_thread_of_the_kernel_looks_at_is_a_device() -> None:
    """It takes what is in the entries at any moment."""
    setup_sqpoll = 1 << 1
    ring = Ring(64, setup_sqpoll)
    ring.entries[0] = Ring.EPOLL_CTL
    assert native.has_devices()
    ring.close()


@pytest.mark.skipif(_KERNEL < (6, 11), reason="mappings are not told one by one (PROCMAP_QUERY)")
def test_a_ring_that_is_only_mapped_is_a_device(ring: Ring) -> None:
    """Its descriptor was closed; beside it there is one that only tells an epoll."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    with select.epoll() as epoll:
        watch(ring, epoll, reading)
        assert not native.has_devices()
        other = Ring(64)
        other.close_descriptor()
        assert native.has_devices()
        other.close()
        assert not native.has_devices()
    os.close(reading)
    os.close(writing)


def test_a_ring_that_is_nowhere_to_be_seen_is_a_device_while_it_pins_memory() -> None:
    """It has no descriptor, and nobody maps it (IORING_SETUP_NO_MMAP, for example)."""
    ring = Ring(64)
    ring.pin(memory.distinct(8, seed=8))
    ring.close_descriptor()
    ring.unmap()
    if b"\nVmPin:\t       0 kB" in proc.read("status"):  # seen on Linux 7.2, with CAP_IPC_LOCK
        ring.close()
        pytest.skip("the kernel does not count what this user pins")
    assert native.has_devices()
    ring.register(Ring.NO_BUFFERS, b"")
    assert not native.has_devices()
    ring.close()


def test_a_socket_whose_packets_lie_in_the_programs_memory_is_a_device() -> None:
    """AF_XDP pins that memory for good."""
    try:
        packets = socket.socket(44, socket.SOCK_RAW)
    except OSError as error:
        pytest.skip(f"AF_XDP: {error}")
    with packets:
        assert native.has_devices()
    with socket.socket(socket.AF_UNIX):
        assert not native.has_devices()


def _with_descriptors_of_its_own(ask: Callable[[], bool]) -> bool:
    """What a thread says that has called unshare(2) with CLONE_FILES."""
    clone_files, told = 0x400, []

    def work() -> None:
        assert _libc.unshare(clone_files) == 0
        told.append(ask())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return told == [True]


def test_a_descriptor_that_only_the_first_thread_has(ring: Ring) -> None:
    """It is found by an engine whose scanner has none of its own."""

    def close_and_ask() -> bool:
        os.close(ring.fd)  # here only
        return native.has_devices()

    ring.unmap()
    assert _with_descriptors_of_its_own(close_and_ask)


def test_a_descriptor_that_only_the_asking_thread_has() -> None:
    """Files of the engine's are that thread's, too."""

    def open_and_ask() -> bool:
        (ring := Ring()).unmap()
        found = native.has_devices()
        ring.close()
        return found

    assert _with_descriptors_of_its_own(open_and_ask)


_FIRST_THREAD_ENDS = """
import ctypes, os, sys, threading, time, traceback
import ksmpy
from ksmpy import native
from support import memory
from test_devices import Ring

def go_on():
    while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert not native.has_devices()
    (ring := Ring()).unmap()
    assert native.has_devices()
    ring.close()
    assert not native.has_devices()
    arrays = [memory.distinct(64, seed=11)]
    arrays.append(memory.twin(arrays[0]))
    with ksmpy.Engine() as engine:
        for array in arrays:
            engine.register(array)
        engine.scan(2, eager=True)
        print(engine.stats().pages_sharing, end="", flush=True)

def work():
    try:
        go_on()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)
"""


def test_a_process_whose_first_thread_has_ended() -> None:
    """/proc/self tells nothing of its descriptors and its memory any more."""
    exit_call = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    merged = procs.python_ok("-c", _FIRST_THREAD_ENDS, str(exit_call))
    # An ordinary user may not ask what a thread does that has ended, and merges nothing beside it.
    assert merged == "64" or (merged == "0" and os.geteuid() != 0)


@pytest.mark.parametrize("freeze", ["auto", "uffd-move"])
@pytest.mark.parametrize("hidden", [False, True])
def test_what_a_device_has_pinned_stays_where_it_is(freeze: str, hidden: bool) -> None:
    """Merged memory that is registered with a ring comes back when nobody pins it any more."""
    if freeze == "uffd-move" and (missing := Mode("uffd-move", "checksum").missing()):
        pytest.skip(missing)
    arrays = [memory.distinct(64, seed=9)]
    arrays.append(memory.twin(arrays[0]))
    old, new = arrays[0].tobytes(), memory.distinct(64, seed=10).tobytes()
    with tempfile.TemporaryFile(buffering=0) as file, ksmpy.Engine(freeze=freeze) as engine:
        file.write(new)
        for array in arrays:
            engine.register(array)
        until(
            lambda: engine.scan(eager=True) and engine.stats().pages_sharing == 64,
            "nothing was merged",
        )
        ring = Ring(64)
        ring.pin(arrays[0])  # each page is a copy of its own now
        if hidden:
            ring.close_descriptor()
        time.sleep(_NOTICED)
        engine.scan(3)
        assert engine.stats().pages_sharing == 0  # although the copies lie in overlays
        ring.ask(Ring.READ_FIXED, file.fileno(), address=arrays[0].ctypes.data, length=len(new))
        assert [array.tobytes() for array in arrays] == [new, old]
        if hidden:
            ring.register(Ring.NO_BUFFERS, b"")
        ring.close()
        arrays[0][:] = arrays[1]
        until(
            lambda: engine.scan(eager=True) and engine.stats().pages_sharing == 64,
            "merging did not go on",
        )
        assert [array.tobytes() for array in arrays] == [old, old]


def test_who_asks_for_it_gets_it() -> None:
    """freeze="uffd-wp" is taken at its word: the program knows what its devices do."""
    arrays = [memory.distinct(64, seed=6)]
    arrays.append(memory.twin(arrays[0]))
    with _io_uring(), ksmpy.Engine(freeze="uffd-wp") as engine:
        for array in arrays:
            engine.register(array)
        engine.scan(2, eager=True)
        assert engine.stats().pages_sharing == 64
