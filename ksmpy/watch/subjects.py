"""Processes that use ksmpy, looked at from outside, and who of them shares with whom."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from ksmpy import proc
from ksmpy.engine.history import Past
from ksmpy.errors import CommandError
from ksmpy.native import PAGE_SIZE
from ksmpy.text import shown
from ksmpy.watch.observe import (
    File,
    Observation,
    describe,
    descriptors,
    glance,
    mapped_stores,
    outline,
    refusal,
    store_sizes,
    stores_in_use,
    stores_of,
)
from ksmpy.watch.pages import Kind, Look, look, look_in_brief
from ksmpy.watch.past import counters, full_stores, own_tables, package_bytes, pasts
from ksmpy.watch.ties import Holder, Sharing, sharing
from ksmpy.watch.zeros import noted_zeros, told_by_pages, watched_memory, zeros_left

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["UNNAMED", "Subject", "connected", "examine", "refuse", "subjects", "who_shares"]

UNNAMED = "unnamed memory"
# How many buffers of a process are named in the picture: those with most on frames.
_NAMED = 12


@dataclass
class Subject:
    """One process while it is looked at."""

    seen: Observation
    sizes: dict[str, int]
    kept: dict[File, int]
    """The memory that the files of its stores take."""
    files: dict[File, int]
    """The numbers of the files of stores in `look`: those of all who are looked at together."""
    look: Look
    pasts: list[Past]
    started: float
    program: str
    mappings: list[proc.Mapping]
    """None of them where it was looked at in brief; then `started` and `program` are not told."""
    stores: set[File]
    """The files of stores that it has mapped."""
    regions: list[tuple[int, int, str]] = field(default_factory=list)
    rows: Any = None  # of each stretch: its buffer's number
    users: Any = None  # of each page on a frame: how many pages its frame has

    @property
    def pid(self) -> int:
        """Its number."""
        return self.seen.pid

    @property
    def table_bytes(self) -> int:
        """What its engines take beside the stores that they share with others."""
        return sum(map(own_tables, self.pasts))

    def fact(self, name: str, default: Any = None) -> Any:
        """The first engine's."""
        return next((each.facts[name] for each in self.pasts if name in each.facts), default)

    def counted(self, name: str) -> int:
        """The sum of a counter over the process's engines."""
        return sum(counters(past).get(name, 0) for past in self.pasts)


def subjects(
    named: set[int] | None, listed: Iterable[int] = (), *, detailed: bool = True
) -> tuple[list[Subject], list[str]]:
    """The processes that somebody has named or found in a list, and all who share a store with one
    of them; None: all that use ksmpy. And why others could not be looked at. `detailed`: with what
    only a report shows, which takes several times as long.

    CommandError when a named one is not there, or uses no ksmpy. One of a list may have ended since
    then, which is no error.
    """
    stores = stores_in_use()
    for pid in sorted((named or set()) - set(stores)):
        refuse(pid)
    found, unseen = [], []
    for pid in sorted(set(listed) - set(stores)):
        try:
            glance(pid)
        except CommandError as error:
            if os.path.exists(f"/proc/{pid}"):
                unseen.append(str(error))
    files: dict[File, int] = {}
    wanted = None if named is None else (named | set(listed)) & set(stores)
    for pid in sorted(stores if wanted is None else connected(stores, wanted)):
        try:
            found.append(examine(pid, files, detailed=detailed))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        except OSError as error:
            if os.path.exists(f"/proc/{pid}"):
                unseen.append(str(refusal(pid, error)))
    return found, unseen


def refuse(pid: int) -> NoReturn:
    """Say that a process uses no ksmpy, or why it cannot be looked at."""
    glance(pid)
    raise CommandError(f"process {pid} has merged nothing", "ksmpy analyze says what it would save")


def connected(stores: dict[int, set[File]], wanted: set[int]) -> set[int]:
    """Those, and whoever shares a store with one of them."""
    reached = set(wanted)
    while True:
        common: set[File] = set().union(*(stores[pid] for pid in reached))
        more = {pid for pid, mine in stores.items() if common & mine} | wanted
        if more == reached:
            return reached
        reached = more


def examine(
    pid: int, files: dict[File, int], *, detailed: bool = True, lines: proc.Lines | None = None
) -> Subject:
    """One process; `files`: the numbers of the stores' files, to which its own are added. `lines`:
    its mappings, if they have just been read (proc.raw_mappings()). OSError when it is gone, or may
    not be looked at.
    """
    subject = None if detailed else _in_brief(pid, files, lines or proc.raw_mappings(pid))
    return subject or _in_detail(pid, files)


