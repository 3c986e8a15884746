"""A region whose memory its owner has unmapped, or replaced, can be released at any time."""

from __future__ import annotations

import pytest

from conftest import Mode
from support.pause import stopped_at_every_call
from support.vanishing import SHAPES, Doomed

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_region_without_its_memory_is_released(mode: Mode, shape: str) -> None:
    """Between two passes, before anybody could notice."""
    life = Doomed(*mode)
    life.vanish(shape)
    life.region.release()
    life.end()


@pytest.mark.parametrize("shape", ["gone", "partly gone", "replaced"])
def test_memory_goes_while_its_region_is_released(mode: Mode, shape: str) -> None:
    """The owner unmaps it, or puts something else there, at each call that a release makes."""
    stopped_at_every_call("vanishing", shape, *mode)
