"""Duplicates in a live process, found from outside: read only, nothing stopped, nothing paged in.

Pages are read through /proc/PID/mem, and only those that /proc/PID/pagemap shows as present and
anonymous, so that no hole is filled, no swapped page comes back and no file is read. The process
runs on meanwhile: the result is a snapshot with the sharpness of the time it took.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ksmpy import proc
from ksmpy.errors import KsmpyError, Unsupported
from ksmpy.native import PAGE_SIZE
from ksmpy.proc import EXCLUSIVE, FILE, PRESENT
from ksmpy.store.files import is_store
from ksmpy.watch.estimate import BufferEstimate, Estimate, Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MappingEstimate", "analyze"]

_READ_PAGES = 1024  # 4 MiB a read: large enough to hide the call, small enough for the cache
_WINDOW_PAGES = (
    1 << 20
)  # pagemap entries looked at in one go: 8 MiB of them, for 4 GiB of address space

# Mappings that the kernel puts into every process, and that cannot be merged.
_KERNELS = ("[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MappingEstimate(BufferEstimate):
    """What an estimate says of one mapping of a process, in pages; `name` is the kernel's, or
    "anonymous".
    """

    start: int
    """Its first address; neighbouring mappings of the same kind are one row."""
    end: int
    permissions: str
    merged_pages: int
    """Pages that ksmpy has merged already, or that belong to a file; not among `pages`."""
    swapped_pages: int
    """Pages in swap: left there, not among `pages`."""


@dataclass
class _Mapping:
    """Neighbouring private mappings of the same kind: a merged array is thousands of mappings, and
    one row.
    """

    start: int
    end: int
    permissions: str
    name: str
    parts: list[tuple[int, int]] = field(default_factory=list)
    pages: int = 0
    zero: int = 0
    duplicate: int = 0
    merged: int = 0
    swapped: int = 0

    def estimate(self) -> MappingEstimate:
        return MappingEstimate(
            name=self.name or "anonymous",
            pages=self.pages,
            duplicate_pages=self.duplicate,
            zero_pages=self.zero,
            start=self.start,
            end=self.end,
            permissions=self.permissions,
            merged_pages=self.merged,
            swapped_pages=self.swapped,
        )


def _rows(mappings: list[proc.Mapping]) -> list[_Mapping]:
    """The private, readable, anonymous ones, and overlays of a ksmpy store (of proc.smaps())."""
    found: list[_Mapping] = []
    for each in mappings:
        start, end, permissions = each.start, each.end, each.perms
        overlay = is_store(each.path)
        if not permissions.startswith("r") or permissions[3] != "p":
            continue
        if (each.inode and not overlay) or each.path in _KERNELS:
            continue
        name = "" if overlay else each.path
        last = found[-1] if found else None
        if last and (last.end, last.permissions, last.name) == (start, permissions, name):
            last.end = end
        else:
            last = _Mapping(start, end, permissions, name)
            found.append(last)
        last.parts.append((start, end))
        last.swapped += each.swap_bytes // PAGE_SIZE
    return found


class _Process:
    """Read-only access to another process, with errors that say what is the matter."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.descriptors: list[int] = []
        self.born = self._birth()
        try:
            self.memory = self._open("mem")
            self.pagemap = self._open("pagemap")
            self.mappings = _rows(self._maps())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()

    def _birth(self) -> bytes:
        """When the process began: a pid alone may be another process's by now."""
        try:
            fields = proc.stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise KsmpyError(f"no process {self.pid}") from None
        if fields[0] in (b"Z", b"X"):
            raise KsmpyError(f"process {self.pid} has ended and waits for its parent to notice")
        return fields[19]

    def _refused(self) -> KsmpyError:
        return KsmpyError(
            f"no permission to read the memory of process {self.pid}: be its owner, and allowed by "
            "/proc/sys/kernel/yama/ptrace_scope, or root"
        )

    def _open(self, name: str) -> int:
        try:
            self.descriptors.append(os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            raise self._refused() from None
        except OSError:
            raise self.gone() from None
        return self.descriptors[-1]

    def _maps(self) -> list[proc.Mapping]:
        try:
            found = proc.smaps(self.pid)
        except PermissionError:
            raise self._refused() from None
        except OSError:
            raise self.gone() from None
        if not found:  # a kernel thread, or a process that is just ending
            raise KsmpyError(f"process {self.pid} has no memory of its own (a kernel thread?)")
        return found

    def gone(self) -> KsmpyError:
        return KsmpyError(f"process {self.pid} ended while it was being read")

    def check_alive(self) -> None:
        try:
            alive = self._birth() == self.born
        except KsmpyError:
            alive = False
        if not alive:
            raise self.gone()

    def flags(self, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """(address of the first page, pagemap entries) over a range, a window at a time."""
        import numpy as np

        for first in range(start // PAGE_SIZE, end // PAGE_SIZE, _WINDOW_PAGES):
            count = min(_WINDOW_PAGES, end // PAGE_SIZE - first)
            data = proc.page_entries(self.pagemap, first * PAGE_SIZE, count)
            if not data:
                self.check_alive()
                return
            yield first * PAGE_SIZE, np.frombuffer(data, np.uint64)

    def pages(self, address: int, count: int, buffer: memoryview) -> int:
        """Read whole pages into the buffer; how many could be read before the first that could
        not.
        """
        try:
            size = os.preadv(self.memory, [buffer[: count * PAGE_SIZE]], address)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EFAULT, errno.ESRCH):
                raise
            size = 0
        if size == 0:  # the mapping went away, or the process did
            self.check_alive()
        return size // PAGE_SIZE


class _Census:
    """Counts equal pages over all mappings by a 128-bit digest."""

    def __init__(self) -> None:
        try:
            from mmh3 import mmh3_x64_128_digest
        except ImportError:
            raise Unsupported("the page digests need the package mmh3 (pip install mmh3)") from None
        self.digest = mmh3_x64_128_digest
        self.zero = self.digest(bytes(PAGE_SIZE))
        self.seen: set[bytes] = set()

    def add(self, mapping: _Mapping, page: memoryview, exclusive: bool) -> None:
        key = self.digest(page)
        if key == self.zero:
            if not exclusive:
                return  # the kernel's own zero page, which takes no memory already
            mapping.zero += 1
        mapping.pages += 1
        if key in self.seen:
            mapping.duplicate += 1
        else:
            self.seen.add(key)


def _runs(wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, count) of each stretch of true values, cut to the size of one read."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate(([0], wanted.view(np.int8), [0]))))
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for at in range(first, end, _READ_PAGES):
            yield at, min(_READ_PAGES, end - at)


def _read_part(
    process: _Process, mapping: _Mapping, part: tuple[int, int], census: _Census, buffer: memoryview
) -> None:
    for base, flags in process.flags(*part):
        present = (flags & PRESENT) != 0
        ours = present & ((flags & FILE) == 0)
        mapping.merged += int((present & ~ours).sum())
        exclusive = (flags & EXCLUSIVE) != 0
        for first, count in _runs(ours):
            got = process.pages(base + first * PAGE_SIZE, count, buffer)
            for index in range(got):
                page = buffer[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
                census.add(mapping, page, bool(exclusive[first + index]))


def _summary(mappings: list[_Mapping]) -> Estimate:
    return Estimate(
        total_pages=sum(mapping.pages for mapping in mappings),
        duplicate_pages=sum(mapping.duplicate for mapping in mappings),
        zero_pages=sum(mapping.zero for mapping in mappings),
        buffers=tuple(mapping.estimate() for mapping in mappings),
        skipped=tuple(
            Refused(f"{mapping.start:x}-{mapping.end:x}", f"{mapping.swapped} pages are in swap")
            for mapping in mappings
            if mapping.swapped
        ),
    )


def analyze(pid: int, *, progress: Progress | None = None) -> Estimate:
    """What merging would save in a live process, by mapping; changes nothing in it.

    Looks at private anonymous memory that is in RAM now: pages in swap are counted and left there.
    Needs the right to read the process (same user and no ptrace_scope, or root). `progress` is
    called with the bytes of address space done and the bytes in all. The `buffers` of the result
    are `MappingEstimate`. KsmpyError when there is no such process, when it may not be read, and
    when it ends meanwhile.
    """
    if not os.path.exists("/proc/self/pagemap"):
        raise Unsupported("analyze needs Linux with /proc/PID/pagemap")
    census = _Census()
    process = _Process(pid)
    try:
        total = sum(mapping.end - mapping.start for mapping in process.mappings)
        done = 0
        with mmap.mmap(-1, _READ_PAGES * PAGE_SIZE) as area, memoryview(area) as buffer:
            for mapping in process.mappings:
                for part in mapping.parts:
                    _read_part(process, mapping, part, census, buffer)
                    done += part[1] - part[0]
                    if progress is not None:
                        progress(done, total)
        process.check_alive()
    finally:
        process.close()
    return _summary(process.mappings)
