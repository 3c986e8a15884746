"""The engine: registers buffers, merges their equal pages, gives everything back.

State is kept in dicts and changed by single atomic operations, because an owner's death can
call back into the engine at any allocation of any thread. The lock below orders what users
start and stop; a callback never takes it.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import index
from types import TracebackType
from typing import Any

from ksmpy import native
from ksmpy.engine import notices, numa, registry
from ksmpy.engine.knobs import Knobs, Settings, check_modes
from ksmpy.engine.ksmd import Daemon
from ksmpy.engine.region import Region
from ksmpy.engine.stats import Coverage, RegionStats, ScanResult, Share, Stats
from ksmpy.errors import KnobError, KsmpyError, RegionError, StoreError
from ksmpy.memory.buffers import Buffer, Held, Lifetime, Unowned, Watched, lifetime, locate
from ksmpy.memory.maps import AddressSpace, Allowance, refusal, register_error, vma_flags
from ksmpy.memory.walk import Found, find_buffers, merge_ranges
from ksmpy.native import NativeEngine
from ksmpy.store.store import MORE_ROOM, Store, attach
from ksmpy.watch import display

__all__ = ["Engine"]

_log = logging.getLogger("ksmpy")

# Of the held owners that each registration looks at.
_SWEPT = 64

_allowance = Allowance()

# Between two slices of a scan() Ctrl-C is looked at: 8192 scattered pages merge in 80 ms.
_SLICE = 8192
# Asking owners where their memory is takes the background scanner 1 % of its time at most.
_QUESTION_FACTOR = 100
_ADDRESSES = 1 << 64


class Engine:
    """Merges equal pages of registered buffers, in place.

    `store`: None for a private store; a Store, or the name of one (made if it is missing), to
    share frames with other processes. `topology`: None for the machine's own NUMA nodes, or
    an object with `.nodes` and `.node_of_pages(addresses)`. `freeze`: "auto", "uffd-wp",
    "uffd-move", "uffd-remap" or "signal"; `tracking`: "auto", "wp-async" or "checksum".

    A context manager: close() at the end unmerges everything that there is memory for; what
    stays merged keeps the engine open, and a warning says so. An engine inherited by fork
    lets regions be released and closes. On a shared store its first other use makes it one of the
    child's own, with the same regions and knobs, run being 0; on a private store everything else
    raises KsmpyError.

    Raises Unsupported when the machine lacks what was asked for, StoreError for a store that
    cannot be used, ValueError for other words.
    """

    def __init__(
        self,
        *,
        store: str | Store | None = None,
        topology: numa.Topology | None = None,
        freeze: str = "auto",
        tracking: str = "auto",
    ) -> None:
        check_modes(freeze, tracking)
        native.require()
        placement = self._placement = numa.Placement(topology)
        self._native, self._store = attach(
            store,
            partial(NativeEngine, freeze, tracking, len(placement.nodes), placement.node_ids),
        )
        self._daemon = Daemon(weakref.ref(self), self._native.interrupt)
        self._settings = Settings()
        self._lock = threading.RLock()
        # By identity, for the native engine gives a number again as soon as it is free.
        self._regions: dict[Region, None] = {}
        self._numbers: dict[int, Region] = {}
        self._held: dict[Region, None] = {}
        self._swept = 0
        # Registered before anybody asked what their mappings are like.
        self._unasked: dict[Region, None] = {}
        self._asking = threading.Lock()
        self._movable: dict[Region, None] = {}
        self._next_question = 0.0
        self._coverage: Coverage | None = None
        self._scanning: dict[object, None] = {}
        self._run = 0
        self._inherited = False
        self._pass_begins = True
        self._waiting = False
        self._told_full = False
        self._serial = registry.enter(self)
        finalizer = weakref.finalize(self, _finalize, self._serial, self._native, self._daemon)
        finalizer.atexit = False
        notices.fell_back(
            self.freeze if freeze == "auto" else "", self.tracking if tracking == "auto" else ""
        )

    # ---- what the user sees -------------------------------------------------------------

    @property
    def freeze(self) -> str:
        """How pages are frozen: what "auto" chose."""
        return self._native.freeze

    @property
    def tracking(self) -> str:
        """How writes are noticed: what "auto" chose."""
        return self._native.tracking

    @property
    def knobs(self) -> Knobs:
        """The kernel's knobs, as attributes; assigning one acts at once."""
        return Knobs(self, self._settings)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._native.closed

    def register(self, buffer: Any, /, *, name: str | None = None) -> Region:
        """Adopt the whole pages of a buffer, in place, until its owner dies or release().

        `buffer`: any contiguous object with the buffer protocol whose memory is private,
        anonymous and writable (the object itself may be read-only). It takes the process two
        mappings where writes are tracked or the freeze is not "signal". Of thousands that are
        registered one by one, those whose mapping turns out in the next pass to be locked, kept
        from children, or the like are released then, with a warning in the log.

        Raises TypeError without a buffer, RegionError saying why it cannot be merged, or that no
        mappings are left.
        """
        with self._lock:
            self.require_open()
            self._sweep_some()
            found = locate(buffer)
            self._make_way(found)
            return self._adopt(found, _allowance.read(found.pages[1]), name, None)

    def register_range(
        self, address: int, nbytes: int, *, name: str | None = None, owner: object = None
    ) -> Region:
        """Adopt the whole pages of memory that is known by its address only, in place.

        It must be private, anonymous and writable. The region ends by release(), when `owner` (any
        object that takes weak references) dies, and when the memory is unmapped; whoever frees or
        changes it need not care. Its bytes are never thrown away. Its last page is not merged, so
        that mremap() cannot make a merged mapping longer: it fails (EFAULT), and realloc() copies.

        Raises TypeError for what is no address, number of bytes or owner, RegionError saying why
        it cannot be merged.
        """
        start, size = index(address), index(nbytes)
        label = name if name is not None else f"range-{start:#x}"
        if start < 0 or size < 0 or start + size > _ADDRESSES:
            raise RegionError(f"{label} ({size} bytes at {start:#x}) is no range of addresses")
        life = Unowned() if owner is None else Watched(owner, discard=False)
        if owner is not None:
            weakref.ref(owner)  # TypeError for what takes none
        with self._lock:
            self.require_open()
            self.sweep()
            found = Buffer(start, size, None, None)
            self._make_way(found, repr(label))
            return self._adopt(found, AddressSpace.read(found.pages[1]), label, None, life)

    def track(self, obj: object, /, *, min_bytes: int = 1 << 20) -> list[Region]:
        """Register every buffer of at least `min_bytes` bytes that is reachable from `obj`.

        Follows references, and calls nothing of what it finds: no object copies or serialises
        itself. Buffers that cannot be merged are passed over. Returns the regions, those that
        were there before included.
        """
        return self.track_all((obj,), min_bytes=min_bytes)[0]

    def track_all(
        self, objs: tuple[object, ...], *, min_bytes: int
    ) -> tuple[list[Region], list[tuple[str, str]]]:
        """As track() for several objects; also (name, reason) of what was passed over."""
        self.require_open()
        found, hidden = find_buffers(objs, min_bytes)
        regions, refused = self.track_found(found)
        return regions, hidden + refused

    def track_found(self, found: list[Found]) -> tuple[list[Region], list[tuple[str, str]]]:
        """Register buffers that find_buffers() has found."""
        with self._lock:
            self.require_open()
            self.sweep()
            regions: dict[int, Region] = {}
            refused: list[tuple[str, str]] = []
            wanted: list[Found] = []
            for item in merge_ranges(found):
                known = registry.within(item.buffer, self)
                if known is not None:
                    regions[known.address] = known
                    continue
                try:
                    self._make_way(item.buffer)
                except RegionError as error:
                    refused.append((item.name, str(error)))
                else:
                    wanted.append(item)
            space = AddressSpace.read(max((item.buffer.pages[1] for item in wanted), default=0))
            for item in wanted:
                try:
                    region = self._adopt(item.buffer, space, item.name, item.anchor)
                except (RegionError, OSError) as error:
                    refused.append((item.name, str(error)))
                else:
                    regions[region.address] = region
            return list(regions.values()), refused

    def adopt(
        self, pieces: list[tuple[int, int, str]]
    ) -> tuple[list[Region], list[tuple[int, int, str]]]:
        """Register (start, end, name) of page-aligned memory, whoever has it. It gives way to what
        anybody registers. Returns the regions, and (start, end, reason) of what cannot be merged.
        """
        regions: list[Region] = []
        refused: list[tuple[int, int, str]] = []
        with self._lock:
            self.require_open()
            space = AddressSpace.read(max((end for _, end, _ in pieces), default=0))
            for start, end, name in pieces:
                found = Buffer(start, end - start, None, None)
                try:
                    self._make_way(found)
                    life = Unowned(adopted=True)
                    regions.append(self._adopt(found, space, name, None, life))
                except (RegionError, OSError) as error:
                    refused.append((start, end, str(error)))
        return regions, refused

    @property
    def coverage(self) -> Coverage | None:
        """What the last look of enable()'s for memory to adopt has found; None without one."""
        return self._coverage

    def start(self) -> None:
        """Scan in the background: knobs.run = 1."""
        self.knobs.run = 1

    def stop(self) -> None:
        """Scan no more, and wait until the scanner has stopped; what is merged stays merged:
        knobs.run = 0.
        """
        self.knobs.run = 0

    def scan(
        self, passes: int = 1, *, eager: bool = False, max_pages: int | None = None
    ) -> ScanResult:
        """Scan in this thread, without the GIL: `passes` passes over all regions.

        `eager`: do not wait a pass to see whether a page is volatile, merge what is equal now.
        `max_pages`: go on where the last scan ended, and scan at most so many pages.
        """
        if passes < 1 or (max_pages is not None and max_pages < 1):
            raise ValueError("passes and max_pages must be at least 1")
        self.require_open()
        begin = time.perf_counter()
        flags = native.SCAN_EAGER if eager else 0
        if max_pages is None:
            flags |= native.SCAN_RESTART
            self._pass_begins = True
        token = object()
        self._scanning[token] = None
        try:
            self._ask_for_flags()
            total = self._passes(passes, flags, max_pages)
        finally:
            self._scanning.pop(token, None)
        return total + ScanResult(seconds=time.perf_counter() - begin)

    def stats(self) -> Stats:
        """The counters, settled while knobs.run is 0 and nothing scans.

        Looks for merged pages that were written in the meantime: about 1 ms per merged GiB.
        """
        self._settle()
        with self._refusals():
            return Stats.from_native(self._native.stats())

    def regions(self) -> tuple[Region, ...]:
        """The registered regions, in the order of their registration."""
        self.require_open()
        self.sweep()
        return tuple(self._regions)

    def shares(self) -> list[Share]:
        """Which regions have how many pages on common frames, most first."""
        self._settle()
        found = []
        by_number = {region._number: region for region in list(self._regions)}
        for first, second, pages in self._native.shares():
            a, b = by_number.get(first), by_number.get(second)
            if a is not None and b is not None:
                found.append(Share(a, b, pages))
        return sorted(found, key=lambda share: -share.pages)

    def unmerge(self) -> None:
        """Give every region its own pages back: knobs.run = 2, then the earlier run again.

        OSError (ENOMEM, EBUSY) when pages could not be: they stay merged, and run is 0.
        """
        self.require_open()
        earlier = self._run
        self.set_run(2)
        self.set_run(earlier)

    def check(self) -> None:
        """Walk all of the engine's structures; KsmpyError naming the first that is wrong."""
        self.require_open()
        with self._refusals():
            self._native.check()

    def close(self) -> None:
        """Stop, release every region with its bytes in pages of its own, free everything.

        OSError when a region could not be given its pages back: it stays registered, the
        engine open, and close() can be tried again. No-op on a closed engine.
        """
        if not self._native.closed and self._native.forked():
            self.inherit()
        self._daemon.stop()
        with self._lock:
            if self._native.closed:
                return
            self._run = 0
            first_error: OSError | None = None
            for region in list(self._regions):
                try:
                    self._end(region, discard=False)
                except OSError as error:
                    first_error = first_error or error
            if first_error is not None:
                raise first_error
            registry.leave(self._serial)
            self._native.close()
            if self._store is not None:
                self._store.close()

    def leave(self) -> None:
        """close() where nobody can act on its error: without memory for it, pages stay merged.

        They are right as they are. The engine stays open, stopped, until their owners die or
        close() is called again; a warning says so.
        """
        try:
            self.close()
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            _log.warning(
                "%d regions stay merged, and their engine open until they end: %s",
                len(self._regions),
                error.strerror,
            )

    def __enter__(self) -> Engine:
        self.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._regions)} regions, run={self._run}"
        return f"<Engine {self.freeze}/{self.tracking} {state}>"

    def __str__(self) -> str:
        return display.engine_text(self)

    def _repr_html_(self) -> str:
        return display.engine_html(self)

    # ---- for Region, Knobs and the daemon -----------------------------------------------

    def require_open(self) -> None:
        """Raise KsmpyError when closed, or inherited by fork with a private store.

        An inherited engine on a shared store becomes this process's own; StoreError when it
        cannot (EUSERS, ETIMEDOUT, ...), to be tried again.
        """
        if self._inherited or self._native.forked():
            self.inherit()
            if self._store is None:
                raise KsmpyError(
                    "this engine belongs to the parent process:"
                    " make an Engine of its own in the child, or share a store"
                )
            self._revive(self._store)

    def get_run(self) -> int:
        """The knob run."""
        if self._native.closed:
            raise KsmpyError("engine is closed")
        return 0 if self._native.forked() else self._run

    def set_run(self, value: int) -> None:
        """Act on a write to run; OSError when unmerging fails, run is 0 then."""
        if value == 1 and self._daemon.running:
            return
        # Outside the lock: the thread may be running someone's destructor that wants it.
        self._daemon.stop()
        with self._lock:
            self._daemon.stop()
            self._run = 0
            if value == 2:
                self._native.unmerge()
            self._run = value
            if value == 1:
                self._daemon.start()

    def get_native(self, knob: int) -> int:
        """A knob of the native engine's."""
        return self._native.knob_get(knob)

    def set_native(self, knob: int, value: int) -> None:
        """Set a knob of the native engine's."""
        try:
            self._native.knob_set(knob, value)
        except OSError as error:
            if self._store is not None and error.errno == errno.ETIMEDOUT:
                raise self._store.refusal(error) from None
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                raise
            held = None
            if self._store is not None and error.errno == errno.EBUSY:
                held = self._store.held(knob)
            raise held or KnobError(error.errno, error.strerror) from None

    def region_stats(self, region: Region) -> RegionStats:
        """A region's counters."""
        self._settle()
        with self._refusals():
            values = self._native.region_stats(region._number)
            return RegionStats.from_native(values, self._native.stats())

    def unmerge_region(self, region: Region) -> None:
        """Give one region its own pages back."""
        self.require_open()
        self._native.unmerge_region(region._number)

    def release_region(self, region: Region) -> None:
        """End a region, keeping its bytes."""
        self._end(region, discard=False)

    def batch(self, pages: int) -> ScanResult:
        """Scan up to `pages` pages in the background."""
        self.sweep(thorough=False)
        # A scan that somebody asked for has the cursor to itself.
        if not pages or self._scanning:
            return ScanResult()
        try:
            result = self._slice(pages, 0)
        except StoreError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            if not self._waiting:
                _log.warning("ksmd waits: %s", error.strerror)
            self._waiting = True
            return ScanResult()
        self._waiting = False
        return result

    def batch_failed(self, error: Exception) -> None:
        """The background thread ends because of this error."""
        _log.error("ksmd stops, run becomes 0: %s: %s", type(error).__name__, error)
        self._daemon.forget()
        self._run = 0

    def covered(self, coverage: Coverage) -> None:
        """Note what a look for memory to adopt has found."""
        self._coverage = coverage

    def sweep(self, *, thorough: bool = True) -> None:
        """End the regions whose owners nobody but us holds any more, or that have moved away:
        the latter only from time to time unless `thorough`.
        """
        for region in list(self._held):
            if region._lifetime.abandoned():
                self._ended(region)
        begin = time.monotonic()
        if self._movable and (thorough or begin >= self._next_question):
            for region in list(self._movable):
                if region._lifetime.moved():
                    self._ended(region, moved=True)
            self._next_question = begin + _QUESTION_FACTOR * (time.monotonic() - begin)

    def _sweep_some(self) -> None:
        held = list(self._held)
        first = self._swept if self._swept < len(held) else 0
        self._swept = first + _SWEPT
        for region in held[first : first + _SWEPT]:
            if region._lifetime.abandoned():
                self._ended(region)

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

    @property
    def inherited(self) -> bool:
        """Whether this process got the engine by fork, and has not made it its own."""
        return self._inherited or self._native.forked()

    def inherit(self) -> None:
        """Become the copy in a forked child: no thread, no scanning, regions stay."""
        if not self._inherited:
            self._inherited = True
            self._run = 0
            self._lock = threading.RLock()
            self._asking = threading.Lock()
            self._daemon.forget()
            self._native.forget_threads()
            self._scanning = {}

    def all_regions(self) -> list[Region]:
        """The regions, whether the engine is this process's own or inherited."""
        return list(self._regions)

    def stop_thread(self) -> None:
        """Stop the background thread; run stays as it is."""
        self._daemon.stop()

    def drop_lost(self) -> None:
        """End the regions whose memory was unmapped or replaced; what is left of it stays."""
        lost = set(self._native.find_lost())
        for region in list(self._regions) if lost else ():
            if region._number in lost:
                level = logging.DEBUG if region.adopted else logging.WARNING
                _log.log(level, "region %r lost its memory and was released", region.name)
                self._end(region, discard=False)

    # ---- inside -------------------------------------------------------------------------

    def _make_way(self, buffer: Buffer, what: str = "the buffer") -> None:
        """Refuse what holds no page or overlaps a region; end inherited and adopted regions under
        it.
        """
        start, end = buffer.pages
        if buffer.nbytes == 0:
            raise RegionError(f"{what} is empty")
        if end <= start:
            raise RegionError(f"{what} ({buffer.nbytes} bytes) holds no whole 4096-byte page")
        for region in registry.overlapping(start, end):
            if not region.engine.inherited:
                region.engine.drop_lost()
                if region.released:
                    continue
                if region.adopted:
                    region.release()
                    continue
                whose = "" if region.engine is self else " of another engine"
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

    def _adopt(
        self,
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
        # Of an object it is known that it does not grow while we look at it.
        growing = native.VMA_GROWING if buffer.owner is None else 0
        try:
            number = self._native.register(start, end - start, flags | growing)
        except OSError as error:
            if space is None and error.errno == errno.EADDRNOTAVAIL:
                return self._adopt(buffer, AddressSpace.read(end), name, anchor, life)
            raise register_error(error) from error
        if nodes is not None:  # a pass under way comes by before the next one asks
            self._native.set_nodes(number, nodes)
        label = name if name is not None else f"{type(buffer.owner).__name__}-{number}"
        region = Region(self, number, label, start, end - start, life)
        self._regions[region] = None
        self._numbers[number] = region
        if flags == native.VMA_UNKNOWN:
            self._unasked[region] = None
        if isinstance(life, Held):
            self._held[region] = None
        if life.can_move:
            self._movable[region] = None
        registry.anchor(self._serial, self)
        life.watch(partial(self._ended, region))
        return region

    def _ended(self, region: Region, *, moved: bool = False) -> None:
        """The owner dies, has been left to us alone, or has `moved`. Runs in any thread, at any
        time. What cannot be given back, for want of memory above all, stays merged, and is tried
        again.
        """
        try:
            self._end(region, discard=not moved and region._lifetime.discard)
        except BaseException as error:
            if region in self._regions:
                _log.error("region %r cannot be released yet: %s", region.name, error)
                region._lifetime.drop()
                region._lifetime = Unowned(over=True)
                self._movable.pop(region, None)
                self._held[region] = None
            else:
                _log.error("region %r could not be released: %s", region.name, error)
            if not isinstance(error, Exception):
                raise

    def _end(self, region: Region, *, discard: bool) -> None:
        # Of several that want to end it, the one that takes it out of the dict does.
        if self._regions.pop(region, region) is region:
            return
        self._numbers.pop(region._number, None)  # the number may be another's from here on
        try:
            self._native.release(region._number, discard=discard)
        except BaseException:  # Ctrl-C may come before the call or after it
            if self._is_native(region):
                self._regions[region] = None
                self._numbers[region._number] = region
            else:
                self._forget(region)
            raise
        self._forget(region)

    def _is_native(self, region: Region) -> bool:
        try:
            return self._native.find_region(region.address, region.nbytes) == region._number
        except KsmpyError:  # closed
            return False

    def _forget(self, region: Region) -> None:
        self._regions.pop(region, None)
        self._held.pop(region, None)
        self._unasked.pop(region, None)
        self._movable.pop(region, None)
        region._released = True
        region._lifetime.drop()
        if not self._regions:
            registry.let_go(self._serial)

    def _passes(self, passes: int, flags: int, max_pages: int | None) -> ScanResult:
        total = ScanResult()
        while total.full < passes and (max_pages is None or total.scanned < max_pages):
            pages = _SLICE if max_pages is None else min(_SLICE, max_pages - total.scanned)
            self.sweep()
            total += self._slice(pages, flags)
            flags &= ~native.SCAN_RESTART
        return total

    def _slice(self, pages: int, flags: int) -> ScanResult:
        if self._pass_begins:
            self._pass_begins = False
            self._ask_for_flags()
            self._placement.tell(self._native, list(self._regions))
        with self._refusals():
            result = ScanResult(**self._native.scan(pages, flags))
        notices.scanned(result, self._store)
        if result.full:
            self._pass_begins = True
        if result.lost:
            self.drop_lost()
        if result.no_memory and not self._told_full and self._native.store_full():
            self._told_full = True
            _log.warning("%r is full, and equal pages are left apart: %s", self._store, MORE_ROOM)
        return result

    def full_store(self) -> Store | None:
        """The shared store, while there is no room for more frames in it."""
        return self._store if self._native.store_full() else None

    def _ask_for_flags(self) -> None:
        """Look at the mappings of regions that were registered without, all in one reading. One
        thread does: another would find regions merged meanwhile.
        """
        if not self._unasked or not self._asking.acquire(blocking=False):
            return
        try:
            regions = [region for region in list(self._unasked) if not region.released]
            ends = (region.address + region.nbytes for region in regions)
            space = AddressSpace.read(max(ends, default=0))
            for region in regions:
                self._tell_flags(region, space)
        finally:
            self._asking.release()

    def _tell_flags(self, region: Region, space: AddressSpace) -> None:
        start, end = region.address, region.address + region.nbytes
        mappings = space.covering(start, end)
        ours = (self.freeze, self.tracking) != ("signal", "checksum")
        reason = refusal(mappings, start, end, registered=ours)
        # What is not the owner's memory any more, whatever its flags, the pass will find lost.
        lost = refusal([replace(each, flags=None) for each in mappings], start, end) is not None
        try:
            if reason is None or lost:
                self._native.set_vma_flags(region._number, vma_flags(mappings))
            else:
                _log.warning("region %r was released: %s", region.name, reason)
                self._end(region, discard=False)
        except OSError as error:
            if not region.released and error.errno != errno.ENOENT:  # it ended meanwhile
                raise
        self._unasked.pop(region, None)

    def _revive(self, store: Store) -> None:
        with self._lock:
            if self._inherited:  # by another thread, it may not be any more
                try:
                    self._native.revive()
                except OSError as error:
                    raise store.refusal(error) from None
                self._pass_begins = True
                self._inherited = False

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what says that the store is locked by others, or damaged, into a StoreError."""
        try:
            yield
        except OSError as error:
            if self._store is None or error.errno not in (errno.ETIMEDOUT, errno.EUCLEAN):
                raise
            raise self._store.refusal(error) from None

    def _settle(self) -> None:
        """Make the counters exact: dead owners' regions end, written pages come apart."""
        self.require_open()
        self.sweep()
        self._native.refresh()


def _finalize(serial: int, native: NativeEngine, daemon: Daemon) -> None:
    """An engine without regions was forgotten."""
    registry.leave(serial)
    daemon.stop()
    if not native.closed:
        native.close()
