"""The private memory of a process as its page tables have it, from outside: who is on which frame.

Nothing is read of the memory itself, nothing stopped and nothing changed. PAGEMAP_SCAN (Linux 6.7)
tells of stretches of equal pages; before that each page's entry is looked at, huge pages are not
told from others, and zero pages only in mappings that have nothing in common by a fork.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from ksmpy import proc
from ksmpy.memory.maps import refusal
from ksmpy.native import PAGE_SIZE
from ksmpy.store.files import is_store
from ksmpy.watch.observe import File, mapped_stores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["Brief", "Kind", "Look", "Span", "look", "look_in_brief", "within"]


class Kind(IntEnum):
    """What a page is."""

    ABSENT = 0
    SHARED = 1
    KEPT = 2
    """On a frame that nobody else uses."""
    WRITTEN = 3
    """Merged, and written since: it has memory of its own again."""
    OFTEN = 4
    """Written since the scanner's last look."""
    ZERO = 5
    ALONE = 6
    HUGE = 7
    """Alone, on a huge page."""
    LEFT_OUT = 8
    SWAPPED = 9


# Of the kernel's include/uapi/linux/fs.h.
_PAGEMAP_SCAN = 0xC0606610
_CALL = struct.Struct("<12Q")
_WPALLOWED, _WRITTEN, _FILE, _PRESENT, _SWAPPED, _ZERO, _HUGE = (1 << bit for bit in range(7))
_ALL = (1 << 7) - 1
# Told by a page's entry, where there is no PAGEMAP_SCAN: of no file, and not this process's alone.
_COMMON = 1 << 7
_ROWS = 4096
_WINDOW = 1 << 18  # pages whose entries are read in one go


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring private mappings; a merged array is thousands of them."""

    start: int
    end: int
    label: str
    reason: str = ""
    """Why an engine leaves it out, if one would."""


@dataclass(slots=True)
class Look:
    """Stretches of equal pages, in the order of their addresses; arrays of the same length."""

    start: Integers
    pages: Integers
    kind: Integers
    """A Kind; SHARED for all that is on frames."""
    store: Integers
    """The number of the store's file; -1 for what is not on a frame."""
    frame: Integers
    """Of the first page."""
    spans: list[Span]


@dataclass(slots=True)
class Brief:
    """What pages are, without what their mappings are."""

    look: Look
    overlays: int
    """How many mappings show merged pages."""
    overlay_bytes: int
    watched: Integers
    """Rows (start, end) of memory that a userfaultfd tracks asynchronously, overlays included."""


def look(
    pid: int, mappings: list[proc.Mapping], files: dict[File, int], cuts: Sequence[int] = ()
) -> Look:
    """Look at a process with these mappings (proc.smaps()), and cut stretches at addresses.

    `files`: the numbers of the stores' files; those that are new get the next ones. OSError when it
    is gone, or may not be looked at.
    """
    import numpy as np

    overlays, spans = _private(mappings, files)
    seen = _scan_all(pid, [(span.start, span.end) for span in spans])
    swap = [(each.start, each.end) for each in mappings if each.swap_bytes]
    if (seen[:, 2] & _COMMON).any():
        seen = _find_zeros(seen, mappings)
    return _classify(
        seen,
        np.array(overlays, np.int64).reshape(-1, 4),
        np.array(swap, np.int64).reshape(-1, 2),
        np.array(cuts, np.int64),
        spans,
    )


