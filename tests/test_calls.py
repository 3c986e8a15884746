"""System calls go on beside merging, also where those that touch a frozen page fail."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeEngine, Mode
from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE
from support.patience import patience, until

#: Seconds of reading beside the scanner. The long form is 60.
SECONDS = float(os.environ.get("KSMPY_CALLS_SECONDS", "2"))
PAGES = 1024
#: Which page is read into, and which part of it.
AT, BYTES = 3, 100

pytestmark = pytest.mark.timeout(120 + 4 * SECONDS)


def _pair(engine: Any, count: int = PAGES) -> tuple[Bytes, Bytes]:
    """Two equal arrays of `count` pages, merged."""
    one = memory.distinct(count)
    two = memory.twin(one)
    for array in (one, two):
        engine.register(array)
    engine.scan(2, eager=True)
    assert engine.stats().merging_pages == 2 * count
    return one, two


def _page(array: Bytes, number: int) -> tuple[int, int]:
    return memory.span(array[number * PAGE : (number + 1) * PAGE])


@contextmanager
def _waiting_for(into: memoryview) -> Iterator[socket.socket]:
    """A thread that waits for data that are to go there; the end that sends them."""
    here, there = socket.socketpair()
    with here, there:
        thread = threading.Thread(target=here.recv_into, args=(into,))
        thread.start()
        start = np.frombuffer(into, dtype=np.uint8).ctypes.data
        until(lambda: _is_given(thread.native_id, start), "the thread is not in recv()")
        try:
            yield there
        finally:
            there.close()
            thread.join()


def _is_given(thread: int | None, address: int) -> bool:
    """Does the thread wait in a call that was given this address?"""
    call = Path(f"/proc/self/task/{thread}/syscall").read_text().split()
    return hex(address) in call


def test_a_page_that_a_thread_reads_into_stays_what_it_is(engine: Any, mode: Mode) -> None:
    """It shares nothing any more, and is counted so; later it is memory of its own again."""
    if not mode.efault_ok:
        pytest.skip("system calls wait here")
    one, two = _pair(engine)
    two[AT * PAGE] ^= 1
    into = two[AT * PAGE : (AT + 1) * PAGE]
    expected = into.copy()
    with _waiting_for(memoryview(into)) as sender:
        engine.scan()
        assert oracle.maps_store(*_page(two, AT))
        stats = engine.stats()
        assert stats.merging_pages == 2 * PAGES - 1
        assert stats.pages_sharing == PAGES - 1
        sender.send(b"x" * BYTES)
        expected[:BYTES] = ord("x")
        until(lambda: bytes(into[:BYTES]) == b"x" * BYTES, "nothing has come")
    engine.scan()
    assert not oracle.maps_store(*_page(two, AT))
    assert np.array_equal(into, expected)
    assert np.array_equal(two[(AT + 1) * PAGE :], one[(AT + 1) * PAGE :])
    assert engine.stats().merging_pages == 2 * PAGES - 1


def test_a_page_that_a_thread_reads_into_is_not_merged(engine: Any, mode: Mode) -> None:
    """The others are; and it is later, once it is equal again."""
    if not mode.efault_ok:
        pytest.skip("system calls wait here")
    one = memory.distinct(PAGES)
    two = memory.twin(one)
    for array in (one, two):
        engine.register(array)
    into = memoryview(two[AT * PAGE : (AT + 1) * PAGE])
    with _waiting_for(into) as sender:
        engine.scan(2, eager=True)
        assert not oracle.maps_store(*_page(two, AT))
        assert oracle.maps_store(*memory.span(two))
        sender.send(bytes(one[AT * PAGE :][:BYTES]))
    until(
        lambda: engine.scan(2, eager=True) and engine.stats().merging_pages == 2 * PAGES,
        lambda: engine.stats(),
    )
    assert np.array_equal(one, two)


def test_what_a_thread_reads_into_is_unmerged_all_the_same(engine: Any, mode: Mode) -> None:
    """Whoever asks for it has it: the thread may wait for ever."""
    if not mode.efault_ok:
        pytest.skip("system calls wait here")
    _, two = _pair(engine)
    with _waiting_for(memoryview(two[AT * PAGE : (AT + 1) * PAGE])) as sender:
        engine.unmerge()
        assert not oracle.maps_store(*memory.span(two))
        sender.send(b"x" * BYTES)
        until(lambda: bytes(two[AT * PAGE :][:BYTES]) == b"x" * BYTES, "nothing has come")


def test_a_thread_that_computes_keeps_nobody_from_merging(engine: Any) -> None:
    """One that runs without the interpreter's lock, and makes no system calls, is told apart."""
    stop = threading.Event()

    def compute() -> None:
        work = np.random.default_rng(1).random(1 << 20)
        while not stop.is_set():
            np.sort(work)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        one = memory.distinct(PAGES)
        for array in (one, memory.twin(one)):
            engine.register(array)
        until(
            lambda: engine.scan(2, eager=True) and engine.stats().merging_pages == 2 * PAGES,
            lambda: engine.stats(),
            limit=patience(60),
        )
    finally:
        stop.set()
        thread.join()


def test_files_are_read_as_they_are_beside_the_scanner(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Again and again, into memory that was merged before, in all the ways that Python has."""
    block = memory.distinct(64).tobytes()
    whole = block * 8
    path = tmp_path / "file"
    path.write_bytes(whole)
    engine = make_engine()
    buffers = [memory.pages(len(whole) // PAGE) for _ in range(4)]
    for buffer in buffers:
        engine.register(buffer)
    engine.knobs.pages_to_scan = 100_000
    engine.knobs.sleep_millisecs = 1
    engine.start()
    rounds = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or not engine.stats().full_scans:
        for buffer in buffers:
            buffer[:: 64 * PAGE] ^= 1
            with path.open("rb", buffering=0) as file:
                assert file.readinto(memoryview(buffer)) == len(whole)
            assert buffer.tobytes() == whole
            with path.open("rb", buffering=0) as file:
                assert os.preadv(file.fileno(), [memoryview(buffer)], 0) == len(whole)
            assert buffer.tobytes() == whole
        rounds += 1
        time.sleep(0.01)
    engine.stop()
    assert rounds
    engine._core.check()
