"""What is where in a store's file, and which parts of it have memory, by the kernel's word."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

from ksmpy import Store

from .oracle import PAGE

#: The store's lock, a pthread_mutex_t: behind the shape.
LOCK_AT = 64


def frames_start(fd: int) -> int:
    """Where the frames begin in a store's file, which they end."""
    nodes, shift = struct.unpack_from("<II", os.pread(fd, 40, 0), 24)
    return int(os.fstat(fd).st_size - (nodes << shift) * PAGE)


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that have memory."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # none up to the end
                return
            raise
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < end:
            yield start, stop
        start = stop


def frame_memory(store: Store) -> int:
    """How many bytes of memory a store's frames have."""
    fd = store.fileno()
    end = os.fstat(fd).st_size
    return sum(stop - start for start, stop in extents(fd, frames_start(fd), end))
