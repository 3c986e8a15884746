"""A registered buffer, as its user sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ksmpy.context import Ending, unless_scarce
from ksmpy.engine.stats import RegionStats
from ksmpy.errors import KsmpyError
from ksmpy.memory.lifetime import Unowned
from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ksmpy.memory.lifetime import Lifetime

__all__ = ["Home", "Region", "Share"]

_log = logging.getLogger("ksmpy")


class Home(Protocol):
    """What a region needs of the engine that it is registered with."""

    @property
    def inherited(self) -> bool:
        """Whether this process got the engine by fork, and has not made it its own."""

    def region_stats(self, region: Region) -> RegionStats:
        """The counters of a region."""

    def unmerge_region(self, region: Region) -> None:
        """Give a region its own pages back."""

    def release_region(self, region: Region) -> None:
        """End a region, keeping its bytes."""

    def drop_lost(self) -> None:
        """End the regions whose memory was unmapped or replaced."""

    def end_if_dead(self, region: Region) -> None:
        """End a region if its owner is dead without a word."""

    def sweep(self) -> None:
        """End the regions whose owners are gone."""

    def overlapping(self, start: int, end: int) -> Iterator[Region]:
        """The regions that have a page in [start, end); page-aligned."""

    def is_ending(self, start: int, end: int) -> bool:
        """Whether another thread is just ending a region in [start, end)."""

    def inherit(self) -> None:
        """Become the copy in a forked child."""

    def stop_thread(self) -> None:
        """Stop the thread that scans."""


class Region(Ending):
    """The whole pages of one registered buffer.

    It ends by itself when the buffer's owner dies, by release(), and as a context manager at the
    end of the block. Keeping the Region does not keep the buffer. A copy, and what a pickle of it
    becomes, is a record of it that has ended.
    """

    __slots__ = (
        "_home",
        "_lifetime",
        "_number",
        "_released",
        "_reports",
        "address",
        "name",
        "nbytes",
    )

    name: str
    """As given to register(), or made from the owner's type."""
    address: int
    """Of the first whole page."""
    nbytes: int
    """Bytes in whole pages: the fragments at both ends of the buffer are not part of it."""

    def __init__(
        self, home: Home, number: int, name: str, address: int, nbytes: int, life: Lifetime
    ) -> None:
        self._home = home
        self._number = number
        self._lifetime = life
        self._released = False
        self._reports = 0  # of dedup(), that will undo it
        self.name = name
        self.address = address
        self.nbytes = nbytes

    @property
    def pages(self) -> int:
        """Number of 4096-byte pages."""
        return self.nbytes // PAGE_SIZE

    @property
    def _adopted(self) -> bool:
        """Whether enable() found the memory by itself: it gives way to what is registered."""
        return isinstance(self._lifetime, Unowned) and self._lifetime.adopted

    def stats(self) -> RegionStats:
        """Counters of the region. KsmpyError when it has ended."""
        self._require()
        return self._home.region_stats(self)

    def unmerge(self) -> None:
        """Give the region its own pages back; it stays registered and may merge again.

        OSError (ENOMEM, EBUSY) for pages that could not be: they stay merged, no byte changes.
        """
        self._require()
        self._home.unmerge_region(self)

    def release(self) -> None:
        """End the region: its bytes stay, in pages of its own. No-op when it has ended."""
        if not self._released:
            self._home.release_region(self)

    def _require(self) -> None:
        if self._released:
            raise KsmpyError(f"region {self.name!r} has been released")

    def __enter__(self) -> Region:
        self._require()
        return self

    def _leave(self) -> None:
        unless_scarce(
            self.release,
            partial(_log.warning, "region %r stays merged until it ends: %s", self.name),
        )

    def __reduce__(self) -> tuple[Callable[..., Region], tuple[str, int, int]]:
        return _record, (self.name, self.address, self.nbytes)

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<Region {self.name!r} {self.address:#x} {self.pages} pages{state}>"


def _record(name: str, address: int, nbytes: int) -> Region:
    """A region that has ended, wherever it was."""
    region = Region.__new__(Region)
    region.name, region.address, region.nbytes = name, address, nbytes
    region._released = True
    region._reports = 0
    region._lifetime = Unowned(over=True)
    return region


@dataclass(frozen=True, slots=True)
class Share:
    """Two regions (or one, with itself) and how many of their pages lie on common frames."""

    a: Region
    b: Region
    pages: int

    @property
    def names(self) -> tuple[str, str]:
        """The two regions' names."""
        return self.a.name, self.b.name

    @property
    def nbytes(self) -> int:
        """Bytes on common frames."""
        return self.pages * PAGE_SIZE
