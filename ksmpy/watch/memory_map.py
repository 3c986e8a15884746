"""The memory of a process as strips: each of its large pieces from its first byte to its last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ksmpy.native import PAGE_SIZE
from ksmpy.watch.pages import Kind, Look

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["Strip", "strips"]

# How many strips of a process are shown, the largest; and into how many cells a strip is cut at
# most, if it changes more often than that.
_STRIPS = 10
_CELLS = 400
_LEAST = 64 << 10
_PRESENT = 3 / 4


@dataclass(frozen=True, slots=True)
class Strip:
    """A buffer, or memory that is in none."""

    pid: int
    name: str
    start: int
    nbytes: int
    registered: bool
    cells: tuple[tuple[int, int, str], ...]
    """(offset, bytes, kind) of its stretches; of mixed ones the kind that most of them is."""


def strips(
    pid: int,
    seen: Look,
    users: Integers,
    regions: list[tuple[int, int, str]],
    known: bool,
) -> list[Strip]:
    """The largest first. `users`: of each page on a frame, how many pages its frame has; `known`:
    whether what is in no region is known to be in none.
    """
    import numpy as np

    pieces = [(start, end, name, True) for start, end, name in regions]
    pieces += [(start, end, label, False) for start, end, label in _outside(seen, regions)]
    pieces = [piece for piece in pieces if piece[1] - piece[0] >= _LEAST]
    pieces.sort(key=lambda piece: piece[0] - piece[1])
    offsets = _frames_before(seen)
    made = []
    for start, end, name, registered in pieces:
        edges, kinds = _runs(seen, users, offsets, start, end)
        if known and not registered:
            kinds[np.isin(kinds, (Kind.ALONE, Kind.HUGE, Kind.OFTEN))] = Kind.LEFT_OUT
        absent = int(np.diff(edges)[kinds == Kind.ABSENT].sum())
        if not registered and absent * PAGE_SIZE > (end - start) * _PRESENT:
            continue  # it is mostly address space without memory
        made.append(Strip(pid, name, start, end - start, registered, _cells(edges, kinds)))
        if len(made) == _STRIPS:
            break
    return made


def _outside(seen: Look, regions: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """What of the spans is in no region."""
    found = []
    for span in seen.spans:
        at = span.start
        for start, end, _ in regions:
            if end <= at or start >= span.end:
                continue
            if start > at:
                found.append((at, start, span.label or "anonymous"))
            at = end
        if at < span.end:
            found.append((at, span.end, span.label or "anonymous"))
    return found


def _frames_before(seen: Look) -> Integers:
    """Of each stretch, how many pages on frames lie before it."""
    import numpy as np

    on = np.where(seen.kind == Kind.SHARED, seen.pages, 0)
    return np.cumsum(on) - on


def _runs(
    seen: Look, users: Integers, before: Integers, start: int, end: int
) -> tuple[Integers, Integers]:
    """Where in [start, end), in pages, a run of one kind begins, with the end behind; the kinds."""
    import numpy as np

    edges, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    at = 0
    for index in range(*np.searchsorted(seen.start, (start, end))):
        page, pages = (int(seen.start[index]) - start) // PAGE_SIZE, int(seen.pages[index])
        if page > at:
            edges.append(np.array([at]))
            kinds.append(np.array([Kind.ABSENT]))
        run, kind = np.zeros(1, np.int64), np.array([seen.kind[index]])
        if kind[0] == Kind.SHARED:
            these = users[before[index] : before[index] + pages] > 1
            run = np.flatnonzero(np.diff(these.astype(np.int8), prepend=-1))
            kind = np.where(these[run], Kind.SHARED, Kind.KEPT)
        edges.append(page + run)
        kinds.append(kind)
        at = page + pages
    last = (end - start) // PAGE_SIZE
    if at < last:
        edges.append(np.array([at]))
        kinds.append(np.array([Kind.ABSENT]))
    begins, what = np.concatenate(edges), np.concatenate(kinds)
    new = np.flatnonzero(np.diff(what, prepend=-1))
    return np.append(begins[new], last), what[new]


def _sums(values: Integers) -> Integers:
    import numpy as np

    return np.append(0, np.cumsum(values))


def _cells(edges: Integers, kinds: Integers) -> tuple[tuple[int, int, str], ...]:
    """Runs of one kind; coarser ones, by what most of each is, where there are too many."""
    import numpy as np

    if len(kinds) > _CELLS:
        cuts = np.linspace(0, edges[-1], _CELLS + 1).astype(np.int64)
        sizes = np.diff(edges)
        parts = [
            np.diff(np.interp(cuts, edges, _sums(np.where(kinds == kind, sizes, 0))))
            for kind in Kind
        ]
        most = np.argmax(parts, axis=0)
        new = np.flatnonzero(np.diff(most, prepend=-1))
        edges, kinds = np.append(cuts[new], edges[-1]), most[new]
    return tuple(
        (start * PAGE_SIZE, (end - start) * PAGE_SIZE, Kind(kind).name.lower())
        for start, end, kind in zip(
            edges[:-1].tolist(), edges[1:].tolist(), kinds.tolist(), strict=True
        )
    )
