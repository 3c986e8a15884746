"""What really shares memory, as the kernel sees it.

Everything here is what ``/proc/self`` shows in ``maps``, ``smaps``, ``pagemap`` and ``fd``; no
counter and no structure of the engine is believed. A page shares memory with others when a private
mapping of a store's memfd is in its place and no copy was made of it:

===============================================  ===========================================
pagemap entry of a page under a store mapping    the page reads
===============================================  ===========================================
not present                                      the frame (the next touch maps it)
present (63), file (61)                          the frame
swapped (62), swap type 31: a marker             the frame, write-protected before its touch
swapped (62), protected (57), no swap type       not told (no CAP_SYS_ADMIN): asked after a touch
swapped (62), file (61): under migration         the frame
present (63), no file (61)                       an own copy: written since it was merged
swapped (62), no file (61)                       an own copy, swapped out or under migration
===============================================  ===========================================
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

PAGE = mmap.PAGESIZE
STORE_PREFIX = "/memfd:ksmpy"
STORE_SUFFIX = ".ksmpy"
_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_FILE = 1 << 61
_PROTECTED = 1 << 57
_PFN_MASK = (1 << 55) - 1
_SWAP_TYPE_MASK = 31
_MARKER = 31


class Frame(NamedTuple):
    """A page of a store: the memfd's inode and the byte offset in it."""

    inode: int
    offset: int


def _names_store(path: str) -> bool:
    named = path.removesuffix(" (deleted)").endswith(STORE_SUFFIX)
    return named or path.startswith(STORE_PREFIX)


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    perms: str
    offset: int
    inode: int
    path: str

    @property
    def is_store(self) -> bool:
        """Whether this maps a store (its data, or whatever else is kept in a ksmpy memfd)."""
        return _names_store(self.path)

    def overlaps(self, address: int, nbytes: int) -> bool:
        """Whether any byte of a range lies in it."""
        return self.start < address + nbytes and address < self.end

    @classmethod
    def parse(cls, line: str) -> Mapping:
        """From a line of ``maps``, or one that begins a mapping in ``smaps``."""
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        path = fields[5].rstrip("\n") if len(fields) > 5 else ""
        return cls(start, end, fields[1], int(fields[2], 16), int(fields[4]), path)


def mappings(pid: int | str = "self", *, containing: str = "") -> list[Mapping]:
    """All mappings of a process whose line contains a text, in address order."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
        return [Mapping.parse(line) for line in lines if containing in line]


def details() -> Iterator[tuple[Mapping, dict[str, list[str]]]]:
    """All mappings of this process in address order, each with what ``smaps`` says: words by name.

    The numbers among them are KiB.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        mapping: Mapping | None = None
        fields: dict[str, list[str]] = {}
        for line in lines:
            name, *words = line.split()
            if name.endswith(":"):
                fields[name[:-1]] = words
                continue
            if mapping is not None:
                yield mapping, fields
            mapping, fields = Mapping.parse(line), {}
        if mapping is not None:
            yield mapping, fields


def overlapping(address: int, nbytes: int, pid: int | str = "self") -> list[Mapping]:
    """The mappings that touch a range of addresses."""
    return [mapping for mapping in mappings(pid) if mapping.overlaps(address, nbytes)]


def _is_untold(entry: int) -> bool:
    """Whether an ordinary user is not told if a page is swapped out or not there."""
    hidden = not entry & (_PRESENT | _FILE | _PFN_MASK)
    return bool(entry & _SWAPPED and entry & _PROTECTED and hidden)


