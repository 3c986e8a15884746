"""Overlays that their owner exchanges, moves or unmaps by itself: no frame under one is freed, and
none is kept once nothing maps it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conftest import MakeEngine
from ksmpy import Store
from support import memory, oracle
from support.libc import libc
from support.memory import Bytes
from support.oracle import PAGE
from test_growth import FAILED

pytestmark = pytest.mark.timeout(60)

PAGES = 64
NBYTES = PAGES * PAGE
_FIXED = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
_PRIVATE = 0x22


@pytest.fixture(params=["private", "shared"])
def engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> Iterator[Any]:
    """An engine with a store of its own, and one on a store that others may join."""
    if request.param == "private":
        yield make_engine()
        return
    with Store.anonymous() as store, make_engine(store=store) as engine:
        yield engine


def _map() -> int:
    at: int = libc.mmap(None, NBYTES, 3, _PRIVATE, -1, 0)
    assert at != FAILED
    return at


def _block(wanted: Bytes) -> int:
    at = _map()
    ctypes.memmove(at, memory.address_of(wanted), NBYTES)
    return at


def _bytes(address: int) -> Bytes:
    return np.ctypeslib.as_array((ctypes.c_uint8 * NBYTES).from_address(address))


def _merge(engine: Any) -> tuple[list[int], list[Any], list[Bytes]]:
    """Blocks a, b, a, b and their regions, in one of which each frame comes twice."""
    wanted = [memory.distinct(PAGES, seed=seed) for seed in (21, 22)]
    blocks = [_block(wanted[i % 2]) for i in range(4)]
    regions = [engine.register_range(block, NBYTES) for block in blocks]
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 2 * (PAGES - 1)
    return blocks, regions, wanted


def _move(source: int, target: int) -> None:
    """The overlays of a block, which are all of it but its last page.

    Those that cross the place of a huge page are two mappings, of which one may be tracked.
    """
    end = source + NBYTES - PAGE
    for piece in oracle.overlapping(source, end - source):
        start, size = piece.start, min(piece.end, end) - piece.start
        place = target + start - source
        assert libc.mremap(start, size, size, _FIXED, place) == place


def _unmap(blocks: list[int]) -> None:
    for block in blocks:
        libc.munmap(block, NBYTES)


def test_exchanged_overlays_keep_each_others_frames(engine: Any) -> None:
    """An overlay is known by its place in the file too: what is freed is what was unmapped."""
    blocks, regions, wanted = _merge(engine)
    aside = _map()
    _move(blocks[0], aside)
    _move(blocks[1], blocks[0])
    _move(aside, blocks[1])
    for i in (0, 2):
        regions[i].release()
    engine.scan(5)
    size = NBYTES - PAGE
    for block, bytes_ in zip(blocks, (wanted[1], wanted[0], wanted[0], wanted[1]), strict=True):
        assert (_bytes(block)[:size] == bytes_[:size]).all()
    for i in (1, 3):
        regions[i].release()
    engine.scan(5)
    for block, bytes_ in zip(blocks, (wanted[1], wanted[0], wanted[0], wanted[1]), strict=True):
        assert (_bytes(block)[:size] == bytes_[:size]).all()
    assert engine.stats().frame_bytes == 0
    _unmap([*blocks, aside])


def test_unmapped_overlays_keep_no_frame(engine: Any) -> None:
    """What its owner has unmapped for good is freed, some passes later."""
    blocks, _, _ = _merge(engine)
    _unmap(blocks)
    engine.scan(6)
    assert engine.regions() == ()
    assert engine.stats().frame_bytes == 0


def test_moved_overlays_keep_their_frames(engine: Any) -> None:
    """What its owner has moved elsewhere stays readable, and is freed when it is unmapped."""
    blocks, _, wanted = _merge(engine)
    places = [_map() for _ in blocks]
    for block, place in zip(blocks, places, strict=True):
        _move(block, place)
    _unmap(blocks)
    for _ in range(6):
        engine.scan()
    assert engine.regions() == ()
    assert engine.stats().frame_bytes == 2 * (NBYTES - PAGE)
    for i, place in enumerate(places):
        assert (_bytes(place)[: NBYTES - PAGE] == wanted[i % 2][: NBYTES - PAGE]).all()
    libc.mprotect(places[0], NBYTES, 0)
    _unmap(places[1:])
    engine.scan(6)
    assert engine.stats().frame_bytes == NBYTES - PAGE
    _unmap(places[:1])
    engine.scan(6)
    assert engine.stats().frame_bytes == 0


def test_a_child_keeps_what_went_out_of_sight(engine: Any) -> None:
    """A moved overlay that a child inherits keeps its frames until the child is gone."""
    blocks, regions, wanted = _merge(engine)
    places = [_map() for _ in blocks]
    for block, place in zip(blocks, places, strict=True):
        _move(block, place)
    _unmap(blocks)
    engine.scan(2)
    assert all(region._released for region in regions)
    to_child, from_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(to_child, 1)
        good = all(
            (_bytes(place)[: NBYTES - PAGE] == wanted[i % 2][: NBYTES - PAGE]).all()
            for i, place in enumerate(places)
        )
        os._exit(0 if good else 1)
    _unmap(places)
    engine.scan(6)
    kept = engine.stats().frame_bytes
    os.write(from_parent, b"x")
    status = os.waitpid(pid, 0)[1]
    os.close(to_child)
    os.close(from_parent)
    assert kept == 2 * (NBYTES - PAGE) and status == 0
    engine.scan(2)
    assert engine.stats().frame_bytes == 0
