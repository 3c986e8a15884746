"""The two calls that most users need: merge the buffers in these objects, or say what it saves."""

from __future__ import annotations

import array
import ctypes
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from ksmpy._maps import AddressSpace, refusal
from ksmpy._native import PAGE_SIZE
from ksmpy.stats import BufferEstimate, Estimate, ScanResult, Stats, human_bytes
from ksmpy.walk import Found, find_buffers, merge_ranges

if TYPE_CHECKING:
    from ksmpy.engine import Engine
    from ksmpy.region import Region

__all__ = ["Report", "dedup", "estimate"]

MIN_BYTES = 1 << 20

# Pages that a thread keeps writing would be tried for ever.
_MAX_PASSES = 8


@dataclass(frozen=True, slots=True)
class Report:
    """What dedup() did; as a context manager, undone at the end of the block."""

    saved_bytes: int
    """Net of the engine's metadata."""
    before_bytes: int
    """Memory in the registered regions, before."""
    after_bytes: int
    """before_bytes - saved_bytes."""
    seconds: float
    regions: tuple[Region, ...]
    refused: tuple[tuple[str, str], ...]
    """(name, reason) of each buffer that could not be merged."""
    scan: ScanResult
    stats: Stats
    _engine: Engine = field(repr=False)

    def undo(self) -> None:
        """Give everything its own memory back. OSError when there is not enough. Idempotent."""
        self._engine.close()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.leave()

    def __str__(self) -> str:
        lines = [
            f"saved {human_bytes(self.saved_bytes)} of {human_bytes(self.before_bytes)} in"
            f" {len(self.regions)} buffers, in {self.seconds:.2f} s"
        ]
        left_out = self.scan.no_budget + self.scan.no_memory + self.scan.busy
        if left_out:
            lines.append(
                f"left alone: {self.scan.no_budget} pages for want of mappings,"
                f" {self.scan.no_memory} of memory, {self.scan.busy} in use for I/O"
            )
        lines += [f"refused {name}: {reason}" for name, reason in self.refused]
        return "\n".join(lines)


def dedup(*objs: object, min_bytes: int = MIN_BYTES) -> Report:
    """Find the buffers of at least `min_bytes` bytes in any objects, and merge their equal pages.

    They stay merged until the objects die, or report.undo(). Nobody notices: addresses stay,
    arrays stay writable, a write gives the page its own memory back. Buffers that cannot be
    merged are in report.refused with the reason. Unsupported where there can be no engine.
    """
    from ksmpy.engine import Engine

    begin = time.perf_counter()
    engine = Engine()
    try:
        regions, refused = engine.track_all(objs, min_bytes=min_bytes)
        scan = ScanResult()
        for _ in range(_MAX_PASSES):
            done = engine.scan(eager=True)
            # Refusals of earlier passes are met again by later ones: those of the last count.
            scan = _continued(scan, done)
            if not done.merged + done.zeroed:
                break
        stats = engine.stats()
    except BaseException:
        engine.leave()
        raise
    before = sum(region.nbytes for region in regions)
    return Report(
        saved_bytes=stats.saved_bytes,
        before_bytes=before,
        after_bytes=before - stats.saved_bytes,
        seconds=time.perf_counter() - begin,
        regions=tuple(regions),
        refused=tuple(refused),
        scan=scan,
        stats=stats,
        _engine=engine,
    )


def _continued(so_far: ScanResult, last: ScanResult) -> ScanResult:
    total = so_far + last
    values = {name: getattr(total, name) for name in ScanResult.__dataclass_fields__}
    for name in ("differed", "busy", "no_budget", "no_memory", "lost"):
        values[name] = getattr(last, name)
    return ScanResult(**values)


def estimate(*objs: object, min_bytes: int = MIN_BYTES) -> Estimate:
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
        skipped=tuple(skipped),
    )


def _look(item: Found, counter: PageCounter) -> BufferEstimate:
    start, end = item.buffer.pages
    memory = memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")
    duplicates, zeros = counter.count(memory, _page_flags(start, end))
    return BufferEstimate(item.name, (end - start) // PAGE_SIZE, duplicates, zeros)


# Documentation/admin-guide/mm/pagemap.rst
_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_EXCLUSIVE = 1 << 56


def _page_flags(start: int, end: int) -> array.array[int] | None:
    """The entries of /proc/self/pagemap; None where there are none."""
    flags = array.array("Q")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(start // PAGE_SIZE * 8)
            while 0 < (missing := (end - start) // PAGE_SIZE - len(flags)):
                part = file.read(missing * 8)
                if not part:
                    return None
                flags.frombytes(part)
    except OSError:
        return None
    return flags


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
            entry = _PRESENT | _EXCLUSIVE if flags is None else flags[page]
            if not entry & (_PRESENT | _SWAPPED):
                continue
            found = digest(memory[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
            # The kernel's zero page is nobody's alone.
            if found != zero or not entry & _PRESENT or entry & _EXCLUSIVE:
                digests.append(found)
        known = len(seen)
        seen.update(digests)
        return len(digests) - (len(seen) - known), digests.count(zero)
