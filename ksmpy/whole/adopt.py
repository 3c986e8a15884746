"""Finding memory that is worth merging, without the program's help.

By mapping: every large private anonymous mapping, whoever made it. Or, with "objects", only what
arrays, tensors and other Python objects have. Either way a region is known by its address alone:
nobody's objects are held, watched or kept from anything, and nobody says when the memory goes.

Short-lived memory is not worth a region: adopted is what two looks in a row have seen, and what
was lost again lately is waited for. A look costs time, most of it with the GIL held, so the next
one waits in proportion; and where nothing has changed there is none.
"""

from __future__ import annotations

import logging
import time
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ksmpy import threads
from ksmpy.engine.core import Core, live_engines
from ksmpy.engine.region import Region
from ksmpy.errors import KsmpyError
from ksmpy.memory import mappings
from ksmpy.memory.mappings import Interval, Survey, size
from ksmpy.memory.objects import Named, named_memory
from ksmpy.native import PAGE_SIZE
from ksmpy.text import human_bytes
from ksmpy.threads import Thread

__all__ = ["WAYS", "Adopter", "Coverage"]

_log = logging.getLogger("ksmpy")

WAYS = ("mappings", "objects")

# At most 1 % of a core, at least half a second apart.
_COST_FACTOR = 99
_MIN_SECONDS = 0.5
# Where nothing seems to have changed. Memory that another of the same size has replaced does not
# show.
_IDLE_SECONDS = 30.0
# After the first loss in a place, doubled with each.
_DISTRUST_SECONDS = 1.0
_DISTRUST_MOST = 256.0
_PLACE = 4 << 20
# Memory that was not there before may be filled when so much more is in memory (16 MiB).
_FILLED_PAGES = 4096
# What cannot be merged is asked about again from time to time.
_REFUSED_SECONDS = 60.0

