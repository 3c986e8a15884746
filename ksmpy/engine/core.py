"""What an engine does: scanning, the knobs' effects, the counters, its life and its end.

The engine's lock puts what users start and stop in order. The callback of an owner's death never
takes it, since that can run in any thread at any moment, in one that holds the lock too.
"""

from __future__ import annotations

import errno
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from ksmpy import limits, native, proc, threads
from ksmpy.context import unless_scarce
from ksmpy.engine import notices, registry
from ksmpy.engine.history import History
from ksmpy.engine.knobs import Knobs, Settings, check_modes
from ksmpy.engine.ksmd import Daemon
from ksmpy.engine.numa import Placement, Topology
from ksmpy.engine.region import Region, Share
from ksmpy.engine.regions import Regions, end_all
from ksmpy.engine.stats import RegionStats, ScanResult, Stats, saved_here
from ksmpy.errors import KnobError, KsmpyError, StoreError
from ksmpy.memory.traverse import Found
from ksmpy.native import NativeEngine
from ksmpy.own import own
from ksmpy.store.store import MORE_ROOM, Store, attach

__all__ = ["Core", "live_engines"]

_log = logging.getLogger("ksmpy")

# Pages of a call into the extension. Between two of them scan() looks whether Ctrl-C was pressed.
# Scattered pages merge together only within one call, so a smaller number merges them slower.
_SLICE = 32768


