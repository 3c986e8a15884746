"""Finding memory that is worth merging, without the program's help.

By mapping: the large private anonymous mappings of malloc, and of the others what arrays, tensors
and other Python objects have. Or, with "all", every mapping, whoever made it; or, with "objects",
only what objects have. In any case a region is known by its address alone: nobody's objects are
watched or kept from anything, and nobody says when the memory goes. A look that asks objects holds
on to containers until it has looked into them.

Short-lived memory is not worth a region: adopted is what two looks in a row have seen, and what
was lost again lately is waited for. A look costs time, most of it with the GIL held, so the next
one waits in proportion; and where nothing has changed there is none.
"""

from __future__ import annotations

import logging
import signal
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ksmpy import native, proc, threads
from ksmpy.engine.core import Core, live_engines
from ksmpy.engine.region import Region
from ksmpy.errors import KsmpyError
from ksmpy.memory import mappings
from ksmpy.memory.mappings import Interval, Survey, size
from ksmpy.memory.objects import Named, named_memory
from ksmpy.native import PAGE_SIZE
from ksmpy.own import own
from ksmpy.text import human_bytes
from ksmpy.threads import Thread

__all__ = ["WAYS", "Adopter", "Coverage"]

_log = logging.getLogger("ksmpy")

WAYS = ("mappings", "objects", "all")

# A look waits _COST_FACTOR times as long as the last one took, so that looks take 1 % of a core at
# most, and at least _MIN_SECONDS.
_COST_FACTOR = 99
_MIN_SECONDS = 0.5
# While so many of Python's small objects come or go in a second, a look waits, but no longer than
# _MOST_MOVING_SECONDS. What a look leaves (regions, names) would lie between them, and keep
# Python from giving their memory back: a program that made an Arrow table of two lists with an
# engine from its start was 15 MiB larger, 3 of it without looks.
_MOVING_OBJECTS = 100_000
_MOST_MOVING_SECONDS = 10.0
# So soon it is asked again whether they do.
_MOVING_SECONDS = 0.1
# If nothing seems to have changed, a look is taken all the same after so many seconds: memory that
# was replaced by other memory of the same size does not show.
_IDLE_SECONDS = 30.0
# For how many seconds memory in a place (of _PLACE bytes) is not adopted after adopted memory was
# lost there: doubled with each loss, up to _DISTRUST_MOST.
_DISTRUST_SECONDS = 1.0
_DISTRUST_MOST = 256.0
_DISTRUST_DOUBLINGS = 8
_PLACE = 4 << 20
# When the process has so many more pages in memory (16 MiB), pieces that were not in memory at the
# last look may be by now, and another look is due.
_FILLED_PAGES = 4096
# After so many pages that differed when they were frozen (1 MiB) it is looked whether regions have
# other memory by now.
_DIFFERED_PAGES = 256
# Python's objects are looked at only if so many bytes of unknown owner are in memory, which may be
# theirs: such a look takes time. In a forked child it also takes memory, a copy of each page that
# objects lie in, as it takes references to them for a moment; so there it has to be about as much
# as Python has for small objects.
_WORTH_A_LOOK = 4 << 20
# After so many seconds it is tried again to register memory that was refused.
_REFUSED_SECONDS = 60.0

