"""Pages of one checksum: of who knows a store's key, which tests can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ksmpy import native

from . import memory
from .memory import Bytes
from .oracle import PAGE

#: CHECKSUM_SEED of csrc/base/checksum.h.
SEED = 0x6B736D7079763031
MASK = (1 << 64) - 1


def _key_word(seed: int, number: int) -> int:
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


@contextmanager
def known_key() -> Iterator[None]:
    """Stores that are made in the block have the key that the pages below are for."""
    native.lib.ksmpy_fix_key(SEED)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        native.lib.ksmpy_fix_key(0)  # type: ignore[attr-defined]


def colliding(count: int) -> Bytes:
    """Pages of one checksum, each different at its end. Two words whose products with the key are
    nothing differ, and their sum does not.
    """
    array = memory.pages(count)
    array[:] = 7
    words = array.view(np.uint64).reshape(count, PAGE // 8)
    first, second = 8 * 62, 8 * 63  # of one lane
    high = np.arange(count, dtype=np.uint64) << np.uint64(32)
    words[:, first] = high | np.uint64(_key_word(SEED, first) & 0xFFFFFFFF)
    words[:, second] = (np.uint64(0) - high) | np.uint64(_key_word(SEED, second) & 0xFFFFFFFF)
    return array
