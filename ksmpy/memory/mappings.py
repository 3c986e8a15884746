"""Finding memory that may be adopted: the process's private anonymous writable mappings.

What is left out here is what must not be merged, or is not worth it: stacks, the engines' own
memory, what is registered already, what is not in memory. What only the flags of a mapping tell
(locked, another userfaultfd) is refused when it is registered.

Allocators like jemalloc, mimalloc and the runtimes of other languages take memory for zeroed once
they have given it back by MADV_DONTNEED, and in the moment in which a page is exchanged it is not.
So, unless every mapping is asked for, memory is taken that glibc's malloc is known to have mapped:
it expects no zeros. The rest is told apart.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

if sys.platform != "win32":
    import resource

from ksmpy import native, proc
from ksmpy.native import PAGE_SIZE
from ksmpy.own import own

__all__ = [
    "UNKNOWN",
    "Interval",
    "Survey",
    "intersect",
    "is_in_memory",
    "parts_in_memory",
    "pieces",
    "size",
    "subtract",
    "survey",
]

Interval = tuple[int, int]

STACKS = "stacks, and what lies behind a guard page as they do"
SMALL_OBJECTS = "Python's own, of small objects"
UNKNOWN = (
    "of an allocator that may count on zeros where it gave memory back (adopt='all' adopts it too)"
)

# glibc aligns the heaps of its arenas to their largest size. A heap may begin behind another one's
# unused rest, which has no rights, like a stack's guard page: by its alignment it is told from one.
_ARENA_BYTES = 64 << 20
# A mapping is adopted in pieces of so many bytes: when its owner unmaps a part, only the pieces of
# that part have to end. Memory that a program takes and gives back often is one mapping with
# long-lived memory beside it: with pieces of 64 MiB nothing stayed merged of a faiss index that was
# searched all the time.
_PIECE_BYTES = 8 << 20
# How many bytes on either side of a stack pointer are taken for its stack, within its mapping: the
# usual size of a stack.
_STACK_BYTES = 8 << 20
# Arenas of malloc are reserved as a whole and used from their start. Of a piece only those steps of
# so many bytes are adopted of which at least one part in _PRESENT_PART is in memory.
_STEP_BYTES = 1 << 20
_STEP_PAGES = _STEP_BYTES // PAGE_SIZE
_PRESENT_PART = 4
# How many bytes are asked about at once: of a reservation of terabytes a little may be used.
_WINDOW_BYTES = 64 * _STEP_BYTES


@dataclass(slots=True)
class Survey:
    """What could be adopted, and the bytes of what could not, by the reason."""

    free: list[Interval]
    left: dict[str, int] = field(default_factory=dict)
    unknown: list[Interval] = field(default_factory=list)
    """What is left because nothing tells whose it is."""
    shown: list[Interval] = field(default_factory=list)
    """Of that what Python objects have, each as a whole."""
    malloced: list[Interval] = field(default_factory=list)
    """malloc's, what is taken included."""


def survey(min_bytes: int, taken: Iterable[Interval], *, every: bool) -> Survey:
    """Look at all mappings, less those `taken`, and without what is smaller than `min_bytes`.

    every: whoever they belong to.
    """
    mapped, stacks, heap_end = _anonymous()
    taken = sorted(taken)
    own = sorted(_whole_pages(each) for each in native.own_memory())
    free = _large(subtract(_joined(mapped), sorted([*taken, *own])), min_bytes)
    owners = []
    if free and not every:
        owners = _owners(heap_end, [*mapped, *taken], stacks, own, min_bytes)
    malloced = [(start, end) for start, end, owner in owners if owner == native.OWNER_MALLOC]
    if free:
        stacks = _stacks(mapped, stacks, malloced)
    kept = subtract(free, stacks)
    left = sum(map(size, free)) - sum(map(size, kept))
    found = Survey(kept, {STACKS: left} if left else {}, malloced=malloced)
    if not every:
        found.free = intersect(kept, malloced)
        small = [(start, end) for start, end, owner in owners if owner == native.OWNER_PYTHON]
        rest = subtract(kept, _united([*malloced, *small]))
        found.unknown = _large(rest, min_bytes)
        arenas = sum(map(size, _large(intersect(kept, small), min_bytes)))
        found.left.update({SMALL_OBJECTS: arenas} if arenas else {})
    found.free = _large(found.free, min_bytes)
    return found


