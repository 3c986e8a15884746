"""What owners do to registered memory before, and while, a region of it is released.

``python -m support.vanishing SHAPE FREEZE TRACKING`` needs ``pause.c`` preloaded: the memory goes
at every call that the releasing thread makes.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable

import ksmpy

from . import memory
from .libc import libc
from .memory import Bytes
from .oracle import PAGE
from .pause import Pauser

PAGES, ZEROS = 48, 16
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAP_FIXED = 0x10


def _map(start: int, pages: int, rights: int, flags: int, fd: int = -1) -> None:
    assert libc.mmap(start, pages * PAGE, rights, flags | _MAP_FIXED, fd, 0) == start


def _unmap(start: int, pages: int) -> None:
    assert libc.munmap(start, pages * PAGE) == 0


def _file(start: int, pages: int, flags: int) -> None:
    with open(sys.executable, "rb") as file:
        _map(start, pages, mmap.PROT_READ, flags, file.fileno())


#: What becomes of so many pages at an address, by name.
SHAPES: dict[str, Callable[[int, int], None]] = {
    "gone": _unmap,
    "partly gone": lambda start, pages: _unmap(start + 8 * PAGE, pages - 16),
    "end gone": lambda start, pages: _unmap(start + pages // 2 * PAGE, pages - pages // 2),
    "replaced": lambda start, pages: _map(start, pages, _RW, _ANONYMOUS),
    "partly replaced": lambda start, pages: _map(start + 8 * PAGE, pages - 16, _RW, _ANONYMOUS),
    "reserved": lambda start, pages: _map(start, pages, 0, _ANONYMOUS),
    "a file": lambda start, pages: _file(start, pages, mmap.MAP_PRIVATE),
    "partly a file": lambda start, pages: _file(start + 8 * PAGE, pages - 16, mmap.MAP_SHARED),
}


class Doomed:
    """Equal arrays with zeros at their ends, merged; the second one's memory is about to go."""

    def __init__(self, freeze: str, tracking: str) -> None:
        self.engine = ksmpy.Engine(freeze=freeze, tracking=tracking)
        self.kept = memory.distinct(PAGES + ZEROS, seed=41)
        self.kept[PAGES * PAGE :] = 0
        self.wanted = self.kept.tobytes()
        self.doomed = self._place()
        self.engine.register(self.kept)
        self.region = self.engine.register_range(self.doomed, (PAGES + ZEROS) * PAGE)
        self.engine.scan(2, eager=True)
        assert self.engine.stats().pages_sharing >= PAGES

    def _place(self) -> int:
        array: Bytes = memory.guarded(PAGES + ZEROS)
        array[:] = self.kept
        return memory.address_of(array)

    def vanish(self, shape: str) -> None:
        """The owner does that to the memory."""
        SHAPES[shape](self.doomed, PAGES + ZEROS)

    def end(self) -> None:
        """The region is gone, the other one as it was; no frame is left once that has gone too."""
        assert len(self.engine.regions()) == 1
        assert self.kept.tobytes() == self.wanted
        self.engine.scan(eager=True)
        self.engine._core.check()
        for region in self.engine.regions():
            region.release()
        self.engine.scan(4, eager=True)  # looks for what went out of sight
        assert self.engine.stats().frame_bytes == 0
        self.engine.close()
        assert self.kept.tobytes() == self.wanted
        libc.munmap(self.doomed, (PAGES + ZEROS) * PAGE)


def main(argv: list[str]) -> None:
    """At every call there is."""
    shape, *mode = argv
    ksmpy.Engine().close()  # loads the extension
    pauser, done = Pauser(), 0
    while True:
        life = Doomed(*mode)
        try:
            with pauser.at("", done + 1, life.region.release):
                life.vanish(shape)
        except LookupError:
            break
        life.end()
        done += 1
    assert done > 5, f"{done} calls only: this proves nothing"


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
