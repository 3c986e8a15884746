"""Buffers whose every byte is known from one number for each page."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support import memory, oracle
from tests.support.oracle import PAGE

#: Pages of one buffer.
PAGES = (16, 400)
#: Different pages that all processes of all fleets know, the first is zeros.
VARIETY = 300
#: XORed into one byte of a page: the same page, spoiled.
SPOIL = 0x5A


def _contents() -> npt.NDArray[np.uint8]:
    """Every page there can be: page k + VARIETY is page k with a byte spoiled."""
    pages = np.random.default_rng(41).integers(0, 256, (2 * VARIETY, PAGE), dtype=np.uint8)
    pages[0] = 0
    pages[VARIETY:] = pages[:VARIETY]
    pages[np.arange(VARIETY, 2 * VARIETY), _spot(np.arange(VARIETY))] ^= SPOIL
    return pages


def _spot(kinds: Any) -> Any:
    """Where pages are spoiled: all over the page."""
    return kinds * 997 % PAGE


CONTENTS = _contents()


class Cargo:
    """One buffer, and which page of CONTENTS each of its pages must be."""

    def __init__(self, rng: random.Random) -> None:
        count = rng.randint(*PAGES)
        self.kinds = _some(rng, count)
        self.array = memory.pages(count)
        self._pages = self.array.reshape(-1, PAGE)
        self._pages[:] = CONTENTS[self.kinds]
        self.span = memory.span(self.array)
        self.region: Any = None

    def verify(self) -> None:
        """Every byte; AssertionError with the pages that are wrong."""
        wrong = np.flatnonzero((self._pages != CONTENTS[self.kinds]).any(axis=1))
        assert not len(wrong), "; ".join(self._describe(page) for page in wrong[:4].tolist())

    def _describe(self, page: int) -> str:
        address = self.span[0] + page * PAGE
        wanted, seen = CONTENTS[self.kinds[page]], self._pages[page].copy()
        equal = np.flatnonzero((CONTENTS == seen).all(axis=1)).tolist()
        return (
            f"page {page} of {len(self.kinds)} at {address:#x} must be {self.kinds[page]} and is"
            f" {equal}, {np.count_nonzero(seen != wanted)} bytes differ, pagemap"
            f" {oracle.pagemap(address, PAGE)[0]:#x}, {oracle.overlapping(address, PAGE)}"
        )

    def write(self, rng: random.Random) -> None:
        """A stretch of pages anew, and a few single bytes."""
        count = len(self.kinds)
        if rng.random() < 0.5:
            new = _some(rng, rng.randint(1, min(64, count)))
            first = rng.randint(0, count - len(new))
            self._pages[first : first + len(new)] = CONTENTS[new]
            self.kinds[first : first + len(new)] = new
        for _ in range(rng.randrange(8)):
            page = rng.randrange(count)
            self._pages[page, _spot(self.kinds[page] % VARIETY)] ^= SPOIL
            self.kinds[page] = (self.kinds[page] + VARIETY) % (2 * VARIETY)


def _some(rng: random.Random, count: int) -> npt.NDArray[np.int64]:
    """Mostly a stretch that merges as a run, else whatever comes."""
    if rng.random() < 0.7:
        return (np.arange(count) + rng.randrange(VARIETY)) % VARIETY
    return np.random.default_rng(rng.randrange(1 << 32)).integers(0, VARIETY, count)
