"""The figures that ksmpy hands out: frozen records, counts in pages of 4096 bytes.

Names are the kernel's (Documentation/admin-guide/mm/ksm.rst) wherever it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    from ksmpy.engine.region import Region

__all__ = [
    "BufferEstimate",
    "Check",
    "Coverage",
    "Estimate",
    "Refused",
    "RegionStats",
    "ScanResult",
    "Share",
    "Stats",
    "StoreStats",
]


def human_bytes(count: float) -> str:
    """A byte count with a binary unit, as in '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


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
class Stats:
    """An engine's counters.

    On a store that several processes share, `pages_shared`, `pages_sharing`, the chains and
    dups, `stale_frames`, `frame_bytes` and `metadata_bytes` are the whole store's, as the kernel's
    are the machine's; the profit is reckoned from them. The rest is the engine's own.

    `pages_sharing` is the number of pages saved: it counts how many *more* pages use the
    `pages_shared` frames. The `pages_busy`, `pages_no_budget`, `pages_no_memory`,
    `pages_differed` and `pages_lost` are totals of what was refused: pinned for I/O, mappings
    scarce, store full, changed while being merged, memory gone. A page counts each time that it
    is refused. Where `pages_no_budget` grows, more would merge with a higher vm.max_map_count or
    `knobs.vma_share_percent`, and with arrays that begin at the same place in a page
    (`ksmpy.copy`, `ksmpy.empty`), whose runs are long.
    """

    pages_shared: int
    pages_sharing: int
    merging_pages: int
    """This engine's pages on frames, the first of each included: over all processes of a store
    they are pages_shared + pages_sharing."""
    pages_unshared: int
    pages_volatile: int
    pages_scanned: int
    pages_skipped: int
    full_scans: int
    ksm_zero_pages: int
    stable_node_chains: int
    stable_node_dups: int
    general_profit: int
    """(pages_sharing + ksm_zero_pages) * 4096 - metadata_bytes; below 0 when nothing merges."""
    saved_bytes: int
    """Net gain in bytes: general_profit, or 0 where that is negative."""
    metadata_bytes: int
    frame_bytes: int
    """Memory that the store holds for the frames."""
    vmas: int
    """Mappings of the whole process."""
    vma_limit: int
    """How many mappings the engine lets the process have."""
    registered_pages: int
    stale_frames: int
    """Frames without a sharer that a forked child may still map."""
    pages_busy: int
    pages_no_budget: int
    pages_no_memory: int
    pages_differed: int
    pages_lost: int

    @classmethod
    def from_native(cls, values: Mapping[str, int]) -> Stats:
        """The record for what the engine reports."""
        gained = values["pages_sharing"] + values["ksm_zero_pages"]
        profit = gained * PAGE_SIZE - values["metadata_bytes"]
        known = {field.name for field in fields(cls)}
        return cls(
            **{name: value for name, value in values.items() if name in known},
            general_profit=profit,
            saved_bytes=max(0, profit),
        )

    def __str__(self) -> str:
        from ksmpy.watch.display import stats_text

        return stats_text(self)

    def _repr_html_(self) -> str:
        from ksmpy.watch.display import stats_html

        return stats_html(self)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The counters of a whole store, of all its processes together."""

    pages_shared: int
    pages_sharing: int
    stale_frames: int
    """Frames without a sharer that a forked child may still map."""
    stable_node_chains: int
    stable_node_dups: int
    frame_bytes: int
    """Memory that the frames take."""
    metadata_bytes: int
    saved_bytes: int
    """Net gain in bytes: pages_sharing * 4096 - metadata_bytes, or 0 where that is negative."""
    merge_across_nodes: int
    max_page_sharing: int
    use_zero_pages: int
    deaths: int
    """Processes that ended without leaving the store, and were noticed."""
    rebuilds: int
    """How often the index was made anew, because a process died while it changed it."""
    lock_waits: int
    """How often the store's lock was another's, and had to be waited for."""
    lock_wait_ns: int
    lock_hold_max_ns: int
    full: int
    """1 while its frames have taken what its file system has for them, so that no more are made."""

    @classmethod
    def from_native(cls, values: Mapping[str, int]) -> StoreStats:
        """The record for what the store reports."""
        profit = values["pages_sharing"] * PAGE_SIZE - values["metadata_bytes"]
        known = {field.name for field in fields(cls)}
        return cls(
            **{name: value for name, value in values.items() if name in known},
            saved_bytes=max(0, profit),
        )


@dataclass(frozen=True, slots=True)
class RegionStats:
    """One region's counters, in pages, and its profit in bytes."""

    rmap_items: int
    """Pages that the scanner has seen."""
    merging_pages: int
    """Pages on a frame, the first of each frame included."""
    zero_pages: int
    """Pages on the kernel's zero page, placed there by the engine."""
    saved_pages: int
    """This region's part of the engine's pages_sharing."""
    process_profit: int
    """(merging_pages + zero_pages) * 4096 - the metadata of rmap_items pages, as the kernel
    reckons it for a process: the frames themselves are not taken off."""

    @classmethod
    def from_native(cls, values: Mapping[str, int], engine: Mapping[str, int]) -> RegionStats:
        """The record for what the engine reports of a region, and of itself."""
        # On a shared store the metadata is of all processes' pages.
        merged = engine["pages_shared"] + engine["pages_sharing"]
        per_page = engine["metadata_bytes"] / max(engine["registered_pages"], merged, 1)
        gained = (values["merging_pages"] + values["zero_pages"]) * PAGE_SIZE
        profit = gained - int(values["rmap_items"] * per_page)
        return cls(**values, process_profit=profit)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one call of scan() did, in pages, summed over its passes."""

    scanned: int = 0
    skipped: int = 0
    """Passed over: unchanged and settled, or by smart_scan."""
    merged: int = 0
    zeroed: int = 0
    unmerged: int = 0
    """Found written since they were merged."""
    volatiles: int = 0
    """Written since the previous pass."""
    differed: int = 0
    """Changed before they could be frozen."""
    busy: int = 0
    """Not let go by the kernel, being pinned for I/O."""
    no_budget: int = 0
    """Left alone because mappings are scarce."""
    no_memory: int = 0
    """Left alone because the store could not grow."""
    lost: int = 0
    """Registered, but their memory is no longer the owner's."""
    full: int = 0
    """How many times the end of a pass was reached."""
    seconds: float = 0.0

    def __add__(self, other: ScanResult) -> ScanResult:
        return ScanResult(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


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
        from ksmpy.watch.display import estimate_html

        return estimate_html(self)


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


@dataclass(frozen=True, slots=True)
class Check:
    """One line of doctor(): does it work here, what was found, how to get the rest."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