def _in_brief(pid: int, files: dict[File, int], lines: proc.Lines) -> Subject | None:
    """Without smaps, for which the kernel counts each page of each mapping; None where only that
    tells what is in swap, or which zeros are left.
    """
    sums, opened = proc.rollup(pid), descriptors(pid)
    noted = pasts(pid, opened, sampled=False)
    with_zeros = [past for past in noted if noted_zeros(past)]
    if sums.get("Swap") or not all(map(told_by_pages, with_zeros)):
        return None
    regions = _regions(noted)
    edges = [edge for start, end, _ in regions for edge in (start, end)]
    found = look_in_brief(pid, lines, files, edges)
    if found is None:
        return None
    kept, stores = store_sizes(pid, opened), mapped_stores(lines)
    seen = outline(pid, len(lines), sums, kept, stores)
    seen.merged_vmas, seen.merged_bytes = found.overlays, found.overlay_bytes
    pages = found.look
    seen.written_bytes = int(pages.pages[pages.kind == Kind.WRITTEN].sum()) * PAGE_SIZE
    zeros = sum(zeros_left(past, pages, found.watched) for past in with_zeros)
    seen.zero_bytes = zeros * PAGE_SIZE
    _tell_noted(seen, noted)
    return Subject(seen, sums, kept, files, pages, noted, 0.0, "", [], stores, regions)


def _tell_noted(seen: Observation, noted: list[Past]) -> None:
    seen.full_stores = full_stores(noted)
    seen.package_bytes = sum(map(package_bytes, noted))


def _regions(noted: list[Past]) -> list[tuple[int, int, str]]:
    return sorted(
        (address, address + nbytes, name)
        for past in noted
        for address, nbytes, name in past.facts["regions"]  # type: ignore[attr-defined]
    )


def _in_detail(pid: int, files: dict[File, int]) -> Subject:
    mappings, sums, kept = proc.smaps(pid), proc.rollup(pid), store_sizes(pid)
    seen = describe(pid, mappings, sums, kept)
    noted = pasts(pid)
    regions = _regions(noted)
    watched = watched_memory(mappings) if any(map(noted_zeros, noted)) else []
    spans = [*((start, end) for start, end, _ in regions), *watched]
    edges = [edge for span in spans for edge in span]
    pages = look(pid, mappings, files, edges)
    _, started = proc.origin(pid)
    seen.zero_bytes = sum(zeros_left(past, pages, watched) for past in noted) * PAGE_SIZE
    _tell_noted(seen, noted)
    return Subject(
        seen,
        sums,
        kept,
        files,
        pages,
        noted,
        started,
        _program(pid),
        mappings,
        stores_of(mappings),
        regions,
    )


def _program(pid: int) -> str:
    """Its name and what that runs; what else it was given may be secret."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").rstrip("\0").split("\0")
    told = [words[0] if " " in words[0] else os.path.basename(words[0])]
    for word in words[1:]:
        if word == "-c":
            return shown(f"{told[0]} -c")
        if not word.startswith("-"):
            told.append(os.path.basename(word))
            break
    return shown(" ".join(told)[:60])


# ---- who shares with whom -----------------------------------------------------------------------


def who_shares(among: list[Subject]) -> Sharing:
    """What they have in common; each learns how many pages the frames of its own ones have."""
    import numpy as np

    rows: list[Holder] = []
    row_parts, frame_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for subject in among:
        _number(subject, rows)
        seen = subject.look
        on = seen.kind == Kind.SHARED
        pages = seen.pages[on]
        first = (seen.store[on] << 40) + seen.frame[on]
        total = int(pages.sum())
        # The frames of a stretch are in a row: a page's is the first one's number plus its place.
        into = np.arange(total) - np.repeat(np.cumsum(pages) - pages, pages)
        frame_parts.append(np.repeat(first, pages) + into)
        row_parts.append(np.repeat(subject.rows[on], pages))
    result = sharing(rows, np.concatenate(row_parts), np.concatenate(frame_parts))
    ends = np.cumsum([len(part) for part in frame_parts])
    for subject, start, end in zip(among, ends[:-1], ends[1:], strict=True):
        subject.users = result.users[start:end]
    return result


def _number(subject: Subject, rows: list[Holder]) -> None:
    """Give each stretch the number of its buffer in `rows`, to which the process's are added."""
    import numpy as np

    seen, regions = subject.look, subject.regions
    starts = np.array([start for start, _, _ in regions], np.int64)
    ends = np.array([end for _, end, _ in regions], np.int64)
    index = np.searchsorted(starts, seen.start, side="right") - 1
    inside = index >= 0
    inside[inside] = seen.start[inside] < ends[index[inside]]
    index = np.where(inside, index, len(regions))
    weight = np.bincount(
        index, weights=np.where(seen.kind == Kind.SHARED, seen.pages, 0), minlength=len(regions) + 1
    )
    names = [name for _, _, name in regions] + [UNNAMED]
    best = sorted(range(len(names)), key=lambda number: -weight[number])
    numbers = np.zeros(len(names), np.int64)
    labels: dict[str, int] = {}
    for rank, number in enumerate(best):
        label = names[number] if rank < _NAMED else "other buffers"
        if label not in labels:
            labels[label] = len(rows)
            rows.append(Holder(subject.pid, label))
        numbers[number] = labels[label]
    subject.rows = numbers[index]