class Core:
    """One engine, as Region, Knobs, the thread and the rest of the package use it."""

    def __init__(
        self,
        store: str | Store | None = None,
        topology: Topology | None = None,
        freeze: str = "auto",
        tracking: str = "auto",
    ) -> None:
        native.require()
        check_modes(freeze, tracking)
        placement = self._placement = Placement(topology)
        self._native, self._store = attach(
            store,
            partial(NativeEngine, freeze, tracking, len(placement.nodes), placement.node_ids),
        )
        self._daemon = Daemon(weakref.ref(self), self._native.interrupt)
        self._settings = Settings()
        self._lock = threads.RLock()
        self._scanning: dict[object, None] = {}
        self._run = 0
        self._inherited = False
        self._pass_begins = True
        self._zeros_by_fork = 0
        self._waiting = False
        self._told_full = False
        self._name_regions: Callable[[], None] = _nothing
        self._serial = registry.new_serial()
        self.package_bytes = 0
        """What ksmpy has taken to be imported; 0 where that is not known."""
        self.history = History()
        self._regions = Regions(self._native, placement, self._serial, self.history.ended)
        registry.enter(self._serial, self)
        finalizer = weakref.finalize(
            self, _finalize, self._serial, self._native, self._daemon, self.history
        )
        finalizer.atexit = False
        notices.fell_back(
            self.freeze if freeze == "auto" else "", self.tracking if tracking == "auto" else ""
        )

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
        """The knobs of this engine."""
        return Knobs(self, self._settings)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._native.closed

    # ---- its regions --------------------------------------------------------------------

    def register(self, buffer: object, name: str | None) -> Region:
        """As Engine.register()."""
        with self._lock:
            self.require_open()
            return self._regions.register(self, buffer, name)

    def register_range(self, address: int, nbytes: int, name: str | None, owner: object) -> Region:
        """As Engine.register_range(), of arguments that were checked."""
        with self._lock:
            self.require_open()
            return self._regions.register_range(self, address, nbytes, name, owner)

    def track(self, found: list[Found]) -> tuple[list[Region], list[tuple[str, str]]]:
        """Register buffers that find_buffers() has found; see Regions.track()."""
        with self._lock:
            self.require_open()
            return self._regions.track(self, found)

    def adopt(
        self, pieces: list[tuple[int, int, str]]
    ) -> tuple[list[Region], list[tuple[int, int, str]]]:
        """Register memory that enable() has found; see Regions.adopt()."""
        with self._lock:
            self.require_open()
            return self._regions.adopt(self, pieces)

    def pages_differed(self) -> int:
        """The counter of that name."""
        return self._native.counters()["pages_differed"]

    def drop_replaced(self) -> None:
        """End adopted regions that have other memory by now; see Regions.drop_replaced()."""
        with self._lock:
            self.require_open()
            self._regions.drop_replaced()

    def regions(self) -> tuple[Region, ...]:
        """As Engine.regions()."""
        self.require_open()
        self.sweep()
        self._name_regions()
        return tuple(self._regions.all())

    def name_regions_by(self, function: Callable[[], None]) -> None:
        """Have the function called before names of regions are told, so that it can set them."""
        self._name_regions = function

    def all_regions(self) -> list[Region]:
        """The regions, whether the engine is this process's own or inherited."""
        return self._regions.all()

    def overlapping(self, start: int, end: int) -> Iterator[Region]:
        """The regions that have a page in [start, end); page-aligned."""
        return self._regions.overlapping(start, end)

    def is_ending(self, start: int, end: int) -> bool:
        """Whether another thread is just ending a region in [start, end)."""
        return not self.inherited and self._regions.is_ending(start, end)

    def sweep(self) -> None:
        """End the regions whose owners only ksmpy still holds, or whose memory has moved."""
        self._regions.sweep()

    def end_if_dead(self, region: Region) -> None:
        """End a region if its owner is dead without a word."""
        self._regions.end_if_dead(region)

    def drop_lost(self) -> None:
        """End the regions whose memory was unmapped or replaced; what is left of it stays."""
        self._regions.drop_lost()

    def shares(self) -> list[Share]:
        """As Engine.shares()."""
        self._end_dead()
        self._native.refresh()
        self._name_regions()
        found = []
        by_number = self._regions.by_number()
        for first, second, pages in self._native.shares():
            a, b = by_number.get(first), by_number.get(second)
            if a is not None and b is not None:
                found.append(Share(a, b, pages))
        return sorted(found, key=lambda share: -share.pages)

    def region_stats(self, region: Region) -> RegionStats:
        """A region's counters."""
        self._end_dead()  # of all regions: what others have written saves nothing here any more
        with self._refusals():
            return RegionStats.from_native(*self._native.region_stats(region._number))

    def unmerge_region(self, region: Region) -> None:
        """Give one region its own pages back."""
        self.require_open()
        self._native.unmerge_region(region._number)

    def release_region(self, region: Region) -> None:
        """End a region, keeping its bytes."""
        self._regions.end(region, discard=False)

    # ---- scanning -----------------------------------------------------------------------

    def scan(self, passes: int, *, eager: bool, max_pages: int | None) -> ScanResult:
        """As Engine.scan()."""
        if passes < 1 or (max_pages is not None and max_pages < 1):
            raise ValueError("passes and max_pages must be at least 1")
        self.require_open()
        begin = own.perf_counter()
        flags = native.SCAN_PATIENT | (native.SCAN_EAGER if eager else 0)
        if max_pages is None:
            flags |= native.SCAN_RESTART
            self._pass_begins = True
        token = object()
        self._scanning[token] = None
        try:
            self._regions.ask_for_flags()
            total = self._passes(passes, flags, max_pages)
        finally:
            self._scanning.pop(token, None)
        self._record()
        return total + ScanResult(seconds=own.perf_counter() - begin)

    def _passes(self, passes: int, flags: int, max_pages: int | None) -> ScanResult:
        total = ScanResult()
        self.sweep()
        while total.full < passes and (max_pages is None or total.scanned < max_pages):
            pages = _SLICE if max_pages is None else min(_SLICE, max_pages - total.scanned)
            self._regions.sweep(thorough=False)
            total += self._slice(pages, flags)
            flags &= ~(native.SCAN_RESTART | native.SCAN_PATIENT)
        return total

    def _slice(self, pages: int, flags: int) -> ScanResult:
        if self._pass_begins:
            self._begin_pass()
        begin = own.thread_time()
        with self._refusals():
            result = ScanResult(**self._native.scan(pages, flags))
        self.history.scan_seconds += own.thread_time() - begin
        notices.scanned(result, self._store)
        if result.full:
            self._pass_begins = True
        if result.lost:
            self.drop_lost()
        if result.no_memory and not self._told_full and self._native.store_full():
            self._told_full = True
            _log.warning("%r is full, and equal pages are left apart: %s", self._store, MORE_ROOM)
        return result

    def _begin_pass(self) -> None:
        """Ask what a pass has to know; one that cannot be told it has not begun."""
        self._pass_begins = False
        try:
            self._regions.ask_for_flags()
            self._placement.tell(self._native, self._regions.all())
        except BaseException:
            self._pass_begins = True
            raise

    def batch(self, pages: int) -> ScanResult:
        """Scan up to `pages` pages in the background; nothing, if that has to wait."""
        try:
            self._regions.sweep(thorough=False)
            # While a program's own scan() is under way, this thread leaves the cursor alone.
            if not pages or self._scanning:
                return ScanResult()
            result = self._slice(pages, native.SCAN_BACK_OFF)
            if result.full:
                self._record()
        except Exception as error:
            locked = isinstance(error, StoreError) and error.errno == errno.ETIMEDOUT
            if not locked and not limits.is_passing(error):
                raise
            if not self._waiting:
                _log.warning("ksmd waits: %s", error)
            self._waiting = True
            return ScanResult()
        self._waiting = False
        return result

    def batch_failed(self, error: BaseException) -> None:
        """The background thread ends because of this error."""
        self._daemon.forget()
        self._run = 0
        _log.error("ksmd stops, run becomes 0: %s: %s", type(error).__name__, error)

    # ---- the knobs' effects --------------------------------------------------------------

    def get_run(self) -> int:
        """The knob run."""
        if self._native.closed:
            raise KsmpyError("engine is closed")
        return 0 if self._native.forked() else self._run

    def set_run(self, value: int) -> None:
        """Act on a write to run; OSError when unmerging fails, run is 0 then."""
        if value == 1 and self._daemon.running:
            return
        # The lock is not held here: the thread may be running a destructor that wants the lock.
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

    def unmerge(self) -> None:
        """As Engine.unmerge()."""
        self.require_open()
        earlier = self._run
        self.set_run(2)
        self.set_run(earlier)

    # ---- the counters -------------------------------------------------------------------

    def stats(self) -> Stats:
        """As Engine.stats()."""
        self._end_dead()
        with self._refusals():
            return Stats.from_native(self._native.exact_stats())

    def _end_dead(self) -> None:
        """End dead owners' regions, as who counts has to."""
        self.require_open()
        self.sweep()

    def check(self) -> None:
        """Walk all of the engine's structures; KsmpyError naming the first that is wrong."""
        self.require_open()
        with self._refusals():
            self._native.check()

    def full_store(self) -> Store | None:
        """The shared store, while there is no room for more frames in it."""
        return self._store if self._native.store_full() else None

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what says that the store is locked by others, or damaged, into a StoreError."""
        try:
            yield
        except OSError as error:
            if self._store is None or error.errno not in (errno.ETIMEDOUT, errno.EUCLEAN):
                raise
            raise self._store.refusal(error) from None

    def _record(self) -> None:
        """Note a sample for those who look at this process from outside, if one is due."""
        if not self.history.due() or not len(self._regions):
            return
        try:
            stats, full = self._native.stats(), self._full_inode()
        except (OSError, KsmpyError):  # the engine was closed, or another process locks its store
            return
        self.history.note(
            stats,
            lambda: self._saved(stats),
            lambda: [(each.address, each.nbytes, each.name) for each in self._regions.all()],
            {
                "freeze": self.freeze,
                "tracking": self.tracking,
                "run": self._run,
                "shared_store": self._store is not None,
                "full_store": full,
                "package_bytes": self.package_bytes,
            },
        )

    def _full_inode(self) -> int:
        """The number of the store's file while it is full, by which others know it, else 0."""
        store = self.full_store()
        return 0 if store is None else os.fstat(store.fileno()).st_ino

    def _saved(self, stats: Mapping[str, int]) -> int:
        if self._store is None:
            return Stats.from_native(stats).saved_bytes
        merged = {each.pid: each.merging_pages for each in self._store.processes()}
        by_fork = proc.by_fork(merged)
        return saved_here(stats, by_fork, own.getpid(), self._zeros_by_fork, self.package_bytes)

    # ---- its life -----------------------------------------------------------------------

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

    def _revive(self, store: Store) -> None:
        with self._lock:
            if self._inherited:  # another thread may have revived it meanwhile
                try:
                    self._native.revive()
                except OSError as error:
                    raise store.refusal(error) from None
                self._pass_begins = True
                self._inherited = False
                self._zeros_by_fork = self._native.counters()["ksm_zero_pages"]

    @property
    def inherited(self) -> bool:
        """Whether this process got the engine by fork, and has not made it its own."""
        try:
            return self._inherited or self._native.forked()
        except KsmpyError:  # another thread has closed it
            return self._inherited

    def inherit(self) -> None:
        """Become the copy in a forked child: no thread, no scanning, regions stay."""
        if not self._inherited:
            self._inherited = True
            self._run = 0
            self._lock = threads.RLock()
            self._regions.inherit()
            self._daemon.forget()
            self.history.inherit()
            self._native.forget_threads()
            self._scanning = {}

    def stop_thread(self) -> None:
        """Stop the background thread; run stays as it is."""
        self._daemon.stop()

    def close(self) -> None:
        """As Engine.close()."""
        if not self._native.closed and self._native.forked():
            self.inherit()
        self._daemon.stop()
        with self._lock:
            if not self._native.closed:
                self._run = 0
                self._end_regions()
            # What follows is done once more where Ctrl-C came in the middle of an earlier call.
            self._native.close()
            registry.leave(self._serial)
            self.history.close()
            if self._store is not None:
                self._store.close()

    def _end_regions(self) -> None:
        first_error: OSError | None = None
        for region in self._regions.all():
            try:
                self._regions.end(region, discard=False)
            except OSError as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        end_all(self._native)

    def leave(self) -> None:
        """close() where nobody can act on its error: without memory for it, pages stay merged.

        They are right as they are. The engine stays open, stopped, until their owners die or
        close() is called again; a warning says so.
        """
        unless_scarce(
            self.close,
            lambda words: _log.warning(
                "%d regions stay merged, and their engine open until they end: %s",
                len(self._regions),
                words,
            ),
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._regions)} regions, run={self._run}"
        return f"<Engine {self.freeze}/{self.tracking} {state}>"


def _nothing() -> None:
    """Stand in where nobody adopts memory: regions have their names already."""


def _finalize(serial: int, engine: NativeEngine, daemon: Daemon, history: History) -> None:
    """Free an engine without regions to which nobody has a reference any more."""
    registry.leave(serial)
    daemon.stop()
    history.close()
    if not engine.closed:
        end_all(engine)
        engine.close()


def live_engines() -> list[Core]:
    """The engines of this process that are not closed, the inherited ones included."""
    return [each for each in registry.live() if isinstance(each, Core)]