def _touch(address: int, pid: int | str) -> None:
    """Reads a byte of a process, which faults its page in."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        os.pread(memory.fileno(), 1, address)


def _told(address: int, nbytes: int, pid: int | str) -> list[int]:
    """The pagemap entries of the whole pages of a range of overlays, after a touch if need be."""
    entries = pagemap(address, nbytes, pid)
    for index, entry in enumerate(entries):
        if _is_untold(entry):
            page = address + index * PAGE
            _touch(page, pid)
            entries[index] = pagemap(page, PAGE, pid)[0]
    return entries


def pagemap(address: int, nbytes: int, pid: int | str = "self") -> list[int]:
    """The pagemap entries of the whole pages of a range (64-bit words)."""
    assert address % PAGE == 0 and nbytes % PAGE == 0, "whole pages only"
    count = nbytes // PAGE
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as entries:
        raw = os.pread(entries.fileno(), count * 8, address // PAGE * 8)
    assert len(raw) == count * 8, "pagemap stopped short"
    return list(struct.unpack(f"={count}Q", raw))


def _reads_file(entry: int) -> bool:
    if entry & _FILE:
        return True
    if entry & _SWAPPED:
        return entry & _SWAP_TYPE_MASK == _MARKER
    return not entry & _PRESENT


def frames_of(address: int, nbytes: int, pid: int | str = "self") -> list[Frame | None]:
    """The frame that each page of a range reads, or None where it has memory of its own."""
    frames: list[Frame | None] = [None] * (nbytes // PAGE)
    for mapping in store_mappings(pid):
        first, last = max(address, mapping.start), min(address + nbytes, mapping.end)
        for index, entry in enumerate(_told(first, max(0, last - first), pid)):
            if _reads_file(entry):
                page = first + index * PAGE
                offset = mapping.offset + page - mapping.start
                frames[(page - address) // PAGE] = Frame(mapping.inode, offset)
    return frames


def offsets_read(mapping: Mapping, pid: int | str = "self") -> list[int]:
    """The offsets in the file of those pages of one store mapping that still read it."""
    entries = _told(mapping.start, mapping.end - mapping.start, pid)
    return [mapping.offset + i * PAGE for i, entry in enumerate(entries) if _reads_file(entry)]


def pages_on_frames(address: int, nbytes: int) -> dict[int, Frame]:
    """The pages of a range that read a frame, by their addresses."""
    pages = range(address, address + nbytes, PAGE)
    found = zip(pages, frames_of(address, nbytes), strict=True)
    return {page: frame for page, frame in found if frame is not None}


def maps_store(address: int, nbytes: int, pid: int | str = "self") -> bool:
    """Whether any byte of a range lies in a mapping of a store, read or not, copied or not."""
    return any(mapping.overlaps(address, nbytes) for mapping in store_mappings(pid))


def store_mappings(pid: int | str = "self") -> list[Mapping]:
    """Every mapping of any store in a process."""
    return [mapping for mapping in mappings(pid, containing="ksmpy") if mapping.is_store]


def store_bytes() -> int:
    """Memory that the memfds of all stores of this process hold, swapped out or not, in bytes."""
    held = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            if _names_store(os.readlink(f"/proc/self/fd/{fd}")):
                info = os.stat(f"/proc/self/fd/{fd}")
                held[info.st_ino] = info.st_blocks * 512
        except OSError:  # the descriptor of the listing itself
            continue
    return sum(held.values())


def shared_pages(regions: Iterable[tuple[int, int]], pid: int | str = "self") -> Counter[Frame]:
    """How many pages of the given (address, nbytes) ranges read each frame."""
    users: Counter[Frame] = Counter()
    for address, nbytes in regions:
        users.update(frame for frame in frames_of(address, nbytes, pid) if frame is not None)
    return users


def users_of_store(inode: int, pid: int | str = "self") -> Counter[Frame]:
    """How many pages of a whole process read each frame of one store."""
    users: Counter[Frame] = Counter()
    for mapping in store_mappings(pid):
        if mapping.inode == inode and mapping.perms.endswith("p"):
            entries = pagemap(mapping.start, mapping.end - mapping.start, pid)
            users.update(
                Frame(inode, mapping.offset + page * PAGE)
                for page, entry in enumerate(entries)
                if _reads_file(entry)
            )
    return users


def true_saved_pages(regions: Iterable[tuple[int, int]], pid: int | str = "self") -> int:
    """How many pages of memory the ranges do without: pages on frames, less the frames."""
    users = shared_pages(regions, pid)
    return users.total() - len(users)


@cache
def _zero_pfn() -> int:
    page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(page)
    assert page[0] == 0  # a read fault maps the zero page
    pfn = pagemap(ctypes.addressof(view), PAGE)[0] & _PFN_MASK
    del view
    page.close()
    return pfn


def sees_pfns() -> bool:
    """Whether this process may see page frame numbers (CAP_SYS_ADMIN)."""
    return _zero_pfn() != 0


def zero_pages(address: int, nbytes: int) -> int:
    """How many pages of a range are the kernel's zero page. Needs :func:`sees_pfns`."""
    zero = _zero_pfn()
    assert zero, "page frame numbers are hidden from this user"
    return sum(
        bool(entry & _PRESENT) and entry & _PFN_MASK == zero for entry in pagemap(address, nbytes)
    )
