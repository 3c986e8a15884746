"""System calls that are made into memory which is frozen just then.

``python -m support.retries LIBRARY FREEZE TRACKING KIND...`` needs ``pause.c`` preloaded: the
engine stands still with the pages frozen. LIBRARY is built from ``calls.c``.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ksmpy

from . import memory
from .oracle import PAGE
from .pause import Pauser, Worker

PAGES = 4
#: How many of the engine's calls of mmap() and its like are tried until one finds the pages frozen.
CALLS = 40
#: How often all of them are tried.
ROUNDS = 10
#: A call that does not come back for so long is waiting, in seconds.
WAITING = 0.2

#: Where each kind of call reads from.
SOURCES = {
    "file": (
        "read", "stored read", "checked read", "pread", "readv", "readv behind a header", "preadv",
        "preadv2", "fread",
    ),
    "pipe": ("read", "readv"),
    "stream": ("read", "recv", "recvfrom", "recvmsg", "epoll_wait"),
    "nothing": ("getrandom", "poll", "sigaltstack"),
    "datagram": ("recv",),
    "counter": ("read",),
}  # fmt: skip


@contextmanager
def _source(kind: str, content: bytes) -> Iterator[int]:
    """A descriptor from which `content` can be read."""
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file.fileno()
    elif kind in ("stream", "datagram"):
        kinds = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
        here, there = socket.socketpair(type=kinds[kind])
        with here, there:
            there.sendall(content)
            yield here.fileno()
    elif kind == "counter":
        fd = os.eventfd(3)
        yield fd
        os.close(fd)
    else:
        out, into = os.pipe()
        os.write(into, content)
        yield out
        os.close(out)
        os.close(into)


class Frozen:
    """Calls on two equal arrays that are about to be merged."""

    def __init__(self, library: str, freeze: str, tracking: str) -> None:
        self._mode: Any = {"freeze": freeze, "tracking": tracking}
        self._pauser = Pauser()
        self._at = (1, 0)  # at which call, in which array, they were found frozen the last time
        self._make: Any = ctypes.CDLL(library).calls_make
        self._make.restype = ctypes.c_long
        self._make.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

    def _once(self, at: tuple[int, int], kind: str, fd: int, first: bytes, before: int) -> Any:
        """What the call returned and left; None: the pages were not frozen at the engine's call."""
        nth, which = at
        pages = memory.distinct(PAGES, seed=7)
        pages[: len(first)] = list(first)
        whole = [memory.guarded(PAGES + 1) for _ in range(2)]
        with ksmpy.Engine(**self._mode) as engine:
            for array in whole:
                array[PAGE:] = pages
                engine.register(array[PAGE:])
            chosen = whole[which][PAGE - before :][: PAGE + before]
            start = memory.address_of(chosen)
            with self._pauser.at("m", nth, lambda: engine.scan(2, eager=True)):
                call = Worker(lambda: self._make(kind.encode(), fd, start, len(chosen)))
                waited = call.waits(WAITING)
            result = call.result()
            engine._core.check()
            met = waited or result == -errno.EFAULT
            return (result, chosen.tobytes()) if met else None

    def make(self, kind: str, source: str, *, before: int) -> tuple[int, bytes, bytes]:
        """A call that begins `before` bytes before the frozen pages; what can be had from there."""
        # The engine looks at libraries that were loaded, for some seconds, with such calls that are
        # counted, too: the one that is wanted may just have had another number.
        for _ in range(ROUNDS):
            for at in [self._at, *itertools.product(range(1, CALLS), range(2))]:
                content = memory.distinct(2, seed=at[0]).tobytes()[: PAGE + before]
                with _source(source, content) as fd:
                    first = struct.pack("ihh", fd, select.POLLIN, 0) if kind == "poll" else b""
                    try:
                        found = self._once(at, kind, fd, first, before)
                    except LookupError:  # there are not so many, now
                        if at == self._at:
                            continue
                        break
                if found:
                    self._at = at
                    return (*found, content)
        raise LookupError("no call has found the pages frozen")


def check(frozen: Frozen, kind: str, source: str, *, before: int) -> None:
    """It comes out as if nothing had been frozen, or fails as it always did."""
    got, left, content = frozen.make(kind, source, before=before)
    say = f"{kind} from {source}, {before} bytes before: {got}"
    if kind == "poll":
        assert got == 1 and left[6] == select.POLLIN, say
    elif kind == "epoll_wait":
        assert got == 1 and left[4] == 17, say
    elif kind == "getrandom":
        assert got == len(left), say
    elif kind == "sigaltstack":
        assert got == 0, say
    else:
        assert got == len(content) and left == content, say


def lost(frozen: Frozen, kind: str, source: str) -> None:
    """What could not be handed over is gone: the call says so, and does not wait for more."""
    got, *_ = frozen.make(kind, source, before=0)
    assert got == -errno.EFAULT or got > 0, f"{kind} from {source}: {got}"


def _rights(library: str) -> list[str]:
    """Of the library's mappings, in order."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return [line.split()[1] for line in maps if line.rstrip().endswith(library)]


def main() -> None:
    """Every kind that was asked for; the library's memory has the rights it had."""
    library = sys.argv[1]
    frozen = Frozen(*sys.argv[1:4])
    before = _rights(library)
    _make(frozen, sys.argv[4:])
    assert before and before == _rights(library), (before, _rights(library))


def _make(frozen: Frozen, chosen: list[str]) -> None:
    for kind in chosen:
        for source, kinds in SOURCES.items():
            if kind in kinds and source in ("datagram", "counter"):
                lost(frozen, kind, source)
            elif kind in kinds:
                check(frozen, kind, source, before=0)
                if source == "file":
                    check(frozen, kind, source, before=PAGE // 2)


if __name__ == "__main__":
    main()
