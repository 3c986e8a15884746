"""A real swap area, and pages driven into it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import oracle

_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22
_MADV_PAGEOUT = 21
#: What a refused swapon raises.
Failed = subprocess.CalledProcessError
#: MiB of the swap area.
SIZE = 512


def refusal() -> str | None:
    """Why a swap area cannot be had here, or None."""
    if os.geteuid() != 0:
        return "swapon needs root"
    if not Path("/proc/swaps").exists():
        return "this kernel has no swap"
    if Path("/proc/swaps").read_text().count("\n") > 1:
        return "there is a swap area already: what goes where cannot be told"
    return None


class Area:
    """A swap file that is in use."""

    def __init__(self, path: str) -> None:
        self.path = path
        subprocess.run(["swapon", path], check=True, capture_output=True, timeout=30)
        self._on = True

    def off(self) -> None:
        """swapoff: the kernel brings every page back first."""
        if self._on:
            subprocess.run(["swapoff", self.path], check=True, capture_output=True, timeout=60)
            self._on = False


def make(path: str) -> None:
    """A file that can be used by swapon."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE << 20)
    os.chmod(path, 0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True, timeout=30)


@contextmanager
def swapping(path: str, *, made: bool = False) -> Iterator[Area]:
    """With a swap area at a path; CalledProcessError where its file system cannot have one."""
    if not made:
        make(path)
    area = Area(path)
    try:
        yield area
    finally:
        area.off()


def stop(path: str) -> None:
    """Take a swap area away that a process which was killed may have left."""
    if path in Path("/proc/swaps").read_text():
        subprocess.run(["swapoff", path], check=True, capture_output=True, timeout=60)


def swapped_pages() -> int:
    """How many pages the swap areas hold."""
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return sum(int(line.split()[3]) for line in lines) * 1024 // mmap.PAGESIZE


def _advise(address: int, nbytes: int, advice: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), advice):
        error = ctypes.get_errno()
        raise OSError(error, f"madvise({advice}): {os.strerror(error)}")


def evict(address: int, nbytes: int) -> None:
    """Pages of a range that nobody else maps go to swap, as far as the kernel likes."""
    for mapping in oracle.overlapping(address, nbytes):
        start, end = max(address, mapping.start), min(address + nbytes, mapping.end)
        _advise(start, end - start, _MADV_PAGEOUT)


def frames_to_swap(spans: Iterable[tuple[int, int]]) -> None:
    """Frames go to swap: that works while one mapping alone shows them.

    The store's own mapping is made to forget its pages, which it finds again in the memfd; so are
    the overlays, wherever no copy has been made yet. Then one overlay of each frame is read again,
    which also maps its neighbours: hence region by region.
    """
    frames = [(address, oracle.frames_of(address, nbytes)) for address, nbytes in spans]
    everywhere = [
        address + index * mmap.PAGESIZE
        for address, found in frames
        for index, frame in enumerate(found)
        if frame is not None
    ]
    seen: set[oracle.Frame] = set()
    for address, found in frames:
        _forget(everywhere)
        pages = []
        for index, frame in enumerate(found):
            if frame is not None and frame not in seen:
                seen.add(frame)
                pages.append(address + index * mmap.PAGESIZE)
        for advice in (_MADV_POPULATE_READ, _MADV_PAGEOUT):
            for page in pages:
                _advise(page, mmap.PAGESIZE, advice)


def _forget(overlays: Iterable[int]) -> None:
    for mapping in oracle.store_mappings():
        if mapping.perms.endswith("s"):
            _advise(mapping.start, mapping.end - mapping.start, _MADV_DONTNEED)
    for page in overlays:
        _advise(page, mmap.PAGESIZE, _MADV_DONTNEED)


def make_absent(spans: Iterable[tuple[int, int]]) -> int:
    """No page table knows the pages that read frames, until they are touched; says how many."""
    frames = [(address, oracle.frames_of(address, nbytes)) for address, nbytes in spans]
    pages = [
        address + index * mmap.PAGESIZE
        for address, found in frames
        for index, frame in enumerate(found)
        if frame is not None
    ]
    _forget(pages)
    return len(pages)
