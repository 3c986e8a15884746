"""The figures of an engine: frozen records, counts in pages of 4096 bytes.

Names are the kernel's (Documentation/admin-guide/mm/ksm.rst) wherever it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ksmpy.native import PAGE_SIZE
from ksmpy.saving import net_bytes
from ksmpy.text import Row, human_bytes, table_html, table_text

__all__ = ["RegionStats", "ScanResult", "Stats", "saved_here", "stats_rows"]


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine's counters.

    On a store that several processes share, `pages_shared`, `pages_sharing`, the chains and
    dups, `stale_frames`, `huge_frames`, `spare_frames`, `frame_bytes` and `metadata_bytes` are the
    whole store's, as the kernel's are the machine's; the profit is reckoned from them. The rest is
    the engine's own.

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
    """(pages_sharing + ksm_zero_pages - spare_frames) * 4096 - metadata_bytes; below 0 when nothing
    merges."""
    saved_bytes: int
    """Net gain in bytes: general_profit, or 0 where that is negative."""
    metadata_bytes: int
    frame_bytes: int
    """Memory that the store holds for the frames, and that is spare."""
    vmas: int
    """Mappings of the whole process."""
    vma_limit: int
    """How many mappings the engine lets the process have."""
    registered_pages: int
    stale_frames: int
    """Frames without a sharer that a forked child may still map."""
    huge_frames: int
    """Frames in use that lie on huge pages of 512: what is merged onto all of one, and begins where
    a huge page does, is mapped as one."""
    spare_frames: int
    """Room of such huge pages that no frame uses, and that keeps its memory: at most an eighth of
    the frames in use, none where memory is scarce."""
    pages_busy: int
    pages_no_budget: int
    pages_no_memory: int
    pages_differed: int
    pages_lost: int

    @classmethod
    def from_native(cls, values: Mapping[str, int]) -> Stats:
        """The record for what the engine reports."""
        profit = _profit(values)
        known = {field.name for field in fields(cls)}
        return cls(
            **{name: value for name, value in values.items() if name in known},
            general_profit=profit,
            saved_bytes=max(0, profit),
        )

    def __str__(self) -> str:
        return table_text(stats_rows(self))

    def _repr_html_(self) -> str:
        return table_html("ksmpy: counters of an engine", stats_rows(self))


def _profit(values: Mapping[str, int]) -> int:
    """The net gain of the engine and all on its store, but for the zeros and tables of others."""
    frames = values["pages_shared"] + values["spare_frames"]
    return net_bytes(
        merged=(values["pages_shared"] + values["pages_sharing"]) * PAGE_SIZE,
        stores=frames * PAGE_SIZE + values["store_metadata_bytes"],
        zeros=values["ksm_zero_pages"] * PAGE_SIZE,
        tables=values["metadata_bytes"] - values["store_metadata_bytes"],
    )


def saved_here(
    values: Mapping[str, int],
    by_fork: Mapping[int, int],
    pid: int,
    zeros_by_fork: int,
    package_bytes: int,
) -> int:
    """An engine's part, in bytes, of what its store saves, with its own zeros and tables.

    `by_fork`: how many pages of each process that uses the store have come to it by a fork;
    `zeros_by_fork`: the zeros that the engine had when it came by one; `package_bytes`: what ksmpy
    has taken to be imported.
    """
    merged = values["pages_shared"] + values["pages_sharing"]
    others = sum(by_fork.values())
    mine = values["merging_pages"] - min(by_fork.get(pid, 0), values["merging_pages"])
    frames = values["pages_shared"] + values["spare_frames"]
    together = net_bytes(
        merged=merged * PAGE_SIZE,
        stores=frames * PAGE_SIZE + values["store_metadata_bytes"],
        by_fork=others * PAGE_SIZE,
    )
    own = net_bytes(
        merged=0,
        stores=0,
        by_fork=min(zeros_by_fork, values["ksm_zero_pages"]) * PAGE_SIZE,
        zeros=values["ksm_zero_pages"] * PAGE_SIZE,
        tables=values["metadata_bytes"] - values["store_metadata_bytes"] + package_bytes,
    )
    return max(0, together * mine // max(merged - others, 1) + own)


def stats_rows(stats: Stats) -> list[Row]:
    """What an engine's counters say, in words."""
    rows = [
        ("saved", human_bytes(stats.saved_bytes)),
        (
            "merged",
            f"{stats.merging_pages} of {stats.registered_pages} pages; {stats.pages_shared} frames"
            f" take {human_bytes(stats.frame_bytes)}",
        ),
        ("huge pages", f"hold {stats.huge_frames} frames, and have room for {stats.spare_frames}"),
        ("zero pages", str(stats.ksm_zero_pages)),
        ("alone", f"{stats.pages_unshared} pages; {stats.pages_volatile} are written often"),
        ("metadata", human_bytes(stats.metadata_bytes)),
        ("mappings", f"{stats.vmas} of {stats.vma_limit}"),
        ("passes", str(stats.full_scans)),
    ]
    refusals = (
        ("in use for I/O", stats.pages_busy),
        ("for want of mappings", stats.pages_no_budget),
        ("for want of memory", stats.pages_no_memory),
        ("changed meanwhile", stats.pages_differed),
        ("memory gone", stats.pages_lost),
    )
    told = ", ".join(f"{count} {why}" for why, count in refusals if count)
    return [*rows, ("refused", told)] if told else rows


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
    """Passed over: unchanged and settled, by smart_scan, or, in the background, in memory that is
    written all over again and again."""
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
