"""A real swap area, and pages driven into it.

On a machine of its own (tests/vm) that has swap, the area is the machine's: its file systems cannot
have a swap file. Elsewhere it is a file, and there must be no other area.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from . import oracle
from .patience import patience

_MADV_DONTNEED = 4
_MREMAP_MAYMOVE, _MREMAP_DONTUNMAP = 1, 4
_SYS_MREMAP = 25 if os.uname().machine == "x86_64" else 216
_MADV_POPULATE_READ = 22
_MADV_PAGEOUT = 21
_SWAPPED = 1 << 62
#: Entries of higher types mark something else: pages under migration, write protection.
_MAX_AREAS = 20
#: What a refused swapon raises.
Failed = subprocess.CalledProcessError
#: MiB of a swap file.
SIZE = 512


def _areas() -> list[str]:
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=patience(60))


def _lent() -> list[str]:
    """The area of a machine that was booted for the tests: it may be switched off."""
    return _areas()[:1] if "KSMPY_VM" in os.environ else []


def refusal() -> str | None:
    """Why a swap area cannot be had here, or None."""
    if os.geteuid() != 0:
        return "swapon needs root"
    if not Path("/proc/swaps").exists():
        return "this kernel has no swap"
    if _areas() != _lent():
        return "there is a swap area already: what goes where cannot be told"
    return None


class Area:
    """A swap area that is in use."""

    def __init__(self, path: str) -> None:
        self.path = path
        _run("swapon", path)
        self._on = True

    def off(self) -> None:
        """swapoff: the kernel brings every page back first."""
        if self._on:
            _run("swapoff", self.path)
            self._on = False


@contextmanager
def swapping(path: str) -> Iterator[Area]:
    """With the area of :func:`place` in use, and empty."""
    area = Area(path)
    try:
        yield area
    finally:
        area.off()


@contextmanager
def place(folder: Path) -> Iterator[str]:
    """The path of a swap area that is not in use, also if its user is killed.

    The machine's own area is switched on again afterwards; a file is deleted. `Failed` or `OSError`
    where the folder's file system cannot have a swap file.
    """
    lent = _lent()
    path = lent[0] if lent else str(folder / "swap")
    try:
        if lent:
            _run("swapoff", path)
        else:
            _make(path)
        yield path
    finally:
        if lent:
            _off(path)
            _run("swapon", path)
        else:
            stop(path)


def stop(path: str) -> None:
    """Take a swap file away, used or not; also one that a killed process left."""
    _off(path)
    Path(path).unlink(missing_ok=True)


def _off(path: str) -> None:
    if path in _areas():
        _run("swapoff", path)


def _make(path: str) -> None:
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE << 20)
    os.chmod(path, 0o600)
    _run("mkswap", path)
    Area(path).off()


# Not by /proc/swaps: before 6.14, each processor takes 64 slots at once, which then count as used.


def swapped_frames() -> int:
    """How many frames of all stores of this process are in swap."""
    return sum(
        int(fields["Swap"][0]) * 1024 // mmap.PAGESIZE
        for mapping, fields in oracle.details()
        if mapping.is_store and mapping.perms.endswith("s")
    )


def swapped_copies(spans: Iterable[tuple[int, int]]) -> int:
    """How many pages of some ranges have memory of their own, and that in swap."""
    entries = (entry for span in spans for entry in oracle.pagemap(*span))
    return sum(bool(entry & _SWAPPED) and entry & 31 < _MAX_AREAS for entry in entries)


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
    which also maps its neighbours: hence region by region. Twice, because a frame on a huge page
    only leaves that the first time: the kernel takes all of the page out of the page tables then.
    """
    regions = [oracle.pages_on_frames(*span) for span in spans]
    seen: set[oracle.Frame] = set()
    for overlays in regions:
        _forget(chain(*regions))
        pages = []
        for page, frame in overlays.items():
            if frame not in seen:
                seen.add(frame)
                pages.append(page)
        for advice in 2 * (_MADV_POPULATE_READ, _MADV_PAGEOUT):
            for page in pages:
                _advise(page, mmap.PAGESIZE, advice)


def _forget(overlays: Iterable[int]) -> None:
    for mapping in oracle.store_mappings():
        if mapping.perms.endswith("s"):
            _advise(mapping.start, mapping.end - mapping.start, _MADV_DONTNEED)
    for page in overlays:
        _hide(page)


def _hide(page: int) -> None:
    """An overlay leaves the page tables, and nobody is told: its entry moves to another mapping,
    which goes. (MADV_DONTNEED gives it back to its owner, as zeros where there is a userfaultfd.)
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    size, flags = ctypes.c_long(mmap.PAGESIZE), ctypes.c_long(_MREMAP_MAYMOVE | _MREMAP_DONTUNMAP)
    # Not the C library's function, which those tests count that stop others in it.
    moved = libc.syscall(ctypes.c_long(_SYS_MREMAP), ctypes.c_void_p(page), size, size, flags, None)
    if moved == -1 or libc.munmap(ctypes.c_void_p(moved), size):
        error = ctypes.get_errno()
        raise OSError(error, f"mremap: {os.strerror(error)}")


def make_absent(spans: Iterable[tuple[int, int]]) -> int:
    """No page table knows the pages that read frames, until they are touched; says how many."""
    pages = [page for span in spans for page in oracle.pages_on_frames(*span)]
    _forget(pages)
    return len(pages)