_NEW = "new, or given back lately"
_ABSENT = "not in memory"


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
        self._unnamed: list[Region] = []
        self._losses: dict[int, tuple[int, float]] = {}
        self._refused: dict[Interval, tuple[str, float]] = {}
        self._state: object = None
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
        if self._thread is not None and not threads.is_current(self._thread):
            self._thread.join(5.0)

    def _loop(self) -> None:
        wait = _MIN_SECONDS / 10
        looks = 0
        while not self._stop.wait(wait):
            engine = self._engine()
            if engine is None:
                return
            begin = time.thread_time()
            try:
                looks += self.step(engine)
            except KsmpyError:
                return
            except Exception as error:
                _log.error("memory is not adopted any more: %s: %s", type(error).__name__, error)
                return
            del engine
            # The second look comes soon: only then is anything adopted.
            cost = 0.0 if looks < 2 else (time.thread_time() - begin) * _COST_FACTOR
            wait = max(_MIN_SECONDS, cost)

    def facts(self) -> dict[str, object]:
        """What is told of it to who looks at the process from outside."""
        return {} if self.coverage is None else {"coverage": asdict(self.coverage)}

    def step(self, engine: Core) -> bool:
        """Look, if anything may have changed; whether it did."""
        state = self._changing_state(engine)
        idle = state == self._state and not self._pending
        if idle and time.monotonic() < self._looked + _IDLE_SECONDS:
            return False
        self._state, self._looked = state, time.monotonic()
        self.look(engine)
        return True

    def _changing_state(self, engine: Core) -> object:
        if self._way == "objects":
            return object()
        # In pages: the address space, what of it is in memory, its writable part.
        size, resident, _, _, _, writable, _ = Path("/proc/self/statm").read_text().split()
        filled = int(resident) // _FILLED_PAGES if self._absent else 0
        return size, writable, filled, len(engine.all_regions())

    def look(self, engine: Core) -> None:
        """Register what this look and the previous one have both seen."""
        self._note_losses(engine)
        named = list(named_memory(self._min_bytes)) if self._way == "objects" else []
        taken = [_interval(region) for each in live_engines() for region in each.all_regions()]
        if self._way == "objects":
            self._let_go(named)
            found = Survey(mappings.subtract(_whole(named), sorted(taken)))
        else:
            found = mappings.survey(self._min_bytes, taken)
        wanted = self._wanted(found)
        if wanted and not self._stop.is_set():
            self._adopt(engine, wanted, found.left)
        if named:
            self._name(named)
        self.coverage = self._coverage(engine, found)

    def _note_losses(self, engine: Core) -> None:
        """Where memory went that was adopted, the next is not adopted so soon."""
        now = time.monotonic()
        present = {region for region in engine.all_regions() if region._adopted}
        for region in self._adopted - present:
            end = region.address + region.nbytes
            for place in range(region.address // _PLACE, -(-end // _PLACE)):
                count = self._losses.get(place, (0, 0.0))[0]
                wait = min(_DISTRUST_SECONDS * 2**count, _DISTRUST_MOST)
                self._losses[place] = count + 1, now + wait
        for place, (_, until) in list(self._losses.items()):
            if now > until + _DISTRUST_MOST:
                del self._losses[place]
        self._adopted = present

    def _let_go(self, named: list[Named]) -> None:
        """End the regions of objects that are gone, or have other memory now."""
        there = _whole(named)
        for region in list(self._adopted):
            if mappings.subtract([_interval(region)], there):
                region.release()
                self._adopted.discard(region)

    def _wanted(self, found: Survey) -> list[Interval]:
        """What can be adopted now; the rest goes into what is left."""
        now = time.monotonic()
        settled = self._trusted(mappings.intersect(found.free, self._seen), now)
        new = sum(map(size, found.free)) - sum(map(size, settled))
        wanted = []
        for piece in self._present(settled, found.left):
            reason, until = self._refused.get(piece, ("", 0.0))
            if now < until:
                _add(found.left, reason, size(piece))
            else:
                wanted.append(piece)
        _add(found.left, _NEW, new)
        self._seen, self._pending = found.free, new > 0
        self._absent = _ABSENT in found.left
        return wanted

    def _trusted(self, settled: list[Interval], now: float) -> list[Interval]:
        """What lies where nothing was lost lately; of objects those that lie there as a whole."""
        places = sorted(place for place, (_, until) in self._losses.items() if now < until)
        lost = [(place * _PLACE, (place + 1) * _PLACE) for place in places]
        rest = mappings.subtract(settled, lost)
        if self._way == "objects":
            whole = set(rest)
            return [piece for piece in settled if piece in whole]
        return [piece for piece in rest if size(piece) >= self._min_bytes]

    def _present(self, settled: list[Interval], left: dict[str, int]) -> list[Interval]:
        """What of it is in memory, in pieces of their own; objects stay whole, or are left."""
        found = []
        for piece in settled if self._way == "objects" else mappings.cut(settled):
            if self._way == "objects":
                parts = [piece] if mappings.is_in_memory(piece) else []
            else:
                parts = mappings.parts_in_memory(piece, self._min_bytes)
            _add(left, _ABSENT, size(piece) - sum(map(size, parts)))
            found += parts
        return found

    def _adopt(self, engine: Core, wanted: list[Interval], left: dict[str, int]) -> None:
        pieces = [(start, end, f"{start:#x}") for start, end in wanted]
        regions, refused = engine.adopt(pieces)
        until = time.monotonic() + _REFUSED_SECONDS
        self._refused = {
            piece: why for piece, why in self._refused.items() if why[1] > until - _REFUSED_SECONDS
        }
        for start, end, reason in refused:
            self._refused[start, end] = reason, until
            _add(left, reason, end - start)
        self._adopted.update(regions)
        self._unnamed.extend(regions)

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
        left = sorted(found.left.items(), key=lambda item: -item[1])
        return Coverage(
            found_bytes=adopted + sum(found.left.values()),
            found_pieces=len(regions) + len(found.free),
            adopted_bytes=adopted,
            left=tuple(left),
        )


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


def _add(left: dict[str, int], reason: str, nbytes: int) -> None:
    if nbytes:
        left[reason] = left.get(reason, 0) + nbytes
