"""Chains of full frames, and trees of their own for each NUMA node: who shares with whom, exactly.

What is expected is computed from the bytes and the limit, and compared with what the kernel says
is mapped (support/oracle.py) as well as with the counters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import EACH_FREEZE, MakeEngine
from support import memory, oracle
from support.knobs import both_refused
from support.memory import Bytes
from support.nodes import page_addresses
from support.oracle import PAGE

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.parametrize("mode", EACH_FREEZE, indirect=True, ids=str),
]


# ---- chains ----------------------------------------------------------------------------------


def _chain(engine: Any, sharers: list[int]) -> None:
    """One content lies on frames with exactly so many sharers; the counters say so."""
    stats = engine.stats()
    engine._core.check()
    chained = len(sharers) > 1
    assert (stats.stable_node_chains, stats.stable_node_dups) == (
        int(chained), len(sharers) if chained else 0,
    )  # fmt: skip
    assert (stats.pages_shared, stats.pages_sharing) == (
        len(sharers), sum(sharers) - len(sharers),
    )  # fmt: skip


def _sharers(array: Bytes) -> list[int]:
    return sorted(oracle.shared_pages([memory.span(array)]).values(), reverse=True)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", ""])
@pytest.mark.parametrize("limit", [2, 3, 5, 16])
def test_chain_of_copies(engine: Any, limit: int, eager: bool) -> None:
    """Under a limit m, k equal pages lie on k // m frames, and one more for a rest of two."""
    engine.knobs.max_page_sharing = limit
    engine.knobs.smart_scan = 0
    for copies in (2, limit, limit + 1, limit + 2, 4 * limit, 4 * limit + limit // 2):
        array = memory.filled([1] * copies)
        region = engine.register(array)
        engine.scan(4, eager=eager)
        full, rest = divmod(copies, limit)
        sharers = _sharers(array)
        assert len(sharers) == full + (rest > 1), f"{copies} copies"
        assert sum(sharers) == copies - (rest == 1) and max(sharers) <= limit
        _chain(engine, sharers)
        assert engine.stats().pages_unshared == (rest == 1)
        region.release()
        assert engine.stats().frame_bytes == 0


def test_chain_is_pruned_when_sharers_leave(engine: Any) -> None:
    """A frame leaves its chain with its last sharer; of two frames, neither is a duplicate then."""
    engine.knobs.max_page_sharing = 4
    engine.knobs.smart_scan = 0
    array = memory.filled([1] * 16)
    engine.register(array)
    engine.scan(4)
    _chain(engine, [4, 4, 4, 4])
    frames = oracle.frames_of(*memory.span(array))
    for gone, frame in enumerate(dict.fromkeys(frames), 1):
        for page, on in enumerate(frames):
            if on == frame:
                array[page * PAGE] ^= page + 1
        left = [4] * (4 - gone)
        _chain(engine, left)
        assert _sharers(array) == left
        assert engine.stats().frame_bytes == len(left) * PAGE


def test_room_in_a_chain_is_used(engine: Any) -> None:
    """New copies go to frames that have room again before there is a new one."""
    engine.knobs.max_page_sharing = 4
    engine.knobs.smart_scan = 0
    array = memory.filled([1] * 8 + [2, 3])
    engine.register(array)
    engine.scan(4)
    _chain(engine, [4, 4])
    array[0] ^= 1
    array[5 * PAGE] ^= 2
    engine.scan(4)
    _chain(engine, [3, 3])
    array[8 * PAGE :] = memory.filled([1, 1])
    engine.scan(4)
    assert _sharers(array) == [4, 4]
    _chain(engine, [4, 4])


# ---- injected nodes --------------------------------------------------------------------------


class Topology:
    """Pages lie on nodes as a hash of their address and an offset says."""

    def __init__(self, count: int) -> None:
        self.nodes = tuple(3 * n for n in range(count))
        self.turn = 0

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Neighbouring pages lie on different nodes."""
        index = (addresses // PAGE + np.uint64(self.turn)) % np.uint64(len(self.nodes))
        found: npt.NDArray[np.int64] = index.astype(np.int64) * 3
        return found


def _pages_by_node(arrays: list[Bytes], topology: Topology) -> dict[oracle.Frame, Counter[int]]:
    found: dict[oracle.Frame, Counter[int]] = {}
    for array in arrays:
        span = memory.span(array)
        nodes = topology.node_of_pages(page_addresses(*span))
        for frame, node in zip(oracle.frames_of(*span), nodes, strict=True):
            if frame is not None:
                found.setdefault(frame, Counter())[int(node)] += 1
    return found


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8])
def test_switching_between_trees(make_engine: MakeEngine, nodes: int) -> None:
    """Pages share across nodes with 1 and never with 0, however often that is switched."""
    topology = Topology(nodes)
    engine = make_engine(topology=topology)
    arrays = [memory.filled([1, 2, 3, 1, 2, 3, 4, 5] * 8) for _ in range(4)]
    wanted = [array.tobytes() for array in arrays]
    for array in arrays:
        engine.register(array)
    for turn in range(6):
        apart = turn % 2 == 0
        engine.knobs.merge_across_nodes = int(not apart)
        topology.turn = turn // 2
        engine.scan(3, eager=True)
        engine._core.check()
        frames = _pages_by_node(arrays, topology)
        kinds: dict[tuple[int, bytes], int] = Counter()
        for array in arrays:
            address, nbytes = memory.span(array)
            for page in range(nbytes // PAGE):
                where = np.array([address + page * PAGE], np.uint64)
                node = int(topology.node_of_pages(where)[0]) if apart else 0
                kinds[node, array[page * PAGE : page * PAGE + PAGE].tobytes()] += 1
        if apart:
            assert all(len(users) == 1 for users in frames.values()), "shared across nodes"
        assert len(frames) == sum(users > 1 for users in kinds.values())
        assert sum(users.total() for users in frames.values()) == sum(
            users for users in kinds.values() if users > 1
        )
        both_refused(engine)
        assert [array.tobytes() for array in arrays] == wanted
        engine.knobs.run = 2
        engine.knobs.run = 0
        assert not any(oracle.maps_store(*memory.span(array)) for array in arrays)
    engine.knobs.merge_across_nodes = 1 - engine.knobs.merge_across_nodes


def test_a_moved_page_is_found_in_its_new_tree(make_engine: MakeEngine) -> None:
    """A page that waits on one node and moves to another merges with what is there."""
    topology = Topology(2)
    engine = make_engine(topology=topology)
    engine.knobs.smart_scan = 0
    engine.knobs.merge_across_nodes = 0
    array = memory.filled([1, 2, 3, 4])
    apart = memory.pages(8)
    odd = (memory.address_of(array) // PAGE + 1) % 2 == memory.address_of(apart) // PAGE % 2
    copy = apart[0 if odd else PAGE :][: 4 * PAGE]
    copy[:] = array
    engine.register(array)
    engine.register(copy)
    engine.scan(4)
    assert engine.stats().pages_sharing == 0
    _Half.move(topology, memory.address_of(copy))
    engine.scan(4)
    engine._core.check()
    assert engine.stats().pages_sharing == 4


class _Half:
    """Pages from an address on have moved to the other node."""

    @staticmethod
    def move(topology: Topology, start: int) -> None:
        before = topology.node_of_pages

        def node_of_pages(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
            there = (addresses >= start) & (addresses < start + 4 * PAGE)
            return np.where(there, before(addresses + np.uint64(PAGE)), before(addresses))

        topology.node_of_pages = node_of_pages  # type: ignore[method-assign]


def _on(topology: Topology, node: int, array: Bytes) -> None:
    """All pages of an array lie on a node from now on."""
    before = topology.node_of_pages
    start, nbytes = memory.span(array)

    def node_of_pages(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        inside = (addresses >= start) & (addresses < start + nbytes)
        return np.where(inside, node, before(addresses))

    topology.node_of_pages = node_of_pages  # type: ignore[method-assign]


def test_a_region_that_comes_during_a_pass_has_its_nodes(make_engine: MakeEngine) -> None:
    """The pass reaches its pages before the next one asks, and knows where they are."""
    topology = Topology(2)
    engine = make_engine(topology=topology)
    engine.knobs.merge_across_nodes = 0
    here, there = memory.filled([1] * 8), memory.filled([1] * 8)
    _on(topology, 0, here)
    _on(topology, 3, there)
    engine.register(here)
    engine.scan(eager=True, max_pages=1)
    engine.register(there)
    engine.scan(eager=True, max_pages=15)
    frames = [set(oracle.frames_of(*memory.span(array))) for array in (here, there)]
    assert all(len(on) == 1 and None not in on for on in frames), frames
    assert frames[0] != frames[1]


def test_a_page_that_was_written_and_moved_is_not_taken_for_a_merged_one(
    make_engine: MakeEngine,
) -> None:
    """Its record says merged when the pass asks for its node; later it is taken apart, and met."""
    topology = Topology(2)
    engine = make_engine(topology=topology)
    engine.knobs.merge_across_nodes = 0
    first, stays, moves = memory.distinct(8, seed=9), memory.filled([1] * 2), memory.filled([1] * 4)
    for array in (first, stays, moves):
        _on(topology, 0, array)
        engine.register(array)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages(map(memory.span, (stays, moves))) == 5
    moves[:] = moves.copy()
    _on(topology, 3, moves)
    first[::PAGE] ^= 1
    engine.scan(eager=True, max_pages=1)
    engine.stats()
    engine.scan(eager=True, max_pages=11)
    engine._core.check()
    stayed = set(oracle.frames_of(*memory.span(stays)))
    assert not stayed & set(oracle.frames_of(*memory.span(moves)))
