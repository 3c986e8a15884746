"""Memory for the benchmarks: filled, faulted in, and with known equal pages."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ksmpy import proc

Bytes = npt.NDArray[np.uint8]

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30

# From linux/mman.h.
_MADV_HUGEPAGE = 14
_MADV_NOHUGEPAGE = 15

_BLOCK = 16 * MIB
# Odd, so that multiplying by it modulo 2**64 never gives two pages the same stamp.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def whole_pages(array: Bytes) -> tuple[int, int]:
    """Address and number of the pages that lie wholly inside an array."""
    address = int(array.ctypes.data)
    first = -(-address // PAGE)
    return first * PAGE, max(0, (address + array.nbytes) // PAGE - first)


def huge_share(*arrays: Bytes) -> float:
    """How much of the arrays one entry of the page tables maps for each 2 MiB of it."""
    huge = total = 0
    mappings = proc.smaps()
    for array in arrays:
        address, count = whole_pages(array)
        total += count * PAGE
        huge += sum(
            mapping.sizes[kind]
            for mapping in mappings
            if address <= mapping.start < address + count * PAGE
            for kind in ("AnonHugePages", "ShmemPmdMapped")
        )
    return huge / total


def page_view(array: Bytes) -> npt.NDArray[np.uint64]:
    """The whole pages of an array, one a row of 512 words."""
    address, count = whole_pages(array)
    start = address - int(array.ctypes.data)
    return array[start : start + count * PAGE].view(np.uint64).reshape(count, 512)


def fill_unique(array: Bytes, seed: int) -> None:
    """Random bytes, repeated every 16 MiB, with a stamp in the first word of each page.

    No two pages are equal, in this array or in one with another seed.
    """
    block = np.frombuffer(np.random.default_rng(seed).bytes(_BLOCK), dtype=np.uint8)
    for start in range(0, array.nbytes, _BLOCK):
        part = array[start : start + _BLOCK]
        part[:] = block[: part.nbytes]
    rows = page_view(array)
    number = np.arange(len(rows), dtype=np.uint64) + (np.uint64(seed) << np.uint64(32))
    rows[:, 0] = number * _SPREAD


def empty(nbytes: int, *, huge: bool = True) -> Bytes:
    """An array like numpy's own big ones: 16 bytes into a page, and advised to use huge pages.

    numpy's own would do for full sizes, but below 32 MiB malloc may take them from its heap,
    where equal arrays need not start at the same byte of a page. With `huge` false the array
    gets pages of 4 KiB.
    """
    memory = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(_MADV_HUGEPAGE if huge else _MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)[16 : 16 + nbytes]


def unique(nbytes: int, seed: int = 1, *, huge: bool = True) -> Bytes:
    """An array of which no two pages are equal."""
    array = empty(nbytes, huge=huge)
    fill_unique(array, seed)
    return array


def copies(nbytes: int, count: int, *, huge: bool = True) -> list[Bytes]:
    """`count` equal arrays; within one of them no two pages are equal."""
    arrays = [unique(nbytes, huge=huge)]
    for _ in range(count - 1):
        arrays.append(empty(nbytes, huge=huge))
        arrays[-1][:] = arrays[0]
    return arrays


def zeros(nbytes: int) -> Bytes:
    """Zeros that were written, so that every page has memory of its own.

    On 4 KiB pages: when newer kernels split a huge page for KSM they drop its zero pages on the
    way, and no counter tells.
    """
    array = empty(nbytes, huge=False)
    array.fill(0)
    return array


def constant(nbytes: int) -> Bytes:
    """An array of which all pages are equal and none is zero, on 4 KiB pages like zeros()."""
    array = empty(nbytes, huge=False)
    array.fill(7)
    return array


def scattered_pairs(pairs: int, seed: int = 1) -> Bytes:
    """An array of 2 * `pairs` pages in random order, each equal to exactly one other."""
    array = unique((2 * pairs + 1) * PAGE, seed)
    rows = page_view(array)[: 2 * pairs]
    source = np.concatenate([rows[:pairs], rows[:pairs]])
    rows[:] = source[np.random.default_rng(seed).permutation(2 * pairs)]
    return array


def write_some(array: Bytes, share: float, rng: np.random.Generator) -> None:
    """Give a random `share` of the pages new bytes, again unlike any other page's."""
    rows = page_view(array)
    chosen = rng.choice(len(rows), size=max(1, int(len(rows) * share)), replace=False)
    rows[chosen, 1] = rng.integers(1, 2**63, size=len(chosen), dtype=np.uint64)


def with_differences(nbytes: int, every: int) -> list[Bytes]:
    """Two arrays that are equal but for one page in `every`."""
    arrays = copies(nbytes, 2, huge=False)
    page_view(arrays[1])[every // 2 :: every, 1] ^= np.uint64(1)
    return arrays


def reordered(nbytes: int, block: int, seed: int = 1) -> list[Bytes]:
    """Two arrays of the same pages, those of the second in random order by blocks of `block`."""
    arrays = copies(nbytes, 2, huge=False)
    rows = page_view(arrays[0])
    usable = len(rows) // block * block
    blocks = rows[:usable].reshape(-1, block, 512)
    order = np.random.default_rng(seed).permutation(len(blocks))
    page_view(arrays[1])[:usable].reshape(blocks.shape)[:] = blocks[order]
    return arrays


def shifted(nbytes: int) -> list[Bytes]:
    """Two arrays, the pages of the second one place further down."""
    arrays = copies(nbytes, 2, huge=False)
    rows = page_view(arrays[0])
    page_view(arrays[1])[:-1] = rows[1:]
    return arrays


def many_small(nbytes: int) -> list[Bytes]:
    """Equal arrays of 64 KiB that begin on a page, each with a page of something else behind it."""
    stride = (64 << 10) + PAGE
    count = nbytes // (64 << 10)
    memory = mmap.mmap(-1, count * stride, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(_MADV_NOHUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8).reshape(count, stride)
    whole[:] = unique(stride + PAGE)[:stride]
    return [row[: 64 << 10] for row in whole]


# Pages that are equal, by how they lie; each takes the number of bytes that an array may have.
SHAPES: dict[str, Callable[[int], list[Bytes]]] = {
    "equal": lambda nbytes: copies(nbytes, 2, huge=False),
    "one page in 4096 differs": lambda nbytes: with_differences(nbytes, 4096),
    "one page in 512 differs": lambda nbytes: with_differences(nbytes, 512),
    "one page in 64 differs": lambda nbytes: with_differences(nbytes, 64),
    "one page in 8 differs": lambda nbytes: with_differences(nbytes, 8),
    "shifted by a page": shifted,
    "blocks of 64 pages shuffled": lambda nbytes: reordered(nbytes, 64),
    "all pages shuffled": lambda nbytes: reordered(nbytes, 1),
    "1000 arrays of 64 KiB": lambda nbytes: many_small(nbytes * 1000 // 1024),
}
