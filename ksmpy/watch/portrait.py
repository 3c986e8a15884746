"""Everything that can be told of processes that use ksmpy, from outside, at one moment.

Of each: what the kernel counts (smaps_rollup), which pages lie on whose frames (pagemap), and what
its engine has noted of itself, if there is one that does (engine.history). The processes go on
meanwhile: this is a picture with the sharpness of the time that it took.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ksmpy.errors import CommandError, StoreError
from ksmpy.native import PAGE_SIZE
from ksmpy.store.files import is_shared_store, is_store
from ksmpy.text import shown
from ksmpy.watch import advice
from ksmpy.watch.memory_map import Strip, strips
from ksmpy.watch.observe import File
from ksmpy.watch.pages import Kind
from ksmpy.watch.savings import Savings, savings
from ksmpy.watch.stores import NamedStore, named_stores
from ksmpy.watch.subjects import Subject, subjects, who_shares
from ksmpy.watch.ties import Copy, Tie
from ksmpy.watch.timeline import Timeline, timeline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["LeftOut", "Portrait", "ProcessFigures", "StoreFigures", "Totals", "portrait"]

_LITTLE = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Of one process; bytes."""

    pid: int
    command: str
    program: str
    """What it runs, without the arguments."""
    started: float
    """Seconds since 1970."""
    pss_bytes: int
    rss_bytes: int
    uss_bytes: int
    swap_bytes: int
    on_frames_bytes: int
    """Its pages that lie on frames now."""
    written_bytes: int
    """Its pages that were merged, and were written since."""
    zero_bytes: int
    """Zeros that its engine has given back, and that take no memory still."""
    saved_bytes: int
    """Its part of what all save, net; 0 where its tables cost more."""
    kernel_mapped_bytes: int
    """What the kernel itself says (smaps): the size of its private mappings of stores."""
    kernel_copied_bytes: int
    """The part of that which has been copied since, being written; in swap included."""
    metadata_bytes: int
    """Tables of its engines beside the stores."""
    package_bytes: int
    """What ksmpy took to be imported; 0 where that was not seen."""
    mappings: int
    mappings_limit: int
    merged_mappings: int
    scan_seconds: float | None
    """Processor time that its scans took; None where its engine notes nothing."""
    history_seconds: float | None
    freeze: str
    tracking: str
    kinds: dict[str, int]
    """Its private memory by what it is."""


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """Of the file behind frames that somebody uses."""

    name: str
    pids: tuple[int, ...]
    kept_bytes: int
    """Memory that it takes: frames and index."""
    in_pss_bytes: int
    """The part of it that is in the PSS of its processes."""
    full: bool
    """Whether what needs a new frame is left apart, for want of room; of a store without a name, as
    its engines have noted last."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Memory that is not merged, and why."""

    pids: tuple[int, ...]
    reason: str
    nbytes: int | None
    times: int | None
    """How often pages were refused, where that is what is counted."""
    way_out: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all of them together; bytes."""

    paid_bytes: int
    """PSS of all, and what of their stores is in nobody's."""
    saved_bytes: int
    would_be_bytes: int
    """paid_bytes + saved_bytes."""
    since: float | None
    """When something was saved first, as far as engines have noted it."""
    pss_bytes: int
    rss_bytes: int
    on_frames_bytes: int
    by_fork_bytes: int
    """The part of it, and of the zeros, that came by forks: one page without ksmpy, too."""
    zero_bytes: int
    written_bytes: int
    frames_bytes: int
    """Frames in use by these processes, each once."""
    kept_bytes: int
    """What their stores take."""
    overhead_bytes: int
    """What stores take beyond frames in use, the engines' own tables, and ksmpy itself."""
    kernel_mapped_bytes: int
    kernel_copied_bytes: int
    scan_seconds: float | None
    mappings: int


@dataclass(frozen=True, slots=True)
class Portrait:
    """All of it."""

    version: str
    taken: float
    """Seconds since 1970."""
    seconds: float
    """How long it took to look."""
    totals: Totals
    processes: tuple[ProcessFigures, ...]
    stores: tuple[StoreFigures, ...]
    copies: tuple[Copy, ...]
    ties: tuple[Tie, ...]
    timeline: Timeline
    strips: tuple[Strip, ...]
    left_out: tuple[LeftOut, ...]
    unseen: tuple[str, ...] = ()
    """Processes that could not be looked at, and why."""


