"""What is merged: buffers of the main thread's, whose bytes are known at any time."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support import memory, oracle
from tests.support.memory import Bytes
from tests.support.oracle import PAGE

#: Buffers alive at a time, and pages of one.
COUNT = 6
PAGES = (16, 160)

_word = np.arange(PAGE // 8)
#: The words of a page that no thread of support/torture.c ever writes.
_CONSTANT = (_word % 32 != 0) & (_word < 256) | (_word >= 384)


def constant_words(buffer: Bytes) -> npt.NDArray[np.uint64]:
    """What nobody writes of a buffer that is hammered, and everybody must read."""
    words: npt.NDArray[np.uint64] = buffer.view(np.uint64).reshape(-1, PAGE // 8)[:, _CONSTANT]
    return words


def wrong_pages(buffer: Bytes, constant: npt.NDArray[np.uint64]) -> list[str]:
    """Which pages of a buffer have other constant words, and what they and the kernel show."""
    wrong = []
    seen = constant_words(buffer)
    for page in np.flatnonzero((seen != constant).any(axis=1)).tolist():
        address = memory.address_of(buffer) + page * PAGE
        words = np.flatnonzero(seen[page] != constant[page])
        again = constant_words(buffer)[page]
        wrong.append(
            f"page {page} at {address:#x}: {len(words)} of {len(again)} words,"
            f" {seen[page][words[0]]:#x} for {constant[page][words[0]]:#x},"
            f" {np.count_nonzero(again != constant[page])} when read again,"
            f" pagemap {oracle.pagemap(address, PAGE)[0]:#x},"
            f" {oracle.overlapping(address, PAGE)}"
        )
    return wrong


class Quiet:
    """A registered buffer that only the main thread writes, and the bytes it must hold."""

    def __init__(self, engine: Any, rng: random.Random) -> None:
        kinds = [rng.randrange(memory.ALPHABET) for _ in range(rng.randint(*PAGES))]
        if rng.random() < 0.7:  # stretches that merge as runs, beside pages that merge alone
            kinds = [1 + i % (memory.ALPHABET - 1) for i in range(len(kinds))]
        self.array = memory.filled(kinds)
        self.model = bytearray(self.array.tobytes())
        self.span = memory.span(self.array)
        self.region = engine.register(self.array)

    def right(self) -> bool:
        """Whether every byte is what was written last."""
        return bool(self.array.tobytes() == self.model)

    def put(self, at: int, data: bytes) -> None:
        """Write some bytes."""
        self.array[at : at + len(data)] = np.frombuffer(data, dtype=np.uint8)
        self.model[at : at + len(data)] = data


class Herd:
    """All quiet buffers. They merge with each other, and never with what the threads write."""

    def __init__(self, engine: Any, rng: random.Random) -> None:
        self._engine = engine
        self._rng = rng
        self.alive = [Quiet(engine, rng) for _ in range(COUNT)]
        #: For other threads, which must not hold a buffer that is to die.
        self.spans = tuple(quiet.span for quiet in self.alive)

    def verify(self) -> None:
        """Every byte of every buffer."""
        for index, quiet in enumerate(self.alive):
            assert quiet.right(), f"buffer {index} has wrong bytes"

    def write(self) -> None:
        """A few bytes, and a few whole pages that may merge again."""
        for quiet in self.alive:
            pages = len(quiet.model) // PAGE
            for _ in range(3):
                at = self._rng.randrange(len(quiet.model) - 16)
                quiet.put(at, self._rng.randbytes(16))
                kind = self._rng.randrange(memory.ALPHABET)
                quiet.put(self._rng.randrange(pages) * PAGE, memory.content(kind))

    def renew(self) -> None:
        """One buffer dies without a word, one is released first; two new ones come."""
        gone = self.alive.pop(self._rng.randrange(len(self.alive)))
        count = len(self._engine.regions())
        del gone
        assert len(self._engine.regions()) == count - 1, "a region outlives its buffer"
        released = self.alive.pop(self._rng.randrange(len(self.alive)))
        released.region.release()
        assert not oracle.maps_store(*released.span), "released, and still merged"
        assert released.right(), "a released buffer has wrong bytes"
        self.alive += [Quiet(self._engine, self._rng) for _ in range(2)]
        self.spans = tuple(quiet.span for quiet in self.alive)

    def take_apart_one(self) -> None:
        """One region is unmerged by itself."""
        quiet = self._rng.choice(self.alive)
        quiet.region.unmerge()
        assert not oracle.maps_store(*quiet.span), "unmerged, and still merged"
