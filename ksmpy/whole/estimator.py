"""estimate(): what dedup() would save, found by digests of the pages; nothing is changed."""

from __future__ import annotations

import array
import ctypes
import sys
from contextlib import suppress

from ksmpy import proc
from ksmpy.engine.knobs import KNOBS
from ksmpy.limits import mappings
from ksmpy.memory.maps import MERGED, AddressSpace, refusal
from ksmpy.memory.traverse import Found, find_buffers, merge_ranges
from ksmpy.native import PAGE_SIZE
from ksmpy.proc import EXCLUSIVE, PRESENT, SWAPPED
from ksmpy.watch.estimate import BufferEstimate, Estimate, Refused
from ksmpy.whole.dedup import present_engine
from ksmpy.whole.forecast import Budget, Forecast

__all__ = ["estimate"]


def estimate(*objs: object, min_bytes: int = 1 << 20) -> Estimate:
    """What dedup() would save, by a 128-bit murmur3 digest of each page; changes nothing.

    Gross: the engine's metadata is not taken off. Frames have at most max_page_sharing sharers,
    and mappings are counted as the engine does: where vm.max_map_count does not allow for all of
    what is equal, as with scattered pages, which take up to four of them a pair, only what it does
    allow for is promised. Pages that were never written take no memory, and are not counted where
    /proc/self/pagemap tells. Works on every system; without
    /proc nothing limits the mappings.
    """
    found, skipped = find_buffers(objs, min_bytes)
    pieces = merge_ranges(found)
    limit = max((item.buffer.pages[1] for item in pieces), default=0)
    space = AddressSpace.read(limit) if sys.platform.startswith("linux") else None
    forecast, digests = _forecast(len(pieces)), PageDigests()
    looked: list[tuple[Found, int]] = []
    for item in pieces:
        start, end = item.buffer.pages
        reason = "it holds no whole page" if end <= start else None
        if space is not None and reason is None:
            reason = refusal(space.covering(start, end), start, end)
        if reason is None:
            seen = digests.of(start, end)
            forecast.add(start // PAGE_SIZE, seen)
            looked.append((item, seen.count(digests.zero)))
        else:
            skipped.append((item.name, reason))
            if reason == MERGED:
                forecast.add_merged(digests.of(start, end, overlays=True))
    buffers = tuple(
        BufferEstimate(item.name, _whole_pages(item), saved, zeros)
        for (item, zeros), saved in zip(looked, forecast.saved(), strict=True)
    )
    return Estimate(
        total_pages=sum(buffer.pages for buffer in buffers),
        duplicate_pages=sum(buffer.duplicate_pages for buffer in buffers),
        zero_pages=sum(buffer.zero_pages for buffer in buffers),
        buffers=buffers,
        skipped=tuple(Refused(*each) for each in skipped),
    )


def _whole_pages(item: Found) -> int:
    start, end = item.buffer.pages
    return (end - start) // PAGE_SIZE


def _page_flags(start: int, end: int) -> array.array[int] | None:
    """The entries of /proc/self/pagemap for these pages; None if it cannot be read."""
    pages = (end - start) // PAGE_SIZE
    try:
        entries = array.array("Q", proc.own_page_entries(start, pages))
    except OSError:
        return None
    return entries if len(entries) == pages else None


class PageDigests:
    """Of pages of this process."""

    def __init__(self) -> None:
        import mmh3

        self._digest = mmh3.mmh3_x64_128_digest
        self.zero: bytes = self._digest(bytes(PAGE_SIZE))

    def of(self, start: int, end: int, *, overlays: bool = False) -> list[bytes | None]:
        """One for each page of [start, end); None where it has no memory of its own, by the flags
        of pagemap, and is no overlay.
        """
        memory = memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")
        flags = None if overlays else _page_flags(start, end)
        digests: list[bytes | None] = []
        for page in range(len(memory) // PAGE_SIZE):
            entry = PRESENT | EXCLUSIVE if flags is None else flags[page]
            found = None
            if entry & (PRESENT | SWAPPED):
                found = self._digest(memory[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
                # The kernel's zero page is present, and not exclusive to this process.
                if found == self.zero and entry & PRESENT and not entry & EXCLUSIVE:
                    found = None
            digests.append(found)
        return digests


#: Mappings that an engine takes for itself, and for each region (its ends, and its shadow).
_OWN_MAPPINGS, _REGION_MAPPINGS = 24, 3
#: Mappings that the engine may wrongly believe to be in use when it stops merging: it assumes the
#: worst of each step, and counts them anew after 256 steps.
_UNCOUNTED = 128


def _forecast(regions: int) -> Forecast:
    """By the knobs of the engine that dedup() would use."""
    zero = PageDigests().zero
    engine = present_engine()
    knobs = {name: KNOBS[name].default for name in ("max_page_sharing", "use_zero_pages")}
    share = KNOBS["vma_share_percent"].default
    if engine is not None:
        knobs = {name: getattr(engine.knobs, name) for name in knobs}
        share = engine.knobs.vma_share_percent
    budget = None
    with suppress(OSError):
        used, most = mappings()
        used += _UNCOUNTED + regions * _REGION_MAPPINGS + (_OWN_MAPPINGS if engine is None else 0)
        budget = Budget(used, most * share // 100)
    return Forecast(knobs["max_page_sharing"], budget, zero if knobs["use_zero_pages"] else None)
