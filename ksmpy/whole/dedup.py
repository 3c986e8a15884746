"""The call that most users need: merge the buffers in these objects."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from ksmpy import threads
from ksmpy.context import Ending, unless_scarce
from ksmpy.engine.core import Core
from ksmpy.engine.engine import core_of
from ksmpy.engine.region import Region
from ksmpy.engine.stats import ScanResult, Stats
from ksmpy.errors import KsmpyError
from ksmpy.memory.traverse import Found, find_buffers, merge_ranges
from ksmpy.native import PAGE_SIZE
from ksmpy.own import own
from ksmpy.text import human_bytes, table_html
from ksmpy.watch.estimate import Refused, refusal_lines
from ksmpy.whole.enable import enabled_engine

__all__ = ["Report", "dedup", "present_engine"]

_log = logging.getLogger("ksmpy")

# How many passes one call makes at most: pages that a thread keeps writing could be tried for ever.
_MAX_PASSES = 8


class _Process:
    """What the dedup() calls of one process have in common: an engine, while it has regions."""

    def __init__(self) -> None:
        self.pid = own.getpid()
        self.lock = threads.RLock()
        self._engine: Callable[[], Core | None] = lambda: None

    def present(self) -> Core | None:
        """The engine that enable() made, or that of earlier calls."""
        enabled = enabled_engine()
        engine = core_of(enabled) if enabled is not None else self._engine()
        return None if engine is None or engine.closed else engine

    def engine(self) -> tuple[Core, bool]:
        """The engine that is present, or a new one, and whether it is new."""
        there = self.present()
        if there is not None:
            return there, False
        engine = Core()
        self._engine = weakref.ref(engine)
        return engine, True

    def close_idle(self, engine: Core) -> None:
        """Close the engine of the dedup() calls when it has nothing to do."""
        if engine is self._engine() and not engine.closed and not engine.all_regions():
            engine.close()


def _claim(regions: list[Region], before: set[Region]) -> dict[Region, None]:
    """The regions that dedup() has registered, now or earlier; each has one report more now."""
    mine = [region for region in regions if region not in before or region._reports]
    for region in mine:
        region._reports += 1
    return dict.fromkeys(mine)


def _let_go(regions: dict[Region, None]) -> None:
    """End the regions that no other report has; OSError when one could not be."""
    while regions:
        region = next(iter(regions))
        if region._reports == 1:
            region.release()
        region._reports -= 1
        del regions[region]


def _leave(undo: Callable[[], None]) -> None:
    unless_scarce(undo, partial(_log.warning, "regions stay merged until they end: %s"))


_process = _Process()


def _here() -> _Process:
    """The one of this process: a forked child gets a new one, whose lock no thread can hold."""
    global _process
    if _process.pid != own.getpid():
        _process = _Process()
    return _process


def present_engine() -> Core | None:
    """What dedup() would use now, if that is there already."""
    return _here().present()


@dataclass(frozen=True, slots=True)
class Report(Ending):
    """What dedup() did; as a context manager, undone at the end of the block.

    A copy, and what a pickle of it becomes, has the figures only: it cannot be undone.
    """

    saved_bytes: int
    """What this call saved, net of the engine's metadata."""
    before_bytes: int
    """Memory in the registered regions, before."""
    after_bytes: int
    """before_bytes - saved_bytes."""
    seconds: float
    regions: tuple[Region, ...]
    refused: tuple[Refused, ...]
    """Each buffer that could not be merged."""
    scan: ScanResult
    """Of all passes; of differed, busy, no_budget and no_memory those of the pass with most."""
    stats: Stats
    """Of the engine, which all dedup() calls of a process share."""
    misaligned: tuple[str, ...] = ()
    """Names of buffers with the bytes of another one that begins elsewhere in a page."""
    volatile_pages: int = 0
    """Pages that somebody was writing in the last pass."""
    _engine: Core | None = field(default=None, repr=False, kw_only=True)
    _claims: dict[Region, None] = field(default_factory=dict, repr=False, kw_only=True)
    _home: _Process | None = field(default=None, repr=False, kw_only=True)

    def undo(self) -> None:
        """Give back what this call merged and no other report has. OSError when there is not
        enough memory. Idempotent. KsmpyError for a copy.
        """
        if self._home is None or self._engine is None:
            raise KsmpyError("this report is a copy: undo() the one that dedup() returned")
        if self._home.pid != own.getpid():
            for region in list(self._claims):
                region.release()
            return
        with self._home.lock:
            try:
                _let_go(self._claims)
            finally:
                self._home.close_idle(self._engine)

    def __reduce__(self) -> tuple[Callable[..., Report], tuple[dict[str, object]]]:
        public = (each.name for each in fields(self) if not each.name.startswith("_"))
        return _copied, ({name: getattr(self, name) for name in public},)

    def __enter__(self) -> Report:
        return self

    def _leave(self) -> None:
        _leave(self.undo)

    def __str__(self) -> str:
        lines = [
            f"saved {human_bytes(self.saved_bytes)} of {human_bytes(self.before_bytes)} in"
            f" {len(self.regions)} buffers, in {self.seconds:.2f} s",
            *(f"left alone: {pages} pages {why}" for pages, why in self._left_alone() if pages),
        ]
        if self.misaligned:
            lines.append(
                f"misaligned: {', '.join(self.misaligned[:5])}{' ...' * (len(self.misaligned) > 5)}"
                " equal others, but begin elsewhere in a page: ksmpy.copy() begins at one"
            )
        if not self.regions and not self.refused:
            lines.append("found no buffer: see the argument min_bytes")
        return "\n".join(lines + refusal_lines(self.refused))

    def _repr_html_(self) -> str:
        first, *notes = str(self).splitlines()
        rows = [
            ("saved", human_bytes(self.saved_bytes)),
            ("before", human_bytes(self.before_bytes)),
            ("after", human_bytes(self.after_bytes)),
        ]
        return table_html(first, rows, notes)

    def _left_alone(self) -> tuple[tuple[int, str], ...]:
        scan = self.scan
        return (
            (scan.no_budget, "for want of mappings: raise vm.max_map_count"),
            (scan.no_memory, "for want of memory: the store is full"),
            (scan.busy, "in use for I/O"),
            (max(scan.differed, self.volatile_pages), "that were being written"),
            (scan.lost, "whose memory was unmapped or replaced"),
        )


