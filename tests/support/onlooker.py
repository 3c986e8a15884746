"""Reading a process's memory from outside, as debuggers and profilers do."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from .oracle import PAGE

#: Bigger mappings are not read: they are no window and no shadow of a test's region.
BIGGEST = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class _Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def read_all_memory(stop: threading.Event | None = None) -> int:
    """Reads each page of this process's anonymous memory once; returns how many could be read."""
    buffer = ctypes.create_string_buffer(PAGE)
    here, count = _Part(ctypes.addressof(buffer), PAGE), 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " rw-p 00000000 00:00 0" not in line or end - start > BIGGEST:
            continue
        for page in range(start, end, PAGE):
            if stop is not None and stop.is_set():
                return count
            there = _Part(page, PAGE)
            got = _libc.process_vm_readv(
                os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0
            )
            count += got == PAGE
    return count
