"""What /proc tells of a process's memory: its mappings, their sizes, and the entries of its pages.

The one reader of these files. Each function takes a process's id, or "self"; OSError when it is
gone, or may not be looked at. Bits and fields are those of the kernel's
Documentation/filesystems/proc.rst and Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ksmpy.own import own
from ksmpy.text import shown

__all__ = [
    "EXCLUSIVE",
    "FILE",
    "Lines",
    "PRESENT",
    "SWAPPED",
    "Mapping",
    "anonymous",
    "by_fork",
    "command",
    "count_mappings",
    "cpu_seconds",
    "forks",
    "is_forked",
    "mappings",
    "origin",
    "own_page_entries",
    "page_entries",
    "parse",
    "places",
    "raw_mappings",
    "read",
    "read_smaps",
    "rollup",
    "smaps",
    "start_of_brk",
    "stat",
]

# Bits of a pagemap entry.
PRESENT = 1 << 63
SWAPPED = 1 << 62
FILE = 1 << 61  # of a file, or shared anonymous; an overlay's frame has it, too
EXCLUSIVE = 1 << 56

# Of the clock of a process, which the kernel names by its number (clock_getcpuclockid(3)).
_CPUCLOCK_SCHED = 2

_ENTRY_BYTES = 8
_PAGE_BYTES = 4096

# Fields of stat (ppid, flags, starttime, vsize, startstack, start_brk), from the third one on.
_PARENT, _FLAGS, _START_TIME, _SIZE_BYTES, _START_STACK, _START_BRK = 1, 6, 19, 20, 25, 44
_FORKED_NO_EXEC = 0x40  # PF_FORKNOEXEC of the kernel's include/linux/sched.h

# What is empty of a process whose first thread has ended, but not of its other threads.
_OF_MEMORY = {"maps", "smaps", "smaps_rollup", "statm"}

# start, end, permissions, offset, device, inode, path
_HEADER = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([rwxsp-]{4}) ([0-9a-f]+) (\S+) (\d+) *(.*)$", re.MULTILINE
)
_BLOCKED = re.compile(rb"^SigBlk:\s*([0-9a-f]+)", re.MULTILINE)
_NAME = re.compile(rb"^Name:\s*(.*)$", re.MULTILINE)
# start, end, permissions, name
_ANONYMOUS = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (rw-p|---p) 0+ \S+ 0 *(.*)$", re.MULTILINE)
_SIZE = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A line of maps, and what smaps adds to it."""

    start: int
    end: int
    perms: str
    device: str
    inode: int
    path: str
    details: bytes | None = None
    """The lines below it in smaps; None where they were not read."""
    offset: int = 0
    """Of its first byte in the file."""

    @property
    def flags(self) -> frozenset[str] | None:
        """Its VmFlags; None where the kernel does not tell."""
        details = self.details or b""
        begin = details.find(b"VmFlags:")
        if begin < 0:
            return None
        return frozenset(details[begin + 8 :].partition(b"\n")[0].decode().split())

    @property
    def sizes(self) -> dict[str, int]:
        """What smaps counts, in bytes, by the kernel's names."""
        found = _SIZE.findall(self.details or b"")
        return {name.decode(): int(kibibytes) * 1024 for name, kibibytes in found}

    @property
    def swap_bytes(self) -> int:
        """What of it is in swap, as smaps counts it; 0 where that was not read. The bit in a page's
        entry does not tell: write tracking leaves marks in the place of untouched pages, and they
        have it too.
        """
        details = self.details or b""
        at = details.find(b"\nSwap:")
        return int(details[at + 6 : details.index(b"kB", at)]) * 1024 if at >= 0 else 0


def read(name: str, pid: int | str = "self", *, limit: int | None = None) -> bytes:
    """The bytes of maps or smaps: all of them, or at least up to the first mapping that begins at
    the address `limit` or above.
    """
    if pid == "self" and name in _OF_MEMORY:
        pid = "thread-self"
    data = bytearray()
    with own.file(f"/proc/{pid}/{name}") as file:
        while part := file.read(1 << 16):
            data += part
            if limit is not None and any(
                int(header[1], 16) >= limit for header in _HEADER.finditer(part)
            ):
                break
    return bytes(data)


def parse(data: bytes) -> list[Mapping]:
    """The mappings in the bytes of maps or smaps; with details if it is the latter."""
    headers = list(_HEADER.finditer(data))
    ends = [*(header.start() for header in headers[1:]), len(data)][: len(headers)]
    return [
        Mapping(
            int(header[1], 16),
            int(header[2], 16),
            header[3].decode(),
            header[5].decode(),
            int(header[6]),
            header[7].decode(errors="replace"),
            data[header.end() + 1 : end] or None,
            int(header[4], 16),
        )
        for header, end in zip(headers, ends, strict=True)
    ]


def places(data: bytes) -> tuple[list[int], list[int]]:
    """Where the mappings in the bytes of maps or smaps begin: their addresses, and the places of
    their lines.

    The garbage collector runs when there are so and so many more objects of the kinds that it
    follows. A list of some thousand mappings, read again and again, makes it run in a program that
    would have got by without, and in a forked child a full run copies every page that objects are
    in. Numbers it does not follow.
    """
    addresses, lines = [], []
    for header in _HEADER.finditer(data):
        addresses.append(int(header[1], 16))
        lines.append(header.start())
    return addresses, lines


def mappings(pid: int | str = "self") -> list[Mapping]:
    """All mappings, in the order of their addresses."""
    return parse(read("maps", pid))