_NEW = "new, or given back lately"
_ABSENT = "not in memory"
# Threads that block all signals, and write to nothing but their allocator's own records: Arrow's
# jemalloc has one that gives memory back. Where everything is adopted these may be, too.
_BLOCK_HARMLESSLY = ("jemalloc_bg_thd",)
_BLOCKED = "beside a thread that blocks SIGSEGV, which must not write to it (freeze='signal')"


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a look for memory to adopt has found, in bytes; of pieces of at least min_bytes."""

    found_bytes: int
    found_pieces: int
    adopted_bytes: int
    """Registered, by the look or by the program itself."""
    left: tuple[tuple[str, int], ...] = ()
    """(reason, bytes) of the rest, most first."""

    @property
    def left_bytes(self) -> int:
        """What was found and is not registered."""
        return sum(count for _, count in self.left)

    def __str__(self) -> str:
        text = (
            f"found {human_bytes(self.found_bytes)} in {self.found_pieces} pieces, adopted"
            f" {human_bytes(self.adopted_bytes)}, left {human_bytes(self.left_bytes)}"
        )
        reasons = ", ".join(f"{human_bytes(count)} {reason}" for reason, count in self.left)
        return f"{text}: {reasons}" if reasons else text


class Adopter:
    """A thread that registers memory with an engine, until stopped or the engine closes."""

    def __init__(self, engine: Core, min_bytes: int, way: str) -> None:
        self._engine = weakref.ref(engine)
        self._min_bytes = max(min_bytes, PAGE_SIZE)
        self._way = way
        self._stop = threads.event()
        self._seen: list[Interval] = []
        self._pending = False
        self._absent = False
        self._adopted: set[Region] = set()
        self._shown: set[Region] = set()  # those of mappings that are known from objects only
        self._unknown_bytes = 0
        self._look_costs_bytes = 0
        self._looked_before = False
        self._differed = 0
        self._unnamed: list[Region] = []
        self._losses: dict[int, tuple[int, float]] = {}
        self._refused: dict[Interval, tuple[str, float]] = {}
        self._blocking: frozenset[int] = frozenset()
        self._state: object = None
        self._objects, self._counted = native.allocated_blocks(), own.monotonic()
        self._moving_since = 0.0
        self.coverage: Coverage | None = None
        """What the last look has found."""
        self._looked = 0.0
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start looking."""
        engine = self._engine()
        if engine is not None:
            engine.name_regions_by(self.name_regions)
        self._thread = threads.start(self._loop, (), "ksmpy-adopt")

    def stop(self) -> None:
        """Stop looking, and wait for a look under way."""
        self._stop.set()
        thread = self._thread
        if thread is not None and not threads.is_current(thread) and not threads.are_gone():
            thread.join(5.0)

    def _loop(self) -> None:
        wait = _MIN_SECONDS / 10
        looks = failed = 0
        while not self._stop.wait(wait) and not threads.are_stopped_by_signals():
            begin = own.thread_time()
            try:
                looked = self._step_if_open()
                failed = 0
            except (OSError, MemoryError, KsmpyError) as error:
                # Another process may be stopped with the store's lock, a file be open by which
                # nothing can be unmerged, no descriptor or no memory be left: it will pass.
                _log.debug("no look for memory to adopt: %s", error)
                self._state = None
                failed += 1
                wait = min(_MIN_SECONDS * 2 ** min(failed, 6), _IDLE_SECONDS)
                continue
            except Exception as error:
                _log.error("memory is not adopted any more: %s: %s", type(error).__name__, error)
                return
            if looked is None:
                return
            looks += looked
            # The second look comes soon, whatever the first one took, as nothing is adopted before.
            cost = 0.0 if looks < 2 else (own.thread_time() - begin) * _COST_FACTOR
            waits_for_objects = not looked and self._moving_since
            wait = max(_MOVING_SECONDS if waits_for_objects else _MIN_SECONDS, cost)

    def _step_if_open(self) -> bool | None:
        """step(); None when the engine is no more."""
        engine = self._engine()
        if engine is None:
            return None
        try:
            return self.step(engine)
        except KsmpyError:
            if engine.closed:
                return None
            raise

    def facts(self) -> dict[str, object]:
        """What is told to those who look at the process from outside."""
        return {} if self.coverage is None else {"coverage": asdict(self.coverage)}

    def step(self, engine: Core) -> bool:
        """Look, if anything may have changed; whether it did."""
        state = self._changing_state(engine)
        idle = state == self._state and not self._pending
        if idle and own.monotonic() < self._looked + _IDLE_SECONDS:
            return False
        if self._objects_move():
            return False
        self._state, self._looked = state, own.monotonic()
        self.look(engine)
        return True

    def _objects_move(self) -> bool:
        """Whether objects come and go by the thousand, and have not done so for long."""
        objects, now = native.allocated_blocks(), own.monotonic()
        moved = abs(objects - self._objects)
        seconds = min(max(now - self._counted, 0.1), 1.0)
        self._objects, self._counted = objects, now
        if moved <= _MOVING_OBJECTS * seconds:
            self._moving_since = 0.0
            return False
        self._moving_since = self._moving_since or now
        return now < self._moving_since + _MOST_MOVING_SECONDS

    def _changing_state(self, engine: Core) -> object:
        if self._asks_objects():
            return object()
        # In pages: the size of the address space, what of it is in memory, its writable part.
        size, resident, _, _, _, writable, _ = proc.read("statm").split()
        filled = int(resident) // _FILLED_PAGES if self._absent else 0
        differed = engine.pages_differed() // _DIFFERED_PAGES
        return size, writable, filled, differed, len(engine.all_regions())

    def look(self, engine: Core) -> None:
        """Register what this look and the previous one have both seen."""
        if self._way != "objects":
            self._drop_replaced(engine)
        self._note_losses(engine)
        taken = [_interval(region) for each in live_engines() for region in each.all_regions()]
        found = Survey([])
        named: list[Named] = []
        if self._way != "objects":
            found = mappings.survey(self._min_bytes, taken, every=self._way == "all")
            self._note_unknown(found)
        if self._asks_objects():
            named = list(named_memory(self._min_bytes))
            self._look_at(named, found, sorted(taken))
        wanted = self._wanted(found)
        if engine.freeze == "signal" and self._is_blocked():
            for piece in wanted:
                _add(found.left, _BLOCKED, size(piece))
            wanted = []
        if wanted and not self._stop.is_set():
            self._adopt(engine, wanted, found)
        if named:
            self._name(named)
        self.coverage = self._coverage(engine, found)

    def _is_blocked(self) -> bool:
        """Whether nothing is to be adopted because of threads that block SIGSEGV. If they did so at
        the last look as well, what was adopted is left, too: a thread that starts another one, or
        a program, blocks all signals for a moment.
        """
        blocking = proc.threads_that_block(signal.SIGSEGV).items()
        harmless = () if self._way == "all" else _BLOCK_HARMLESSLY
        writers = frozenset(thread for thread, name in blocking if name not in harmless)
        before, self._blocking = self._blocking, writers
        if before & self._blocking:
            for region in list(self._adopted):
                region.release()
                self._adopted.discard(region)
                self._shown.discard(region)
        elif self._blocking:
            self._pending = True  # the next look tells
        return bool(self._blocking)

    def _drop_replaced(self, engine: Core) -> None:
        """End regions whose memory was unmapped and mapped anew: nothing in them can be merged."""
        differed = engine.pages_differed()
        if differed - self._differed >= _DIFFERED_PAGES:
            engine.drop_replaced()
            self._differed = differed

    def _asks_objects(self) -> bool:
        enough = max(_WORTH_A_LOOK, self._min_bytes, self._look_costs_bytes)
        return self._way == "objects" or bool(self._shown) or self._unknown_bytes >= enough

    def _note_unknown(self, found: Survey) -> None:
        """Note how much memory of unknown owner there is."""
        there = [part for each in found.unknown for part in mappings.parts_in_memory(each, 0)]
        self._unknown_bytes = sum(map(size, there))
        small = found.left.get(mappings.SMALL_OBJECTS, 0)
        self._look_costs_bytes = small if proc.is_forked() else 0
        _add(found.left, mappings.UNKNOWN, self._unknown_bytes)
        _add(found.left, _ABSENT, sum(map(size, found.unknown)) - self._unknown_bytes)
        if not self._looked_before:  # perhaps a forked child: which regions came from objects?
            self._shown = {
                region
                for region in (self._adopted if found.malloced else ())
                if mappings.subtract([_interval(region)], found.malloced)
            }
        self._looked_before = True

    def _look_at(self, named: list[Named], found: Survey, taken: list[Interval]) -> None:
        """Find what objects have; end the regions of those that are gone, or have moved."""
        there = _whole(named)
        for region in list(self._adopted if self._way == "objects" else self._shown):
            if mappings.subtract([_interval(region)], there):
                region.release()
                self._adopted.discard(region)
                self._shown.discard(region)
        found.shown = mappings.subtract(there, taken)
        if self._way == "objects":
            return
        whole = set(found.shown)
        found.shown = [
            piece for piece in mappings.intersect(found.shown, found.unknown) if piece in whole
        ]
        # Each as a whole is adopted, or not in memory.
        for piece in found.shown:
            present = sum(map(size, mappings.parts_in_memory(piece, 0)))
            _take_off(found.left, mappings.UNKNOWN, present)
            _take_off(found.left, _ABSENT, size(piece) - present)

    def _note_losses(self, engine: Core) -> None:
        """Distrust the places from which adopted memory has gone, for a while."""
        now = own.monotonic()
        present = {region for region in engine.all_regions() if region._adopted}
        for region in self._adopted - present:
            end = region.address + region.nbytes
            for place in range(region.address // _PLACE, -(-end // _PLACE)):
                count = self._losses.get(place, (0, 0.0))[0]
                wait = min(_DISTRUST_SECONDS * 2 ** min(count, _DISTRUST_DOUBLINGS), _DISTRUST_MOST)
                self._losses[place] = count + 1, now + wait
        for place, (_, until) in list(self._losses.items()):
            if now > until + _DISTRUST_MOST:
                del self._losses[place]
        self._adopted = present
        self._shown &= present

    def _wanted(self, found: Survey) -> list[Interval]:
        """What can be adopted now; the rest goes into what is left."""
        now = own.monotonic()
        settled = self._trusted(mappings.intersect(found.free, self._seen), now)
        settled = [piece for piece in settled if size(piece) >= self._min_bytes]
        again = mappings.intersect(found.shown, self._seen)
        trusted = set(self._trusted(again, now))
        whole = [piece for piece in again if piece in trusted]
        seen = sorted([*found.free, *found.shown])
        new = sum(map(size, seen)) - sum(map(size, settled)) - sum(map(size, whole))
        wanted = []
        for piece in self._present(settled, whole, found.left):
            reason, until = self._refused.get(piece, ("", 0.0))
            if now < until:
                _add(found.left, reason, size(piece))
            else:
                wanted.append(piece)
        _add(found.left, _NEW, new)
        self._seen, self._pending = seen, new > 0
        self._absent = _ABSENT in found.left
        return wanted

    def _trusted(self, settled: list[Interval], now: float) -> list[Interval]:
        """The parts that lie in places where nothing was lost lately."""
        places = sorted(place for place, (_, until) in self._losses.items() if now < until)
        lost = [(place * _PLACE, (place + 1) * _PLACE) for place in places]
        return mappings.subtract(settled, lost)

    def _present(
        self, settled: list[Interval], whole: list[Interval], left: dict[str, int]
    ) -> list[Interval]:
        """The pieces that are in memory; what an object has is taken as a whole or not at all."""
        found = []
        for piece in whole:
            parts = [piece] if mappings.is_in_memory(piece) else []
            _add(left, _ABSENT, size(piece) - sum(map(size, parts)))
            found += parts
        absent = sum(map(size, settled))
        for piece in mappings.pieces(settled):
            parts = mappings.parts_in_memory(piece, self._min_bytes)
            absent -= sum(map(size, parts))
            found += parts
        _add(left, _ABSENT, absent)
        return found

    def _adopt(self, engine: Core, wanted: list[Interval], found: Survey) -> None:
        pieces = [(start, end, _label(found, start)) for start, end in wanted]
        regions, refused = engine.adopt(pieces)
        until = own.monotonic() + _REFUSED_SECONDS
        self._refused = {
            piece: why for piece, why in self._refused.items() if why[1] > until - _REFUSED_SECONDS
        }
        for start, end, reason in refused:
            self._refused[start, end] = reason, until
            _add(found.left, reason, end - start)
        self._adopted.update(regions)
        self._unnamed = [region for region in self._unnamed if not region._released] + regions
        if self._way != "objects":
            shown = set(found.shown)
            self._shown.update(region for region in regions if _interval(region) in shown)

    def name_regions(self) -> None:
        """Give what was adopted by mapping the names of objects in it. Only when somebody reads
        them: to look at all objects takes memory, in a forked child a copy of every object's page.
        """
        if self._unnamed:
            self._name(named_memory(self._min_bytes))

    def _name(self, named: Iterable[Named]) -> None:
        """Give regions the name of the largest object in them, for people to read."""
        regions = []
        while self._unnamed:
            regions.append(self._unnamed.pop())
        regions = [region for region in regions if not region._released]
        regions.sort(key=lambda region: region.address)
        ends = [region.address + region.nbytes for region in regions]
        best: dict[Region, tuple[int, bool, str]] = {}
        for item in named:
            for region in regions[bisect_right(ends, item.address) :]:
                start = max(item.address, region.address)
                common = min(item.address + item.nbytes, region.address + region.nbytes) - start
                if common <= 0:
                    break
                rank = common, item.has_key, item.name
                if rank > best.get(region, (0, False, "")):
                    best[region] = rank
        for region, (_, _, name) in best.items():
            region.name = name

    def _coverage(self, engine: Core, found: Survey) -> Coverage:
        regions = engine.all_regions()
        adopted = sum(region.nbytes for region in regions)
        left = sorted(((why, n) for why, n in found.left.items() if n), key=lambda item: -item[1])
        return Coverage(
            found_bytes=adopted + sum(found.left.values()),
            found_pieces=len(regions) + len(found.free) + len(found.shown) + len(found.unknown),
            adopted_bytes=adopted,
            left=tuple(left),
        )


def _label(found: Survey, start: int) -> str:
    """What a piece is called as long as no object gives it a name."""
    owner = mappings.intersect([(start, start + 1)], found.malloced)
    return f"{'malloc-' if owner else ''}{start:#x}"


def _interval(region: Region) -> Interval:
    return region.address, region.address + region.nbytes


def _whole(named: Iterable[Named]) -> list[Interval]:
    """The whole pages of memory that objects have, each once."""
    pieces: list[Interval] = []
    for item in sorted(named, key=lambda item: (item.address, -item.nbytes)):
        start = -(-item.address // PAGE_SIZE) * PAGE_SIZE
        end = (item.address + item.nbytes) // PAGE_SIZE * PAGE_SIZE
        if start < end and (not pieces or start >= pieces[-1][1]):
            pieces.append((start, end))
    return pieces


def _take_off(left: dict[str, int], reason: str, nbytes: int) -> None:
    _add(left, reason, max(left.pop(reason, 0) - nbytes, 0))


def _add(left: dict[str, int], reason: str, nbytes: int) -> None:
    if nbytes:
        left[reason] = left.get(reason, 0) + nbytes
