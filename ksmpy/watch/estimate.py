"""What merging would save, found by digests of the pages; nothing is changed."""

from __future__ import annotations

import array
import ctypes
import sys
from dataclasses import dataclass
from typing import NamedTuple

from ksmpy import proc
from ksmpy.memory.maps import AddressSpace, refusal
from ksmpy.memory.walk import Found, find_buffers, merge_ranges
from ksmpy.native import PAGE_SIZE
from ksmpy.proc import EXCLUSIVE, PRESENT, SWAPPED
from ksmpy.text import human_bytes, table_html

__all__ = ["BufferEstimate", "Estimate", "PageCounter", "Refused", "estimate", "refusal_lines"]

# Of an estimate's buffers a notebook shows those with most to gain.
_SHOWN = 10


class Refused(NamedTuple):
    """What was not merged, or not looked at, and why."""

    name: str
    reason: str


def refusal_lines(refused: tuple[Refused, ...]) -> list[str]:
    """One line for each reason, naming the first that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in refused:
        names.setdefault(reason, []).append(name)
    return [
        f"refused {each[0]}{f' and {len(each) - 1} more' if len(each) > 1 else ''}: {reason}"
        for reason, each in names.items()
    ]


@dataclass(frozen=True, slots=True)
class BufferEstimate:
    """What an estimate says of one buffer or mapping, in pages."""

    name: str
    pages: int
    duplicate_pages: int
    """Pages whose bytes also occur in an earlier page, of this buffer or of another."""
    zero_pages: int
    """All-zero pages, whether duplicates or not."""

    @property
    def saved_bytes(self) -> int:
        """What the duplicates take up."""
        return self.duplicate_pages * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Estimate:
    """What merging would save, found by digests; nothing was changed.

    Gross figures: the engine's metadata, some 16 bytes a page, is not taken off.
    """

    total_pages: int
    duplicate_pages: int
    """Pages that could go: each page whose bytes occurred before."""
    zero_pages: int
    """All-zero pages, whether duplicates or not."""
    buffers: tuple[BufferEstimate, ...] = ()
    skipped: tuple[Refused, ...] = ()
    """What could not be looked at."""

    @property
    def total_bytes(self) -> int:
        """Bytes looked at."""
        return self.total_pages * PAGE_SIZE

    @property
    def saved_bytes(self) -> int:
        """Bytes that merging would give back."""
        return self.duplicate_pages * PAGE_SIZE

    def __str__(self) -> str:
        part = self.duplicate_pages / self.total_pages if self.total_pages else 0.0
        first = (
            f"{human_bytes(self.saved_bytes)} of {human_bytes(self.total_bytes)} ({part:.0%}) in"
            f" {len(self.buffers)} buffers are duplicates; {self.zero_pages} pages are zero"
        )
        return "\n".join([first, *refusal_lines(self.skipped)])

    def _repr_html_(self) -> str:
        first, *notes = str(self).splitlines()
        most = sorted(self.buffers, key=lambda each: -each.saved_bytes)
        rows = [
            (each.name, f"{human_bytes(each.saved_bytes)} of {human_bytes(each.pages * PAGE_SIZE)}")
            for each in most[:_SHOWN]
        ]
        left = len(most) - len(rows)
        return table_html(first, rows, [*([f"and {left} buffers more"] if left else []), *notes])


def estimate(*objs: object, min_bytes: int = 1 << 20) -> Estimate:
    """What dedup() would save, by a 128-bit murmur3 digest of each page; changes nothing.

    Gross: the engine's metadata is not taken off. Pages that were never written take no memory,
    and are not counted where /proc/self/pagemap tells. Works on every system.
    """
    found, skipped = find_buffers(objs, min_bytes)
    pieces = merge_ranges(found)
    limit = max((item.buffer.pages[1] for item in pieces), default=0)
    space = AddressSpace.read(limit) if sys.platform.startswith("linux") else None
    counter = PageCounter()
    buffers = []
    for item in pieces:
        start, end = item.buffer.pages
        reason = "it holds no whole page" if end <= start else None
        if space is not None and reason is None:
            reason = refusal(space.covering(start, end), start, end)
        if reason is not None:
            skipped.append((item.name, reason))
        else:
            buffers.append(_look(item, counter))
    return Estimate(
        total_pages=sum(buffer.pages for buffer in buffers),
        duplicate_pages=sum(buffer.duplicate_pages for buffer in buffers),
        zero_pages=sum(buffer.zero_pages for buffer in buffers),
        buffers=tuple(buffers),
        skipped=tuple(Refused(*each) for each in skipped),
    )


def _look(item: Found, counter: PageCounter) -> BufferEstimate:
    start, end = item.buffer.pages
    memory = memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")
    duplicates, zeros = counter.count(memory, _page_flags(start, end))
    return BufferEstimate(item.name, (end - start) // PAGE_SIZE, duplicates, zeros)


def _page_flags(start: int, end: int) -> array.array[int] | None:
    """The entries of /proc/self/pagemap; None where there are none."""
    pages = (end - start) // PAGE_SIZE
    try:
        entries = proc.own_page_entries(start, pages)
    except OSError:
        return None
    flags = array.array("Q", entries)
    return flags if len(flags) == pages else None


class PageCounter:
    """Remembers the digests of all pages it was shown."""

    def __init__(self) -> None:
        import mmh3

        self._digest = mmh3.mmh3_x64_128_digest
        self._zero = self._digest(bytes(PAGE_SIZE))
        self._seen: set[bytes] = set()

    def count(self, memory: memoryview, flags: array.array[int] | None) -> tuple[int, int]:
        """(pages whose bytes were seen before, all-zero pages) of `memory`, whole pages, as far as
        they have memory of their own by the `flags` of pagemap.
        """
        digest, seen, zero = self._digest, self._seen, self._zero
        digests = []
        for page in range(len(memory) // PAGE_SIZE):
            entry = PRESENT | EXCLUSIVE if flags is None else flags[page]
            if not entry & (PRESENT | SWAPPED):
                continue
            found = digest(memory[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
            # The kernel's zero page is nobody's alone.
            if found != zero or not entry & PRESENT or entry & EXCLUSIVE:
                digests.append(found)
        known = len(seen)
        seen.update(digests)
        return len(digests) - (len(seen) - known), digests.count(zero)