def smaps(pid: int | str = "self") -> list[Mapping]:
    """All mappings with their details: see read_smaps()."""
    return parse(read_smaps(pid))


def read_smaps(pid: int | str = "self", *, limit: int | None = None) -> bytes:
    """The bytes of smaps, for all mappings or those below the address `limit`.

    The kernel counts every page of each mapping for this, 10 ms for a few hundred mappings. The
    newest ones have low addresses: stopping early saves most of it. Kernels without
    CONFIG_PROC_PAGE_MONITOR have no such file: then those of maps.
    """
    try:
        return read("smaps", pid, limit=limit)
    except FileNotFoundError:
        return read("maps", pid, limit=limit)


Lines = list[tuple[bytes, ...]]
"""What raw_mappings() gives."""


def raw_mappings(pid: int | str = "self", *, naming: bytes = b"") -> Lines:
    """(start, end, permissions, offset, device, inode, path) of all mappings as they are written
    there, for those who look at tens of thousands and keep few. An empty list if `naming` is
    nowhere in them, which is told without taking them apart.
    """
    data = read("maps", pid)
    return _HEADER.findall(data) if naming in data else []


def anonymous(pid: int | str = "self") -> Iterator[tuple[int, int, bool, bytes]]:
    """(start, end, whether it is readable and writable, name) of each mapping without a file that
    is so, or to which nobody has any access. One at a time: see places().
    """
    for header in _ANONYMOUS.finditer(read("maps", pid)):
        yield int(header[1], 16), int(header[2], 16), header[3] == b"rw-p", header[4]


def stat(pid: int | str = "self") -> list[bytes]:
    """The fields of stat that follow the command's name: the first one is the state."""
    return read("stat", pid).rpartition(b")")[2].split()


def threads_that_block(number: int) -> dict[int, str]:
    """Those of this process that block the signal, and their names."""
    found = {}
    for thread in own.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            status = read("status", f"self/task/{thread}")
            mask, name = _BLOCKED.search(status), _NAME.search(status)
            if mask and name and int(mask[1], 16) >> (number - 1) & 1:
                found[int(thread)] = name[1].decode(errors="replace")
    return found


def origin(pid: int | str = "self") -> tuple[int, float]:
    """Its parent, and when it began, in seconds of time.time()."""
    fields = stat(pid)
    seconds = int(fields[_START_TIME]) / os.sysconf("SC_CLK_TCK")
    return int(fields[_PARENT]), time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seconds


def has_memory(pid: int) -> bool:
    """Whether there is such a process, and it is not about to end, or a zombie: these have none."""
    try:
        return stat(pid)[_SIZE_BYTES] != b"0"
    except OSError:
        return False


def is_forked(pid: int | str = "self") -> bool:
    """Whether it was forked and has started no other program since: what its parent had in memory
    then is shared with it until one of them writes.
    """
    return bool(int(stat(pid)[_FLAGS]) & _FORKED_NO_EXEC)


def forks(pids: Iterable[int]) -> dict[int, int]:
    """The parent of each of these processes that was forked by another one of them.

    A process that was forked, and has started no other program since, has its parent's stack where
    its parent has it.
    """
    known = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or may not be looked at
            known[pid] = stat(pid)
    found = {}
    for pid, fields in known.items():
        parent = int(fields[_PARENT])
        if parent in known and known[parent][_START_STACK] == fields[_START_STACK]:
            found[pid] = parent
    return found


def by_fork(merged: dict[int, int], parents: dict[int, int] | None = None) -> dict[int, int]:
    """How much of what each process has merged, by its number, may have come to it by its parent's
    fork: no saving, as a fork shares what nobody writes to. That is what both have, at the most.

    `parents`: what forks() has told of these processes and perhaps of others.
    """
    parents = forks(merged) if parents is None else parents
    return {
        pid: min(mine, merged.get(parents[pid], 0)) if pid in parents else 0
        for pid, mine in merged.items()
    }


def cpu_seconds(pid: int) -> float | None:
    """The processor time that all of its threads have taken, which tells to the nanosecond whether
    it has run; None where the kernel does not say, or there is no such process.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except (OSError, OverflowError):
        return None


def command(pid: int | str = "self") -> str:
    """The name of its program, cut to 15 bytes by the kernel, as it can be printed on a line."""
    return shown(read("comm", pid).removesuffix(b"\n").decode(errors="replace"))


def start_of_brk() -> int:
    """Where the memory begins that brk() makes for this process."""
    return int(stat()[_START_BRK])


def count_mappings(pid: int | str = "self") -> int:
    """How many mappings there are."""
    return read("maps", pid).count(b"\n")


def rollup(pid: int | str = "self") -> dict[str, int]:
    """The sums of a process's sizes, in bytes, by the kernel's names (smaps_rollup)."""
    found = _SIZE.findall(read("smaps_rollup", pid))
    return {name.decode(): int(kibibytes) * 1024 for name, kibibytes in found}


def page_entries(pagemap: int, start: int, pages: int) -> bytes:
    """The entries of a process's pages from the address `start` on, 8 bytes each, through a
    descriptor of its pagemap. Fewer where the address space ends, or the process has.
    """
    data = bytearray()
    while missing := pages * _ENTRY_BYTES - len(data):
        at = start // _PAGE_BYTES * _ENTRY_BYTES + len(data)
        part = os.pread(pagemap, missing, at)
        if not part:
            break
        data += part
    return bytes(data)


def own_page_entries(start: int, pages: int) -> bytes:
    """The same of this process."""
    descriptor = os.open("/proc/thread-self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return page_entries(descriptor, start, pages)
    finally:
        os.close(descriptor)
