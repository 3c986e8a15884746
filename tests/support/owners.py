"""Threads that do to registered memory whatever they like: the driver of ``owners.c``."""

from __future__ import annotations

import ctypes
import errno
import time
from functools import cache
from typing import Any

from ksmpy import native
from ksmpy.native import NativeEngine

from .build import shared_library
from .oracle import PAGE
from .patience import patience

_ROOM = 64


@cache
def _library() -> Any:
    lib = ctypes.CDLL(str(shared_library("owners")))
    lib.owners_new.restype = ctypes.c_void_p
    lib.owners_new.argtypes = [ctypes.c_uint32] * 4 + [ctypes.c_uint64]
    lib.owners_blocks.restype = ctypes.c_uint32
    lib.owners_blocks.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    lib.owners_failed.argtypes = lib.owners_free.argtypes = [ctypes.c_void_p]
    lib.owners_end.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    return lib


class Owners:
    """Owners and strangers, from making to end(); follow() keeps their blocks registered."""

    def __init__(
        self,
        *,
        owners: int = 3,
        strangers: int = 2,
        gives_back: bool = True,
        moves: bool = True,
        seed: int = 1,
    ) -> None:
        self._owners = _library().owners_new(owners, strangers, gives_back, moves, seed)
        assert self._owners, "owners_new refused its options"
        self._blocks = (ctypes.c_uint64 * (2 * _ROOM))()
        self._regions: dict[tuple[int, int], int] = {}
        self.diary = ""

    @property
    def failed(self) -> bool:
        """Whether one of them found a wrong byte."""
        return bool(_library().owners_failed(self._owners))

    def blocks(self) -> set[tuple[int, int]]:
        """(address, bytes) of each block as it is now, or was a moment ago."""
        count = _library().owners_blocks(self._owners, self._blocks, _ROOM)
        return {(self._blocks[2 * i], self._blocks[2 * i + 1] * PAGE) for i in range(count)}

    def follow(self, engine: NativeEngine) -> None:
        """End the regions that are no block any more or were lost, register the blocks."""
        lost = set(engine.find_lost())
        blocks = self.blocks()
        for block, region in list(self._regions.items()):
            if region in lost or block not in blocks:
                try:
                    engine.release(region, discard=False)
                except OSError:  # it is changed at this very moment
                    continue
                del self._regions[block]
        for block in blocks - set(self._regions):
            try:
                self._regions[block] = engine.register(*block, native.VMA_GROWING)
            except OSError:  # it overlaps a region, or is gone already
                continue

    def leave(self, engine: NativeEngine) -> None:
        """End all regions; EBUSY may be said for a while of what somebody looks at."""
        for region in self._regions.values():
            end = time.monotonic() + patience(10)
            while True:
                try:
                    engine.release(region, discard=False)
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > end:
                        raise
                    time.sleep(0.05)
        self._regions = {}

    def end(self) -> None:
        """Stop the threads; AssertionError with the first complaint of one of them."""
        complaint, diary = ctypes.create_string_buffer(1024), ctypes.create_string_buffer(1024)
        _library().owners_end(self._owners, complaint, diary, 1024)
        self.diary = diary.value.decode()
        assert not complaint.value, f"{complaint.value.decode()}; {self.diary}"

    def free(self) -> None:
        """Give their memory back; to be called when nothing is merged any more."""
        _library().owners_free(self._owners)
