"""What one engine has registered: coming, going, and what becomes of regions whose owner dies.

State is kept in dicts and changed by single atomic operations, because an owner's death can
call back at any allocation of any thread. Whoever registers holds the engine's lock; a callback
never takes it.
"""

from __future__ import annotations

import errno
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import index

from ksmpy import native, threads
from ksmpy.engine import registry
from ksmpy.engine.numa import Placement
from ksmpy.engine.region import Home, Region
from ksmpy.errors import KsmpyError, RegionError
from ksmpy.memory.buffers import Buffer, locate
from ksmpy.memory.lifetime import Held, Lifetime, Unowned, Watched, lifetime
from ksmpy.memory.maps import (
    AddressSpace,
    Allowance,
    is_unwatched,
    refusal,
    register_error,
    vma_flags,
)
from ksmpy.memory.traverse import Found, merge_ranges
from ksmpy.native import NativeEngine
from ksmpy.own import own

__all__ = ["Regions", "checked_range", "end_all"]

_log = logging.getLogger("ksmpy")

# How many held owners each registration looks at for abandoned ones: more would make registering
# slower, fewer would keep abandoned memory longer.
_SWEPT = 64

_allowance = Allowance()

# To ask owners whether they live, and where their memory is, may take 1 % of the time: the next
# round of questions waits so many times as long as the last one took.
_QUESTION_FACTOR = 100
_ADDRESSES = 1 << 64


