"""The five causes of a stale node, with a neighbour that lives on the frames of the same store.

The causes are those of test_stale_nodes.py. One process unmerges, and is stopped at one call after
the other; meanwhile the neighbour, a newcomer, a child or the kernel does what it can do to it
(support/neighbours.py). As long as the neighbour is on a frame the answer is EBUSY, and names it.
"""

from __future__ import annotations

import os

import pytest

from conftest import EACH_FREEZE, Mode
from support.pause import stopped_at_every_call

pytestmark = pytest.mark.timeout(300)
WP, MOVE, REMAP, SIGNAL = EACH_FREEZE


def in_modes(*modes: Mode) -> pytest.MarkDecorator:
    """Run a test in these modes."""
    return pytest.mark.parametrize("mode", modes, indirect=True, ids=str)


@in_modes(WP, MOVE, SIGNAL)
def test_cause_1_a_neighbour_keeps_its_pages(mode: Mode) -> None:
    """It stays on its frames and merges on; the rule cannot be switched until it has unmerged."""
    stopped_at_every_call("neighbours", "lingering", *mode)


@in_modes(MOVE, SIGNAL)
def test_cause_2_a_process_comes_during_unmerge(mode: Mode) -> None:
    """It attaches, registers and joins frames; it is one more that is in the way then."""
    stopped_at_every_call("neighbours", "arrival", *mode)


@in_modes(WP, MOVE)
def test_cause_2_a_fork_with_regions_during_unmerge(mode: Mode) -> None:
    """The child has its bytes and may go on with the engine; it is in the way until it ends."""
    stopped_at_every_call("neighbours", "fork", *mode)


@in_modes(MOVE)
def test_cause_3_swapped_out_during_unmerge(mode: Mode, swap_area: str) -> None:
    """The neighbour brings frames back from swap in the middle of an unmerge."""
    stopped_at_every_call("neighbours", "swap", *mode, swap_area)


@in_modes(REMAP)
def test_cause_4_compaction_during_unmerge(mode: Mode) -> None:
    """The kernel moves frames that two processes read to other places."""
    if not os.access("/proc/sys/vm/compact_memory", os.W_OK):
        pytest.skip("/proc/sys/vm/compact_memory cannot be written")
    stopped_at_every_call("neighbours", "migration", *mode)


@in_modes(SIGNAL)
def test_cause_4_absent_pages_are_unmerged(mode: Mode) -> None:
    """What a migration shows to an unmerge: pages that neither process's page tables know."""
    stopped_at_every_call("neighbours", "absent", *mode)


@in_modes(MOVE)
def test_cause_5_swapoff_during_unmerge(mode: Mode, swap_area: str) -> None:
    """All frames are brought back by swapoff, while one of two processes unmerges."""
    stopped_at_every_call("neighbours", "swapoff", *mode, swap_area)
