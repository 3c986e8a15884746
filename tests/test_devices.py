"""Devices that write into memory with no thread waiting: io_uring, libaio, and others by name.

What they write goes past the page tables, where only "uffd-move" refuses their pages.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import ksmpy
from conftest import Mode
from ksmpy import native
from support import memory
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


def test_who_asks_for_it_gets_it() -> None:
    """freeze="uffd-wp" is taken at its word: the program knows what its devices do."""
    arrays = [memory.distinct(64, seed=6)]
    arrays.append(memory.twin(arrays[0]))
    with _io_uring(), ksmpy.Engine(freeze="uffd-wp") as engine:
        for array in arrays:
            engine.register(array)
        engine.scan(2, eager=True)
        assert engine.stats().pages_sharing == 64