def look_in_brief(
    pid: int, lines: proc.Lines, files: dict[File, int], cuts: Sequence[int] = ()
) -> Brief | None:
    """The same of a process of which nothing is in swap, with its mappings as proc.raw_mappings()
    tells them. None where the kernel does not tell each kind of page, so that it takes smaps.
    """
    import numpy as np

    stores = {(device.encode(), b"%d" % inode) for device, inode in mapped_stores(lines)}
    overlays: list[tuple[int, int, int, int]] = []
    edges: list[int] = []
    for start, end, perms, offset, device, inode, path in lines:
        overlay = (device, inode) in stores
        private = perms[3:] == b"p" and perms != b"---p"
        if not private or (inode != b"0" and not overlay) or path in _KERNELS_RAW:
            continue
        first, last = int(start, 16), int(end, 16)
        if overlay:
            file = files.setdefault((device.decode(), int(inode)), len(files))
            overlays.append((first, last, file, int(offset, 16)))
        if edges and edges[-1] == first:
            edges[-1] = last
        else:
            edges += first, last
    seen = _scan_all(pid, list(zip(edges[::2], edges[1::2], strict=True)))
    if (seen[:, 2] & _COMMON).any():
        return None
    rows = np.array(overlays, np.int64).reshape(-1, 4)
    none = np.zeros((0, 2), np.int64)
    return Brief(
        _classify(seen, rows, none, np.array(cuts, np.int64), []),
        len(overlays),
        int((rows[:, 1] - rows[:, 0]).sum()),
        seen[seen[:, 2] & _WPALLOWED != 0, :2],
    )


def _scan_all(pid: int, spans: list[tuple[int, int]]) -> Integers:
    """Rows (start, end, categories) of all that lies in the spans."""
    import numpy as np

    room = np.empty((_ROWS, 3), np.int64)
    descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        rows = [row for start, end in spans for row in _scan(descriptor, start, end, room)]
        # PAGEMAP_SCAN finds no page in a process that has ended. Only entries are refused then.
        if not proc.page_entries(descriptor, 0, 1):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    finally:
        os.close(descriptor)
    return np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)


def _private(
    mappings: list[proc.Mapping], files: dict[File, int]
) -> tuple[list[tuple[int, int, int, int]], list[Span]]:
    """(start, end, number of the file, offset) of the overlays; what they and others lie in."""
    overlays: list[tuple[int, int, int, int]] = []
    spans: list[Span] = []
    for each in mappings:
        overlay = is_store(each.path)
        private = each.perms[3] == "p" and each.perms != "---p"
        if not private or (each.inode and not overlay) or each.path in _KERNELS:
            continue
        if overlay:
            file = files.setdefault((each.device, each.inode), len(files))
            overlays.append((each.start, each.end, file, each.offset))
        label = "" if overlay else each.path
        reason = "" if overlay else refusal([each], each.start, each.end, registered=True) or ""
        last = spans[-1] if spans else None
        if last and (last.end, last.label, last.reason) == (each.start, label, reason):
            spans[-1] = Span(last.start, each.end, label, reason)
        else:
            spans.append(Span(each.start, each.end, label, reason))
    return overlays, spans


_KERNELS = ("[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]", "[stack]")
_KERNELS_RAW = tuple(map(str.encode, _KERNELS))


def _scan(pagemap: int, start: int, end: int, rows: Integers) -> Iterator[Any]:
    """Arrays of rows (start, end, categories); `rows` is where the kernel may write them."""
    while start < end:
        # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all, any, return
        call = bytearray(
            _CALL.pack(_CALL.size, 0, start, end, 0, rows.ctypes.data, _ROWS, 0, 0, 0, 0, _ALL)
        )
        try:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, call)
        except ProcessLookupError:
            raise
        except OSError:
            yield from _entries(pagemap, start, end)
            return
        yield rows[:count].copy()
        reached = _CALL.unpack(call)[4]
        if reached <= start:
            return
        start = reached


