"""Page-aligned anonymous memory, and what to put into it."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from . import oracle
from .oracle import PAGE

Bytes = npt.NDArray[np.uint8]

#: How many pages a transparent huge page has.
HUGE = 512

#: How many different pages :func:`content` knows.
ALPHABET = 8


def pages(count: int) -> Bytes:
    """A uint8 array of `count` fresh, whole, anonymous pages; unmapped when it dies."""
    memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=np.uint8)


def huge_pages(count: int) -> Bytes:
    """The same where a huge page (512 pages) begins, on huge pages where the machine has them."""
    memory = mmap.mmap(-1, (count + HUGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    start = -address_of(whole) % (HUGE * PAGE)
    return whole[start : start + count * PAGE]


def guarded(count: int) -> Bytes:
    """The same between two pages that nobody can touch; unmapped by nobody."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = libc.mmap(None, ctypes.c_size_t((count + 2) * PAGE), 0, flags, -1, ctypes.c_long(0))
    inside = ctypes.c_void_p(base + PAGE)
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    if libc.mprotect(inside, ctypes.c_size_t(count * PAGE), rights) < 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    return np.ctypeslib.as_array((ctypes.c_uint8 * (count * PAGE)).from_address(base + PAGE))


#: Of each array of :func:`alone`, by its address: its owner, and what unmaps it.
_alone: dict[int, tuple[weakref.ref[Any], weakref.finalize[..., Any]]] = {}


def _unmap(address: int, count: int) -> None:
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(count * PAGE))


def protect(address: int, rights: int) -> None:
    """Give one page these rights (``mmap.PROT_READ`` and the like)."""
    where, size = ctypes.c_void_p(address), ctypes.c_size_t(PAGE)
    assert ctypes.CDLL(None).mprotect(where, size, rights) == 0


def alone(count: int) -> Bytes:
    """Fresh pages between others that nobody can touch; all are unmapped when the array dies."""
    start = address_of(guarded(count + 1)) + PAGE
    owner = (ctypes.c_uint8 * (count * PAGE)).from_address(start)
    protect(start - PAGE, 0)
    end = weakref.finalize(owner, _unmap, start - 2 * PAGE, count + 3)
    _alone[start] = weakref.ref(owner), end
    return np.ctypeslib.as_array(owner)


def make_room(*arrays: Bytes) -> None:
    """Nothing is mapped any more right below arrays of :func:`alone`.

    What comes back to a region is one mapping with the rest of it only if that place is free when
    the first page of it is merged, and any mapping of one page might take it before.
    """
    for array in arrays:
        start = address_of(array)
        owner, end = _alone.pop(start)
        end.detach()
        weakref.finalize(owner(), _unmap, start, array.nbytes // PAGE + 1)
        weakref.finalize(owner(), _unmap, start - 2 * PAGE, 1)
        _unmap(start - PAGE, 1)


def are_huge(array: Bytes) -> bool:
    """Whether any of an array's memory lies on huge pages now."""
    return any(
        int(fields["AnonHugePages"][0])
        for mapping, fields in oracle.details()
        if mapping.overlaps(*span(array))
    )


def address_of(array: npt.NDArray[Any]) -> int:
    """The address of an array's first byte."""
    return int(array.ctypes.data)


def span(array: npt.NDArray[Any]) -> tuple[int, int]:
    """(address, nbytes) of the whole pages inside an array, as a region covers it."""
    first = -(-address_of(array) // PAGE) * PAGE
    last = (address_of(array) + array.nbytes) // PAGE * PAGE
    return first, max(0, last - first)


def content(kind: int) -> bytes:
    """One page of the alphabet: 0 is all zeros, the last two differ from 1 in one byte only."""
    if kind == 0:
        return bytes(PAGE)
    seed = 1 if kind >= ALPHABET - 2 else kind
    page = bytearray(hashlib.shake_128(bytes([seed])).digest(PAGE))
    if kind == ALPHABET - 2:
        page[0] ^= 1
    elif kind == ALPHABET - 1:
        page[-1] ^= 0x80
    return bytes(page)


def contents(kinds: list[int]) -> bytes:
    """The bytes of consecutive pages of the alphabet."""
    return b"".join(content(kind) for kind in kinds)


def filled(kinds: list[int]) -> Bytes:
    """Fresh pages that hold the given pages of the alphabet."""
    array = pages(len(kinds))
    array[:] = np.frombuffer(contents(kinds), dtype=np.uint8)
    return array


def distinct(count: int, seed: int = 0) -> Bytes:
    """Fresh pages of random bytes, none like another; the same for the same seed."""
    array = pages(count)
    array[:] = np.random.default_rng(seed).integers(0, 256, array.nbytes, dtype=np.uint8)
    return array


def twin(array: Bytes) -> Bytes:
    """Fresh pages with the bytes of another array."""
    copy = pages(array.nbytes // PAGE)
    copy[:] = array
    return copy