def portrait(pids: Iterable[int] | None = None, listed: Iterable[int] = ()) -> Portrait:
    """Look at processes, and at all who share a store with them; None: at all that use ksmpy.
    `listed`: processes that were found in a list, and may have ended since then.

    CommandError when one of `pids` cannot be looked at, or uses no ksmpy, and when there is none.
    """
    from importlib.metadata import version

    begin, taken = time.perf_counter(), time.time()
    found, unseen = subjects(None if pids is None else set(pids), listed)
    if not found:
        if unseen:
            raise CommandError(unseen[0])
        raise CommandError(
            "no process here uses ksmpy", "start one by ksmpy run, or try ksmpy demo"
        )
    together = savings(found)
    shared = who_shares(found)
    stores = _stores(found, together.kept)
    processes = tuple(_figures(subject) for subject in found)
    noted = {subject.pid: subject.pasts for subject in found if _samples(subject)}
    line = timeline(noted, [each for each in processes if each.pid in noted], taken)
    return Portrait(
        version=version("ksmpy"),
        taken=taken,
        seconds=time.perf_counter() - begin,
        totals=_totals(processes, stores, together, shared.frames, line),
        processes=processes,
        stores=stores,
        copies=tuple(shared.copies),
        ties=tuple(shared.ties),
        timeline=line,
        strips=tuple(
            strip
            for subject in found
            for strip in strips(
                subject.pid, subject.look, subject.users, subject.regions, bool(subject.pasts)
            )
        ),
        left_out=_left_out(found),
        unseen=tuple(unseen),
    )


# ---- figures ------------------------------------------------------------------------------------


def _figures(subject: Subject) -> ProcessFigures:
    import numpy as np

    seen, sizes, pages = subject.seen, subject.sizes, subject.look
    counts = np.bincount(pages.kind, weights=pages.pages, minlength=len(Kind))
    alone = int((subject.users == 1).sum())
    counts[Kind.KEPT], counts[Kind.SHARED] = alone, counts[Kind.SHARED] - alone
    return ProcessFigures(
        pid=subject.pid,
        command=seen.command,
        program=subject.program,
        started=subject.started,
        pss_bytes=sizes.get("Pss", 0),
        rss_bytes=sizes.get("Rss", 0),
        uss_bytes=seen.uss_bytes,
        swap_bytes=sizes.get("Swap", 0),
        on_frames_bytes=int(len(subject.users)) * PAGE_SIZE,
        written_bytes=int(counts[Kind.WRITTEN]) * PAGE_SIZE,
        zero_bytes=seen.zero_bytes,
        saved_bytes=seen.saved_bytes,
        kernel_mapped_bytes=seen.merged_bytes,
        kernel_copied_bytes=seen.written_bytes,
        metadata_bytes=subject.table_bytes,
        package_bytes=seen.package_bytes,
        mappings=seen.vmas,
        mappings_limit=seen.vma_limit,
        merged_mappings=seen.merged_vmas,
        scan_seconds=_last(subject, lambda past: past.samples[-1].scan_microseconds / 1e6),
        history_seconds=_last(subject, lambda past: past.facts["history"]["seconds"]),
        freeze=subject.fact("freeze", ""),
        tracking=subject.fact("tracking", ""),
        kinds={kind.name.lower(): int(counts[kind]) * PAGE_SIZE for kind in Kind},
    )


def _last(subject: Subject, value: Any) -> float | None:
    values = [value(past) for past in subject.pasts if past.samples]
    return sum(values) if values else None


def _samples(subject: Subject) -> int:
    return sum(len(past.samples) for past in subject.pasts)


def _stores(among: list[Subject], kept: dict[File, int]) -> tuple[StoreFigures, ...]:
    pids: dict[File, set[int]] = {}
    names: dict[File, str] = {}
    in_pss: dict[File, int] = {}
    for subject in among:
        for each in subject.mappings:
            if is_store(each.path):
                sizes = each.sizes
                part = sizes.get("Pss", 0)
                if each.perms[3] == "p":
                    part = max(0, part - sizes.get("Anonymous", 0))
                file = each.device, each.inode
                pids.setdefault(file, set()).add(subject.pid)
                names[file] = each.path.removesuffix(" (deleted)")
                in_pss[file] = in_pss.get(file, 0) + part
    known = {store.path: store for store in _named()}
    noted = set().union(*(subject.seen.full_stores for subject in among))

    def figures(file: File, users: set[int]) -> StoreFigures:
        store = known.get(names[file])
        unnamed = "without a name" if is_shared_store(names[file]) else f"of process {min(users)}"
        return StoreFigures(
            shown(store.name) if store else unnamed,
            tuple(sorted(users)),
            kept[file],
            min(in_pss[file], kept[file]),
            store.full if store and store.stats else file[1] in noted,
        )

    return tuple(figures(file, users) for file, users in pids.items())