def _entries(pagemap: int, start: int, end: int) -> Iterator[Any]:
    """The same, by the entry of each page."""
    import numpy as np

    for at in range(start, end, _WINDOW * PAGE_SIZE):
        pages = min(_WINDOW, (end - at) // PAGE_SIZE)
        flags = np.frombuffer(proc.page_entries(pagemap, at, pages), np.uint64)
        if len(flags) < pages:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        kinds = np.zeros(len(flags), np.int64)
        for bit, category in (
            (proc.PRESENT, _PRESENT), (proc.SWAPPED, _SWAPPED), (proc.FILE, _FILE)
        ):  # fmt: skip
            kinds |= np.where(flags & np.uint64(bit), category, 0)
        told = flags & np.uint64(proc.PRESENT | proc.FILE | proc.EXCLUSIVE)
        kinds |= np.where(told == np.uint64(proc.PRESENT), _COMMON, 0)
        edges = np.flatnonzero(np.diff(kinds, prepend=-1))
        starts = at + edges * PAGE_SIZE
        ends = np.append(starts[1:], at + len(flags) * PAGE_SIZE)
        yield np.stack([starts, ends, kinds[edges]], axis=1)


def _find_zeros(seen: Any, mappings: list[proc.Mapping]) -> Any:
    """The rows, cut where mappings begin and end, with the zero page told from what forks have left
    in common. Neither is the process's alone, but only the zero page is not in its RSS: where
    that is no more than what it has alone, all else is the zero page.
    """
    import numpy as np

    plain = [each for each in mappings if not each.inode and each.path not in _KERNELS]
    edges = np.array([(each.start, each.end) for each in plain], np.int64).reshape(-1, 2)
    cuts = np.unique(np.concatenate([seen[:, :2].ravel(), edges.ravel()]))
    row = within(cuts[:-1], seen)
    starts, ends, category = cuts[:-1][row >= 0], cuts[1:][row >= 0], seen[row[row >= 0], 2]
    mapping = within(starts, edges)
    alone = (category & (_PRESENT | _FILE | _COMMON)) == _PRESENT
    weights = np.where(alone, ends - starts, 0)
    alone_bytes = np.bincount(mapping + 1, weights=weights, minlength=len(edges) + 1)
    rss = np.array([0, *(each.sizes.get("Rss", 0) for each in plain)])
    zero = (category & _COMMON != 0) & (mapping >= 0) & (rss <= alone_bytes)[mapping + 1]
    return np.stack([starts, ends, category | np.where(zero, _ZERO, 0)], axis=1)


def _classify(seen: Any, overlays: Any, swap: Any, cuts: Any, spans: list[Span]) -> Look:
    """Cut what was seen where overlays begin and end, and say what each piece is."""
    import numpy as np

    edges = [each[:, :2].ravel() for each in (seen, overlays, swap)]
    cuts = np.unique(np.concatenate([*edges, cuts]))
    starts, ends = cuts[:-1], cuts[1:]
    row = within(starts, seen)
    known = row >= 0
    starts, ends, category = starts[known], ends[known], seen[row[known], 2]
    over = within(starts, overlays)
    kind = _kinds(category, over >= 0, within(starts, swap) >= 0)
    frames = kind == Kind.SHARED
    store, frame = np.full(len(starts), -1), np.zeros(len(starts), np.int64)
    if len(overlays):
        store = np.where(frames, overlays[over, 2], -1)
        frame = np.where(frames, (overlays[over, 3] + starts - overlays[over, 0]) // PAGE_SIZE, 0)
    return Look(starts, (ends - starts) // PAGE_SIZE, kind, store, frame, spans)


def _kinds(category: Any, merged: Any, swap: Any) -> Any:
    """The kind of each stretch. Those that look swapped out are taken for swapped pages only in
    mappings of which the kernel counts pages in swap (`swap`).
    """
    import numpy as np

    present, swapped = (category & _PRESENT) != 0, swap & ((category & _SWAPPED) != 0)
    zero, file = (category & _ZERO) != 0, (category & _FILE) != 0
    written = (category & (_WPALLOWED | _WRITTEN)) == _WPALLOWED | _WRITTEN
    huge = (category & _HUGE) != 0
    return np.select(
        [
            zero & present,
            merged & (file | ~(present | swapped)),
            merged,
            swapped,
            present & written,
            present & huge,
            present,
        ],
        [Kind.ZERO, Kind.SHARED, Kind.WRITTEN, Kind.SWAPPED, Kind.OFTEN, Kind.HUGE, Kind.ALONE],
        Kind.ABSENT,
    ).astype(np.int64)


def within(starts: Any, rows: Any) -> Any:
    """The number of the row (sorted, apart from each other) that holds each address, or -1."""
    import numpy as np

    if not len(rows):
        return np.full(len(starts), -1)
    index = np.searchsorted(rows[:, 0], starts, side="right") - 1
    inside = (index >= 0) & (starts < rows[np.maximum(index, 0), 1])
    return np.where(inside, index, -1)