def _copied(figures: dict[str, Any]) -> Report:
    return Report(**figures)


def dedup(*objs: object, min_bytes: int = 1 << 20) -> Report:
    """Find the buffers of at least `min_bytes` bytes in any objects, and merge their equal pages.

    They stay merged until the objects die, or report.undo(). Nobody notices: addresses stay,
    arrays stay writable, a write gives the page its own memory back. Buffers that cannot be
    merged are in report.refused with the reason. All calls share one engine, enable()'s where
    there is one, so what is given in several calls is merged with all of it. Unsupported where
    there can be no engine.
    """
    begin = own.perf_counter()
    process = _here()
    with process.lock:
        engine, new = process.engine()
        claims: dict[Region, None] = {}
        try:
            before = set(engine.all_regions())
            earlier = 0 if new else engine.stats().general_profit
            found, hidden = find_buffers(objs, min_bytes)
            regions, refused = engine.track(found)
            claims = _claim(regions, before)
            scan, volatile = _passes(engine)
            stats = engine.stats()
        except BaseException:
            _leave(partial(_let_go, claims))
            process.close_idle(engine)
            raise
    total = sum(region.nbytes for region in regions)
    saved = max(0, stats.general_profit - earlier)
    return Report(
        saved_bytes=saved,
        before_bytes=total,
        after_bytes=total - saved,
        seconds=own.perf_counter() - begin,
        regions=tuple(regions),
        refused=tuple(Refused(*each) for each in (*hidden, *refused)),
        scan=scan,
        stats=stats,
        misaligned=_misaligned(found, regions),
        volatile_pages=volatile,
        _engine=engine,
        _claims=claims,
        _home=process,
    )


def _passes(engine: Core) -> tuple[ScanResult, int]:
    """Make passes until nothing more merges: what all did, and what was volatile in the last."""
    scan, volatile = ScanResult(), 0
    for number in range(_MAX_PASSES):
        done = engine.scan(1, eager=True, max_pages=None)
        scan = _together(scan, done)
        # To the first pass every page is one that was written: only from the second on it is known.
        volatile = done.volatiles if number else 0
        if number and not done.merged + done.zeroed:
            break
    return scan, volatile


def _together(so_far: ScanResult, last: ScanResult) -> ScanResult:
    """The sum of two results. A page that is refused is refused in each pass again, so of refusals
    the larger number is taken instead of the sum.
    """
    total = so_far + last
    values = {name: getattr(total, name) for name in ScanResult.__dataclass_fields__}
    for name in ("differed", "busy", "no_budget", "no_memory"):
        values[name] = max(getattr(so_far, name), getattr(last, name))
    return ScanResult(**values)


_SAMPLES, _SAMPLE = 32, 64


def _misaligned(found: list[Found], regions: list[Region]) -> tuple[str, ...]:
    """Names of buffers that are equal to others in samples, but begin at another place in a page.

    A buffer whose samples consist of one repeated byte is left out, as that says nothing.
    """
    alike: dict[tuple[int, bytes], dict[int, list[str]]] = {}
    taken = {region.address for region in regions}
    for item in merge_ranges(found):
        start, nbytes = item.buffer.address, item.buffer.nbytes
        if nbytes < PAGE_SIZE or item.buffer.pages[0] not in taken:
            continue
        step = (nbytes - _SAMPLE) // _SAMPLES
        data = b"".join(ctypes.string_at(start + i * step, _SAMPLE) for i in range(_SAMPLES))
        if len(set(data)) > 1:
            places = alike.setdefault((nbytes, data), {})
            places.setdefault(start % PAGE_SIZE, []).append(item.name)
    return tuple(
        name
        for places in alike.values()
        if len(places) > 1
        for names in sorted(places.values(), key=len)[:-1]
        for name in names
    )