def _stacks(
    mapped: list[Interval], stacks: list[Interval], malloced: list[Interval]
) -> list[Interval]:
    """All stacks: what looks like one, unless malloc has it, and what a thread's stack pointer is
    in. The latter may be malloc's, if the program has allocated a stack there.
    """
    parts = sorted([*intersect(mapped, malloced), *subtract(mapped, malloced)])
    return sorted([*subtract(stacks, malloced), *_near_stack_pointers(parts)])


def _owners(
    heap_end: int,
    memory: list[Interval],
    stacks: list[Interval],
    own: list[Interval],
    min_bytes: int,
) -> list[tuple[int, int, int]]:
    """(start, end, owner) of memory whose allocator is known, in order. `memory` has to include
    registered memory, since merged pages are mappings of a file and would leave gaps. The engines'
    own memory ends a stretch, and so does what looks like a stack, so that what adjoins them is
    believed as at the end of a mapping.
    """
    heap = [(proc.start_of_brk(), heap_end)] if heap_end else []
    found = [each for span in heap for each in native.find_owners(*span, heap=True)]
    holes = sorted([*map(_whole_pages, heap), *own])
    rest = subtract(_joined(_united(memory)), holes)
    for stretch in _large(rest, min_bytes):
        found += _owners_between(stretch, stacks)
    return sorted((*_whole_pages((start, end)), owner) for start, end, owner in found)


def _owners_between(stretch: Interval, stacks: list[Interval]) -> list[tuple[int, int, int]]:
    """What is known of a stretch; if nothing is of what looks like a stack, then on either side."""
    found = native.find_owners(*stretch, heap=False)
    known = [(start, end) for start, end, _ in found]
    apart = [each for each in intersect(stacks, [stretch]) if not intersect([each], known)]
    if not apart:
        return found
    pieces = subtract([stretch], apart)
    return [each for piece in pieces for each in native.find_owners(*piece, heap=False)]


