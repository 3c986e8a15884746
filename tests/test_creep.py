"""Regions come and go for ever: neither mappings nor the engine's own memory grow with them."""

from __future__ import annotations

import gc
import os
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest

from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE

#: Regions that come and go. The long form (make soak-regions) is 12 000 of them in each mode.
REGIONS = int(os.environ.get("KSMPY_CREEP_REGIONS", "600"))
#: Regions that are there at a time, and the most pages of one.
LIVING, PAGES = 24, 48
#: Regions between two looks at what there is.
LOOK = 20
#: Mappings that the interpreter, or the overlays of regions that are there by chance, may add.
OTHERS = 64

pytestmark = pytest.mark.timeout(120 + REGIONS // 5)


@dataclass
class _Life:
    """A region, what it must hold, and its bytes."""

    region: Any
    array: Bytes
    wanted: Bytes


class _Lives:
    """Regions of a few common pages and some of their own, of which the oldest always goes next."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.random = random.Random(22)
        self.common = memory.distinct(PAGES, seed=22)
        self.living: deque[_Life] = deque()

    def come(self) -> None:
        count = self.random.randint(1, PAGES)
        array = memory.pages(count)
        array[:] = self.common[: count * PAGE]
        for _ in range(self.random.randint(0, 4)):
            array[self.random.randrange(array.nbytes)] ^= self.random.randint(1, 255)
        self.living.append(_Life(self.engine.register(array), array, array.copy()))

    def write(self) -> None:
        life = self.random.choice(self.living)
        at = self.random.randrange(life.array.nbytes)
        life.array[at] ^= 1
        life.wanted[at] ^= 1

    def go(self) -> None:
        """By `release()`, or by the death of the array."""
        life = self.living.popleft()
        assert bytes(life.array) == bytes(life.wanted)
        if self.random.random() < 0.7:
            life.region.release()
            assert bytes(life.array) == bytes(life.wanted)

    def round(self) -> None:
        self.come()
        self.write()
        if len(self.living) > LIVING:
            self.go()


def test_regions_that_come_and_go_leave_nothing(engine: Any) -> None:
    """The most that was seen in the last third is what was seen in the second."""
    lives = _Lives(engine)
    before = len(oracle.mappings())
    mappings: list[int] = []
    metadata: list[int] = []
    for number in range(REGIONS):
        lives.round()
        if number % 4 == 0:
            engine.scan(eager=True)
        if number % LOOK == LOOK - 1:
            mappings.append(len(oracle.mappings()))
            metadata.append(engine.stats().metadata_bytes)
    third = len(mappings) // 3
    for name, seen in (("mappings", mappings), ("metadata", metadata)):
        parts = [seen[:third], seen[third:-third], seen[-third:]]
        print(name, *(f"{min(part)}-{max(part)}" for part in parts))
    assert max(mappings[-third:]) <= max(mappings[:-third]) + OTHERS
    assert max(metadata[-third:]) <= max(metadata[:-third]) + PAGE
    assert engine.stats().pages_sharing > 0, "nothing is merged: this test shows nothing"
    while lives.living:
        lives.go()
    gc.collect()
    engine._core.check()
    for _ in range(4):  # what went out of sight is looked for in some passes
        engine.scan()
    assert engine.stats().frame_bytes == 0
    assert len(oracle.mappings()) <= before + OTHERS
