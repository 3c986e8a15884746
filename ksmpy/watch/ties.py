"""Who shares with whom: frames that are mapped in more than one place, grouped by who has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["Copy", "Holder", "Sharing", "Tie", "sharing"]

# How many groups of frames (each has other holders) become a Copy at most; all count for the ties.
_MOST_GROUPS = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """A buffer of a process, or what it has of something, in bytes."""

    pid: int
    buffer: str
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Memory that is kept once for all who hold it."""

    kept_bytes: int
    mapped_bytes: int
    """What its holders have on it, all together. What is beyond `kept_bytes` is no net saving:
    forks and tables are not taken off.
    """
    holders: tuple[Holder, ...]
    """With how much of their memory lies on it."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Two buffers and how many bytes of frames they have in common; one with itself: frames on
    which it has more than one page.
    """

    a: Holder
    b: Holder
    nbytes: int


@dataclass(slots=True)
class Sharing:
    """What the pages on frames say."""

    copies: list[Copy]
    """Those first that have most beyond what is kept."""
    ties: list[Tie]
    """The strongest first."""
    users: Integers
    """Of each page given: how many pages its frame has."""
    frames: int
    """In use by the pages given."""


def sharing(rows: list[Holder], row: Integers, frame: Integers) -> Sharing:
    """Group pages, given by the number of the buffer that has it and by its frame."""
    import numpy as np

    if not len(frame):
        return Sharing([], [], np.zeros(0, np.int64), 0)
    frames, inverse, users = np.unique(frame, return_inverse=True, return_counts=True)
    count = len(rows)
    pairs, pages = np.unique(inverse.astype(np.int64) * count + row, return_counts=True)
    at, holder = pairs // count, pairs % count
    # Each holder gets a random number: frames with the same sum of these have the same holders.
    marks = np.random.default_rng(0).integers(0, 1 << 63, count, np.uint64)
    first = np.flatnonzero(np.diff(at, prepend=-1))
    group_of = np.unique(np.add.reduceat(marks[holder], first), return_inverse=True)[1]
    groups = _groups(group_of[at], holder, pages)
    sizes = np.bincount(group_of)
    copies: list[Copy] = []
    common = np.zeros((count, count), np.int64)
    for group, members in sorted(groups.items(), key=lambda item: -int(sizes[item[0]])):
        held, numbers = int(sizes[group]), np.array([number for number, _ in members])
        common[np.ix_(numbers, numbers)] += held
        total = sum(each for _, each in members)
        if total > held and len(copies) < _MOST_GROUPS:
            copies.append(_copy(rows, members, held, total))
    copies.sort(key=lambda copy: copy.kept_bytes - copy.mapped_bytes)
    np.fill_diagonal(common, np.bincount(holder[pages > 1], minlength=count))
    return Sharing(copies, _ties(rows, common), users[inverse], len(frames))


def _groups(group: Integers, holder: Integers, pages: Integers) -> dict[int, list[tuple[int, int]]]:
    """(holder, pages) of each group."""
    import numpy as np

    count = int(holder.max()) + 1
    keys, place = np.unique(group * count + holder, return_inverse=True)
    sums = np.bincount(place, weights=pages).astype(np.int64)
    found: dict[int, list[tuple[int, int]]] = {}
    for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
        found.setdefault(key // count, []).append((key % count, total))
    return found


def _copy(rows: list[Holder], members: list[tuple[int, int]], held: int, total: int) -> Copy:
    holders = [
        Holder(rows[number].pid, rows[number].buffer, pages * PAGE_SIZE)
        for number, pages in members
    ]
    return Copy(held * PAGE_SIZE, total * PAGE_SIZE, tuple(holders))


def _ties(rows: list[Holder], common: Integers) -> list[Tie]:
    import numpy as np

    first, second = np.nonzero(np.triu(common))
    found = [
        Tie(rows[a], rows[b], int(common[a, b]) * PAGE_SIZE)
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return sorted(found, key=lambda tie: -tie.nbytes)