def _united(intervals: Iterable[Interval]) -> list[Interval]:
    """In order, and each part once."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start < found[-1][1]:
            start = found[-1][1]
        if start < end:
            found.append((start, end))
    return found


def _anonymous() -> tuple[list[Interval], list[Interval], int]:
    """The writable mappings, what of them looks like stacks, and the end of the memory of brk()."""
    found: list[Interval] = []
    stacks: list[Interval] = []
    guard_end = heap_end = 0
    for start, end, writable, name in proc.anonymous():
        if not _bare(name):
            continue
        if not writable:
            guard_end = end
            continue
        if name == b"[heap]":
            heap_end = end
        if (start == guard_end and start % _ARENA_BYTES) or b"stack" in name:
            stacks.append((start, _stack_end(start, end)))
        found.append((start, end))
    return found, stacks, heap_end


def _joined(intervals: list[Interval]) -> list[Interval]:
    """Neighbours as one."""
    found: list[Interval] = []
    for start, end in intervals:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _bare(name: bytes) -> bool:
    """Whether a mapping without a file is the program's own: neither a stack nor the kernel's."""
    return not name or name == b"[heap]" or name.startswith(b"[anon:")


def _stack_end(start: int, end: int) -> int:
    """Where a stack that begins here ends, at most: before Linux 6.7 it may have become one mapping
    with what lies above it.
    """
    usual = resource.getrlimit(resource.RLIMIT_STACK)[0]
    usual = usual if 0 < usual < _ARENA_BYTES else _STACK_BYTES
    return end if end - start <= 2 * usual else start + usual


def _near_stack_pointers(mapped: list[Interval]) -> list[Interval]:
    """The surroundings of the stack pointers of threads that wait in a system call."""
    found = []
    for task in own.listdir("/proc/self/task"):
        try:
            words = proc.read("syscall", f"self/task/{task}").split()
        except OSError:  # the thread has ended, or the kernel does not tell
            continue
        if len(words) > 2:
            pointer = int(words[-2], 16) // PAGE_SIZE * PAGE_SIZE
            index = bisect_right(mapped, (pointer, sys.maxsize)) - 1
            if index >= 0 and pointer < mapped[index][1]:
                start, end = mapped[index]
                found.append((max(start, pointer - _STACK_BYTES), min(end, pointer + _STACK_BYTES)))
    return found


def _whole_pages(interval: Interval) -> Interval:
    start, end = interval
    return start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE


def size(interval: Interval) -> int:
    """Bytes of an interval."""
    return interval[1] - interval[0]


def _large(intervals: Iterable[Interval], min_bytes: int) -> list[Interval]:
    return [interval for interval in intervals if size(interval) >= min_bytes]


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """What no hole covers. Both in order; holes may overlap each other."""
    rest = iter(holes)
    hole = next(rest, None)
    found = []
    for start, end in intervals:
        while hole is not None and hole[0] < end:
            if hole[1] > start:
                if hole[0] > start:
                    found.append((start, hole[0]))
                start = hole[1]
            if start >= end:
                break
            hole = next(rest, None)
        if start < end:
            found.append((start, end))
    return found


def intersect(one: Iterable[Interval], other: Iterable[Interval]) -> list[Interval]:
    """What is in both, which are in order and do not overlap each other."""
    rest = iter(other)
    last = next(rest, None)
    found = []
    for start, end in one:
        while last is not None and last[0] < end:
            if last[1] > start:
                found.append((max(start, last[0]), min(end, last[1])))
            if last[1] > end:
                break
            last = next(rest, None)
    return found


def pieces(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """The pieces, cut at the multiples of _PIECE_BYTES, of which something is in memory."""
    for interval in intervals:
        yield from _used(interval, 0, _PIECE_BYTES, _PIECE_BYTES)


def _used(interval: Interval, origin: int, step: int, nbytes: int) -> Iterator[Interval]:
    """The parts of which something is in memory: each begins at the multiple of `step` from
    `origin` on where the first of it may be, and has `nbytes`, as far as the interval reaches.
    """
    start, end = interval
    at = native.next_in_memory(start, end)
    while at < end:
        begin = at - (at - origin) % step
        stop = min(end, begin + nbytes)
        yield max(start, begin), stop
        at = native.next_in_memory(stop, end)


@functools.cache
def _mincore() -> ctypes._FuncPointer:
    function = ctypes.CDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return function


def is_in_memory(interval: Interval) -> bool:
    """Whether at least a quarter of it is; not when it is not mapped any more."""
    present = sum(pages.count(1) for _, pages in _windows(interval))
    return present * _PRESENT_PART >= size(interval) // PAGE_SIZE


def parts_in_memory(interval: Interval, min_bytes: int) -> list[Interval]:
    """What of it is in memory, step by step; of at least so many bytes, or all of it."""
    found = []
    for start, there in _windows(interval):
        for first in range(0, len(there), _STEP_PAGES):
            step = there[first : first + _STEP_PAGES]
            if step.count(1) * _PRESENT_PART >= len(step):
                at = start + first * PAGE_SIZE
                found.append((at, at + len(step) * PAGE_SIZE))
    return [part for part in _joined(found) if size(part) >= min_bytes or part == interval]


def _windows(interval: Interval) -> Iterator[tuple[int, bytes]]:
    """The steps of which something is in memory, many at once, and perhaps more: their address, and
    a byte for each page, which is 1 if it is in memory.
    """
    for window in _used(interval, interval[0], _STEP_BYTES, _WINDOW_BYTES):
        yield window[0], _present_pages(window)


def _present_pages(interval: Interval) -> bytes:
    """A byte for each page: 1 if it is in memory. All 0 when it is not mapped any more."""
    pages = size(interval) // PAGE_SIZE
    there = (ctypes.c_ubyte * pages)()
    if _mincore()(interval[0], size(interval), there) != 0:
        return bytes(pages)
    return bytes(there)