class Regions:
    """The regions of one engine, by their numbers and by what must be asked about them."""

    def __init__(
        self,
        engine: NativeEngine,
        placement: Placement,
        serial: int,
        ended: Callable[[int, int], None],
    ) -> None:
        """`ended` is told the address and the bytes of each region that has ended."""
        self._tell_end = ended
        self._native = engine
        self._placement = placement
        self._serial = serial
        # Keyed by the Region, since the native engine uses a number again as soon as it is free.
        self._all: dict[Region, None] = {}
        self._numbers: dict[int, Region] = {}
        # By number: the thread that gives a region's pages back, while it does.
        self._ending: dict[int, int] = {}
        self._held: dict[Region, None] = {}
        self._watched: dict[Region, None] = {}
        self._swept = 0
        # Regions whose mappings' flags have not been read yet: see ask_for_flags().
        self._unasked: dict[Region, None] = {}
        self._asking: dict[object, None] = {}  # who is inside ask_for_flags(), the first one first
        self._movable: dict[Region, None] = {}
        self._next_question = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Region]:
        """All of them, in the order of their registration."""
        return list(self._all)

    def inherit(self) -> None:
        """Become the copy in a forked child, where no other thread is at work."""
        self._asking = {}
        self._ending = {}

    # ---- coming -------------------------------------------------------------------------

    def register(self, home: Home, buffer: object, name: str | None) -> Region:
        """As Engine.register()."""
        self._sweep_some()
        found = locate(buffer)
        self._make_way(home, found)
        return self._add(home, found, _allowance.read(found.pages[1]), name, None)

    def register_range(
        self, home: Home, address: int, nbytes: int, name: str | None, owner: object
    ) -> Region:
        """As Engine.register_range(), of arguments that checked_range() has seen."""
        life = Unowned() if owner is None else Watched(owner)
        self.sweep()
        found = Buffer(address, nbytes, None, None)
        label = name if name is not None else f"range-{address:#x}"
        self._make_way(home, found, repr(label))
        return self._add(home, found, AddressSpace.read(found.pages[1]), label, None, life)

    def track(self, home: Home, found: list[Found]) -> tuple[list[Region], list[tuple[str, str]]]:
        """Register buffers that find_buffers() has found. Returns the regions, those that were
        there before included, and (name, reason) of what cannot be merged.
        """
        self.sweep()
        regions: dict[int, Region] = {}
        refused: list[tuple[str, str]] = []
        wanted: list[Found] = []
        for item in merge_ranges(found):
            known = self._within(item.buffer)
            if known is not None:
                regions[known.address] = known
                continue
            try:
                self._make_way(home, item.buffer)
            except RegionError as error:
                refused.append((item.name, str(error)))
            else:
                wanted.append(item)
        space = AddressSpace.read(max((item.buffer.pages[1] for item in wanted), default=0))
        for item in wanted:
            try:
                region = self._add(home, item.buffer, space, item.name, item.anchor)
            except (RegionError, OSError) as error:
                refused.append((item.name, str(error)))
            else:
                regions[region.address] = region
        return list(regions.values()), refused

    def adopt(
        self, home: Home, pieces: list[tuple[int, int, str]]
    ) -> tuple[list[Region], list[tuple[int, int, str]]]:
        """Register (start, end, name) of page-aligned memory, whoever has it. It gives way to what
        anybody registers. Returns the regions, and (start, end, reason) of what cannot be merged.
        """
        regions: list[Region] = []
        refused: list[tuple[int, int, str]] = []
        space = AddressSpace.read(max((end for _, end, _ in pieces), default=0))
        for start, end, name in pieces:
            found = Buffer(start, end - start, None, None)
            try:
                self._make_way(home, found)
                life = Unowned(adopted=True)
                regions.append(self._add(home, found, space, name, None, life))
            except (RegionError, OSError) as error:
                refused.append((start, end, str(error)))
        return regions, refused

    def _make_way(self, home: Home, buffer: Buffer, what: str = "the buffer") -> None:
        """Refuse what holds no page or overlaps a region; end inherited and adopted regions under
        it.
        """
        start, end = buffer.pages
        if buffer.nbytes == 0:
            raise RegionError(f"{what} is empty")
        if end <= start:
            raise RegionError(f"{what} ({buffer.nbytes} bytes) holds no whole 4096-byte page")
        self._clear(home, start, end, what)
        while registry.until_ended(start, end):
            self._clear(home, start, end, what)

    def _clear(self, home: Home, start: int, end: int, what: str) -> None:
        for region in registry.overlapping(start, end):
            if not region._home.inherited:
                region._home.drop_lost()
                region._home.end_if_dead(region)
                if region._released:
                    continue
                if not region._adopted:
                    whose = "" if region._home is home else " of another engine"
                    raise RegionError(f"{what} overlaps the region {region.name!r}{whose}")
            region.release()

    def _flags(self, start: int, end: int, space: AddressSpace | None, what: str) -> int:
        if space is None:
            return native.VMA_UNKNOWN
        mappings = space.covering(start, end)
        reason = refusal(mappings, start, end)
        if reason is not None:
            raise RegionError(f"{what} cannot be merged: {reason}")
        return vma_flags(mappings)

    def _add(
        self,
        home: Home,
        buffer: Buffer,
        space: AddressSpace | None,
        name: str | None,
        anchor: object,
        life: Lifetime | None = None,
    ) -> Region:
        start, end = buffer.pages
        what = "the buffer" if buffer.owner is not None else repr(name)
        flags = self._flags(start, end, space, what)
        life = life or lifetime(buffer, anchor)
        nodes = self._placement.ask(start, (end - start) // native.PAGE_SIZE)
        # Memory with an owner object cannot be made longer by mremap() behind that object's back.
        growing = native.VMA_GROWING if buffer.owner is None else 0
        number, region = -1, None
        try:
            number = self._native.register(start, end - start, flags | growing)
            if nodes is not None:  # at once: a pass under way may come by before the next one asks
                self._native.set_nodes(number, nodes)
            label = name if name is not None else f"{type(buffer.owner).__name__}-{number}"
            region = Region(home, number, label, start, end - start, life)
            self._note(region, unasked=flags == native.VMA_UNKNOWN)
            registry.anchor(self._serial, home)
            life.watch(partial(self._ended, region))
        except BaseException as error:
            if number >= 0 or not isinstance(error, OSError):
                self._take_back(start, end, region)
            if not isinstance(error, OSError):
                raise
            if space is None and error.errno == errno.EADDRNOTAVAIL:
                return self._add(home, buffer, AddressSpace.read(end), name, anchor, life)
            raise register_error(error) from error
        return region

    def _take_back(self, start: int, end: int, region: Region | None) -> None:
        """After an error in _add(), end what it has begun, if it has. Ctrl-C can come when the
        native engine has the region and nobody knows its number. Nothing else was registered there.
        """
        number = self._native.find_region(start, end - start)
        if number is not None and self._numbers.get(number) in (None, region):
            self._native.release(number, discard=False)
            self._numbers.pop(number, None)
        if region is not None:
            self._forget(region)

    def _note(self, region: Region, *, unasked: bool) -> None:
        self._all[region] = None
        self._numbers[region._number] = region
        self._ending.pop(region._number, None)  # Ctrl-C may have left it there
        if unasked:
            self._unasked[region] = None
        if isinstance(region._lifetime, Held):
            self._held[region] = None
        elif isinstance(region._lifetime, Watched):
            self._watched[region] = None
        if region._lifetime.can_move:
            self._movable[region] = None

    # ---- who is where -------------------------------------------------------------------

    def by_number(self) -> dict[int, Region]:
        """The regions by the native engine's numbers."""
        return {region._number: region for region in self.all()}

    def overlapping(self, start: int, end: int) -> Iterator[Region]:
        """The regions that have a page in [start, end); page-aligned."""
        while start < end:
            try:
                number = self._native.find_region(start, end - start)
            except KsmpyError:  # closed
                return
            region = self._numbers.get(number) if number is not None else None
            if region is None:
                return
            start = region.address + region.nbytes
            yield region

    def _within(self, buffer: Buffer) -> Region | None:
        """The region that holds all of the buffer's whole pages."""
        start, end = buffer.pages
        for region in self.overlapping(start, end) if start < end else ():
            if region.address <= start and end <= region.address + region.nbytes:
                return region
        return None

    # ---- going --------------------------------------------------------------------------

    def sweep(self, *, thorough: bool = True) -> None:
        """End the regions whose owners only ksmpy still holds, are dead without a word, or have
        other memory. Unless `thorough`, only from time to time.
        """
        begin = own.monotonic()
        if not thorough and begin < self._next_question:
            return
        for region in list(self._held):
            if region._lifetime.abandoned():
                self._ended(region)
        for region in list(self._watched):
            if region._lifetime.abandoned():
                self._ended(region, gone=True)
        for region in list(self._movable):
            if region._lifetime.moved():
                self._ended(region, gone=True)
        self._next_question = begin + _QUESTION_FACTOR * (own.monotonic() - begin)

    def end_if_dead(self, region: Region) -> None:
        """End a region if its owner is dead without a word."""
        if region in self._watched and region._lifetime.abandoned():
            self._ended(region, gone=True)

    def _sweep_some(self) -> None:
        held = list(self._held)
        first = self._swept if self._swept < len(held) else 0
        self._swept = first + _SWEPT
        for region in held[first : first + _SWEPT]:
            if region._lifetime.abandoned():
                self._ended(region)

    def drop_lost(self) -> None:
        """End the regions whose memory was unmapped or replaced; what is left of it stays."""
        try:
            lost = set(self._native.find_lost())
        except KsmpyError:  # another thread has closed it, and ended them all
            return
        for region in self.all() if lost else ():
            if region._number in lost:
                level = logging.DEBUG if region._adopted else logging.WARNING
                _log.log(level, "region %r lost its memory and was released", region.name)
                self.end(region, discard=False)

    def drop_replaced(self) -> None:
        """End the adopted regions of which a part was unmapped and mapped again before a pass came
        by. The new memory is registered with no userfaultfd, so no page of it can be merged.
        """
        regions = [region for region in self.all() if region._adopted]
        ends = (region.address + region.nbytes for region in regions)
        space = AddressSpace.read(max(ends, default=0))
        for region in regions:
            if any(
                is_unwatched(each)
                for each in space.covering(region.address, region.address + region.nbytes)
            ):
                _log.debug("region %r has other memory, and was released", region.name)
                self._ended(region)

    def _ended(self, region: Region, *, gone: bool = False) -> None:
        """End a region whose owner dies, or is held by ksmpy only; or whose owner is dead or has
        other memory, so that these bytes may be anybody's by now (`gone`).

        This can run in any thread at any time. A region that cannot be given back, for want of
        memory above all, stays merged and is tried again later.
        """
        try:
            self.end(region, discard=not gone and region._lifetime.discard)
        except BaseException as error:
            kept = region in self._all
            if kept:
                # If there is no room on the stack for what follows, a later sweep finds it again.
                life, region._lifetime = region._lifetime, Unowned(over=True)
                self._held[region] = None
                self._watched.pop(region, None)
                self._movable.pop(region, None)
                life.drop()
            words = "released yet" if kept else "released"
            _log.error("region %r cannot be %s: %s", region.name, words, error)
            if not isinstance(error, Exception):
                raise

    def end(self, region: Region, *, discard: bool) -> None:
        """End a region; its bytes stay unless `discard` says that nobody needs them. No-op for
        one that has ended. OSError when its pages cannot be given back: it stays.
        """
        try:
            # Several threads may want to end it: the one that takes it out of the dict does so.
            others = self._all.pop(region, region) is region
            if not others:
                self._release(region, discard)
                self._forget(region)
        except BaseException as error:
            # Also KeyboardInterrupt, at any place above, and RecursionError, after which nothing
            # may be asked, either: then it stays, and is ended once more.
            self._all[region] = None
            if not region._released and self._is_native(region):
                self._numbers[region._number] = region
                raise
            self._forget(region)
            if not _is_over(error):
                raise
            return
        # Who ends a region may do with its memory what it likes, so it has to be over by then.
        if others and registry.until_ended(region.address, region.address + region.nbytes):
            if region in self._all:  # it could not be ended there
                self.end(region, discard=discard)

    def is_ending(self, start: int, end: int) -> bool:
        """Whether another thread is giving back the pages of the lowest region in [start, end)."""
        try:
            number = self._native.find_region(start, end - start) if self._ending else None
        except KsmpyError:  # closed
            return False
        this = threads.ident()
        return number is not None and self._ending.get(number, this) != this

    def _release(self, region: Region, discard: bool) -> None:
        try:
            self._ending[region._number] = threads.ident()
            # As soon as it is released, a new region may get the number.
            known = self._numbers.pop(region._number, None)
            if known is not None and known is not region:
                self._numbers[region._number] = known
            elif known is region or self._is_native(region):
                self._native.release(region._number, discard=discard)
        finally:
            self._ending.pop(region._number, None)

    def _is_native(self, region: Region) -> bool:
        try:
            return self._native.find_region(region.address, region.nbytes) == region._number
        except KsmpyError:  # closed
            return False

    def _forget(self, region: Region) -> None:
        region._released = True
        self._all.pop(region, None)
        self._held.pop(region, None)
        self._watched.pop(region, None)
        self._tell_end(region.address, region.nbytes)
        self._unasked.pop(region, None)
        self._movable.pop(region, None)
        region._lifetime.drop()
        if not self._all:
            registry.let_go(self._serial)

    # ---- what their mappings are like ----------------------------------------------------

    def ask_for_flags(self) -> None:
        """Read the mappings' flags of all regions that were registered without, in one go.

        One thread at a time does so: for a second one a pass might merge pages of these regions
        between the reading and the answer.
        """
        this = object()
        try:
            self._asking[this] = None
            if not self._unasked or list(self._asking)[0] is not this:
                return
            regions = [region for region in list(self._unasked) if not region._released]
            ends = (region.address + region.nbytes for region in regions)
            space = AddressSpace.read(max(ends, default=0))
            for region in regions:
                self._tell_flags(region, space)
        finally:
            self._asking.pop(this, None)

    def _tell_flags(self, region: Region, space: AddressSpace) -> None:
        start, end = region.address, region.address + region.nbytes
        mappings = space.covering(start, end)
        ours = (self._native.freeze, self._native.tracking) != ("signal", "checksum")
        reason = refusal(mappings, start, end, registered=ours)
        # Memory that is not the owner's any more, whatever its flags, is found lost by the pass.
        lost = refusal([replace(each, details=None) for each in mappings], start, end) is not None
        try:
            if reason is None or lost:
                self._native.set_vma_flags(region._number, start, vma_flags(mappings))
            else:
                _log.warning("region %r was released: %s", region.name, reason)
                self.end(region, discard=False)
        except OSError as error:
            if not region._released and error.errno != errno.ENOENT:  # ENOENT: it ended meanwhile
                raise
        self._unasked.pop(region, None)


def _is_over(error: BaseException) -> bool:
    """Whether another thread has ended the region, or closed the engine with all of them."""
    return type(error) is KsmpyError or (isinstance(error, OSError) and error.errno == errno.ENOENT)


def end_all(engine: NativeEngine) -> None:
    """End what the native engine has registered, before it is closed: nobody may know of it where
    one error came in the middle of another.
    """
    while (number := engine.find_region(0, _ADDRESSES // 2)) is not None:
        try:
            engine.release(number, discard=False)
        except OSError as error:
            if error.errno != errno.ENOENT:  # another thread was about to end it
                raise


def checked_range(address: int, nbytes: int, name: str | None, owner: object) -> tuple[int, int]:
    """The arguments of register_range() as numbers. TypeError for what is none, or for an owner
    that takes no weak reference; RegionError for what is no range of addresses.
    """
    start, size = index(address), index(nbytes)
    if start < 0 or size < 0 or start + size > _ADDRESSES:
        label = name if name is not None else f"range-{start:#x}"
        raise RegionError(f"{label} ({size} bytes at {start:#x}) is no range of addresses")
    if owner is not None:
        weakref.ref(owner)
    return start, size