def _named() -> list[NamedStore]:
    try:
        return list(named_stores())
    except StoreError:
        return []


def _totals(
    processes: tuple[ProcessFigures, ...],
    stores: tuple[StoreFigures, ...],
    together: Savings,
    frame_count: int,
    line: Timeline,
) -> Totals:
    def total(name: str) -> int:
        return sum(getattr(each, name) for each in processes)

    kept = sum(store.kept_bytes for store in stores)
    frames = frame_count * PAGE_SIZE
    overhead = max(0, kept - frames) + total("metadata_bytes") + total("package_bytes")
    saved = together.saved_bytes
    paid = total("pss_bytes") + kept - sum(store.in_pss_bytes for store in stores)
    seconds = [each.scan_seconds for each in processes if each.scan_seconds is not None]
    return Totals(
        paid_bytes=paid,
        saved_bytes=saved,
        would_be_bytes=paid + saved,
        since=line.since if saved else None,
        pss_bytes=total("pss_bytes"),
        rss_bytes=total("rss_bytes"),
        on_frames_bytes=total("on_frames_bytes"),
        by_fork_bytes=together.by_fork,
        zero_bytes=total("zero_bytes"),
        written_bytes=total("written_bytes"),
        frames_bytes=frames,
        kept_bytes=kept,
        overhead_bytes=overhead,
        kernel_mapped_bytes=total("kernel_mapped_bytes"),
        kernel_copied_bytes=total("kernel_copied_bytes"),
        scan_seconds=sum(seconds) if seconds else None,
        mappings=total("mappings"),
    )


def _left_out(among: list[Subject]) -> tuple[LeftOut, ...]:
    """What was left out by reason, the largest first; reasons counted in times come after those
    counted in bytes.
    """
    nbytes: dict[str, dict[int, int]] = {}
    times: dict[str, dict[int, int]] = {}
    for subject in among:
        for reason, size in _reasons(subject):
            mine = nbytes.setdefault(reason, {})
            mine[subject.pid] = mine.get(subject.pid, 0) + size
        for name, reason in advice.COUNTERS.items():
            count = subject.counted(name)
            if count and name == "pages_volatile":
                nbytes.setdefault(reason, {})[subject.pid] = count * PAGE_SIZE
            elif count:
                times.setdefault(reason, {})[subject.pid] = count
    sizes = sorted(nbytes.items(), key=lambda item: -sum(item[1].values()))
    return (
        *(
            LeftOut(tuple(each), reason, sum(each.values()), None, advice.way_out(reason))
            for reason, each in sizes
            if sum(each.values()) >= _LITTLE
        ),
        *(
            LeftOut(tuple(each), reason, None, sum(each.values()), advice.way_out(reason))
            for reason, each in times.items()
        ),
    )


def _reasons(subject: Subject) -> Iterable[tuple[str, int]]:
    coverage = subject.fact("coverage")
    return _unregistered(subject) if coverage is None else map(tuple, coverage["left"])


def _unregistered(subject: Subject) -> Iterable[tuple[str, int]]:
    """Private memory that no region has, of a process whose engine tells of its regions."""
    import numpy as np

    if not subject.pasts:
        return
    seen = subject.look
    own = np.isin(seen.kind, (Kind.ALONE, Kind.HUGE, Kind.OFTEN, Kind.SWAPPED))
    inside = np.zeros(len(seen.start), bool)
    for start, end, _ in subject.regions:
        inside[np.searchsorted(seen.start, start) : np.searchsorted(seen.start, end)] = True
    for span in seen.spans:
        part = slice(*np.searchsorted(seen.start, (span.start, span.end)))
        pages = int(seen.pages[part][own[part] & ~inside[part]].sum())
        if pages:
            yield span.reason or advice.NOBODY, pages * PAGE_SIZE
