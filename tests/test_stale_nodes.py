"""No stale node is left behind: the five causes of one, each provoked on purpose.

merge_across_nodes may be switched when nothing is shared, after run was set to 2. Hugh Dickins'
mail of 8 February 2013, "ksm: remove old stable nodes more thoroughly", names five ways in which
a node of the old trees survived that. Every test here that carries one of their names makes it
happen at a chosen moment: a thread is stopped at one call after the other (support/pause.c).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import EACH_FREEZE, Mode
from ksmpy.engine.numa import SystemTopology
from support import memory, oracle, pause, swap
from support.inject import preloaded
from support.knobs import both_refused
from support.memory import Bytes
from support.nodes import move, page_addresses
from support.oracle import PAGE
from support.patience import patience
from support.procs import Child, python_ok

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.parametrize("mode", EACH_FREEZE, indirect=True, ids=str),
]


def _merged(engine: Any, copies: int = 3, count: int = 32, seed: int = 1) -> list[Bytes]:
    one = memory.distinct(count, seed=seed)
    arrays = [one, *(memory.twin(one) for _ in range(copies - 1))]
    for array in arrays:
        engine.register(array)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages(map(memory.span, arrays)) == (copies - 1) * count
    return arrays


def _no_store(arrays: list[Bytes]) -> None:
    assert not any(oracle.maps_store(*memory.span(array)) for array in arrays)


def _switched(engine: Any) -> None:
    engine.knobs.merge_across_nodes = 1 - engine.knobs.merge_across_nodes
    engine.knobs.max_page_sharing += 1
    stats = engine.stats()
    assert (stats.pages_shared, stats.pages_sharing, stats.stale_frames) == (0, 0, 0)
    assert (stats.stable_node_chains, stats.stable_node_dups, stats.frame_bytes) == (0, 0, 0)
    engine._core.check()


# ---- cause 1: frames that linger -------------------------------------------------------------


def test_cause_1_a_child_maps_frames(engine: Any) -> None:
    """A child keeps its frames, and only those; the rule cannot be changed until it ends."""
    arrays = _merged(engine)
    wanted = [array.tobytes() for array in arrays]

    def compare() -> None:
        for array, then in zip(arrays, wanted, strict=True):
            assert array.tobytes() == then

    child = Child(compare).ready()
    later = _merged(engine, seed=2)
    both_refused(engine)
    engine.knobs.run = 2
    _no_store(arrays + later)
    stats = engine.stats()
    assert (stats.pages_shared, stats.pages_sharing, stats.stale_frames) == (0, 0, 32)
    assert stats.frame_bytes == 32 * PAGE, "frames that the child cannot map were kept"
    both_refused(engine)
    compare()
    for array in arrays:
        array[:] = 7
    child.finish()
    _switched(engine)


def test_cause_1_the_last_of_several_children(engine: Any) -> None:
    """As long as one child is left that may map a frame, the answer is EBUSY."""
    arrays = _merged(engine)
    wanted = arrays[0].tobytes()

    def compare() -> None:
        assert arrays[1].tobytes() == wanted

    children = [Child(compare).ready() for _ in range(3)]
    engine.knobs.run = 2
    for child in children:
        both_refused(engine)
        child.finish()
    _switched(engine)
    _no_store(arrays)


def test_cause_1_stale_frames_are_shared_again(engine: Any) -> None:
    """Frames that a child keeps do no harm where they are: the same rule goes on with them."""
    arrays = _merged(engine)
    wanted = arrays[0].tobytes()

    def compare() -> None:
        assert arrays[0].tobytes() == wanted

    child = Child(compare).ready()
    engine.knobs.run = 2
    engine.scan(2, eager=True)
    engine._core.check()
    assert engine.stats().stale_frames == 0
    assert oracle.true_saved_pages(map(memory.span, arrays)) == 64
    assert engine.stats().frame_bytes == 32 * PAGE
    child.finish()
    both_refused(engine)
    engine.knobs.run = 2
    _switched(engine)


def test_cause_1_pinned_frames(engine: Any) -> None:
    """Frames in a pipe and under a memoryview: their bytes stay, whatever becomes of the store."""
    arrays = _merged(engine, count=8)
    wanted = arrays[0].tobytes()
    view = arrays[1].data
    out, into = os.pipe()
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 16 * PAGE)
        _splice(into, arrays[0])
        engine.knobs.run = 2
        _no_store(arrays)
        for array in arrays:
            array[:] = 1
        _switched(engine)
        _merged(engine, count=64, seed=3)  # freed frames are used again
        assert os.read(out, len(wanted)) == wanted
    finally:
        os.close(out)
        os.close(into)
    assert view[5] == 1
    view[5] = 2
    assert arrays[1][5] == 2


def _splice(pipe: int, array: Bytes) -> None:
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    vector = Vector(memory.address_of(array), array.nbytes)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
    libc.vmsplice.restype = ctypes.c_ssize_t
    assert libc.vmsplice(pipe, ctypes.byref(vector), 1, 0) == array.nbytes


# ---- cause 2: who comes in the middle of an unmerge ------------------------------------------


def test_cause_2_registration_during_unmerge(mode: Mode) -> None:
    """Regions that come behind the unmerging thread are not merged before it is done."""
    pause.stopped_at_every_call("stale", "registration", *mode)


def test_cause_2_fork_during_unmerge(mode: Mode) -> None:
    """A child born in the middle has its bytes; its frames keep the rule, and nothing else does."""
    pause.stopped_at_every_call("stale", "fork", *mode)


# ---- cause 3: merged pages in swap -----------------------------------------------------------


def test_cause_3_swapped_out_during_unmerge(mode: Mode, swap_area: str) -> None:
    """Frames and copies come back from swap in the middle of an unmerge, and after it."""
    pause.stopped_at_every_call("stale", "swap", *mode, swap_area)


def test_cause_3_written_copies_in_swap_are_found(engine: Any, swap_area: str) -> None:
    """A merged page that was written and then swapped out is no shared page any more."""
    with swap.swapping(swap_area):
        arrays = _merged(engine, count=64)
        for array in arrays[1:]:
            array[::PAGE] ^= 1
        wanted = [array.tobytes() for array in arrays]
        for array in arrays:
            swap.evict(*memory.span(array))
        assert swap.swapped_copies(map(memory.span, arrays)) > 64
        stats = engine.stats()
        assert (stats.pages_shared, stats.pages_sharing) == (64, 0)
        engine._core.check()
        for array in arrays:
            swap.evict(*memory.span(array))
        engine.scan(4)
        assert oracle.true_saved_pages(map(memory.span, arrays)) == 64
        engine.knobs.run = 2
        _no_store(arrays)
        assert [array.tobytes() for array in arrays] == wanted
        _switched(engine)


# ---- cause 4: migration ----------------------------------------------------------------------


def test_cause_4_frozen_pages_are_waited_for(mode: Mode) -> None:
    """Our own kind of migration entry: an unmerge waits for pages that a scan has frozen."""
    pause.stopped_at_every_call("stale", "frozen", *mode)


def test_cause_4_absent_pages_are_unmerged(mode: Mode) -> None:
    """What a migration shows to an unmerge, held still: pages that no page table knows."""
    pause.stopped_at_every_call("stale", "absent", *mode)


def test_cause_4_compaction_during_unmerge(mode: Mode) -> None:
    """The kernel moves pages and frames to other places while a thread unmerges."""
    if not os.access("/proc/sys/vm/compact_memory", os.W_OK):
        pytest.skip("/proc/sys/vm/compact_memory cannot be written")
    pause.stopped_at_every_call("stale", "migration", *mode)


def _real_nodes() -> tuple[int, ...]:
    nodes = SystemTopology().nodes
    if len(nodes) < 2:
        pytest.skip("this machine has one NUMA node: see tests/vm")
    return nodes


@contextmanager
def _moving(arrays: list[Bytes], nodes: tuple[int, ...]) -> Iterator[Counter[int]]:
    """Pages and frames are moved to and fro by another thread; counts how often."""
    rounds: Counter[int] = Counter()
    stop = False

    def work() -> None:
        while not stop:
            for node in nodes:
                move(map(memory.span, arrays), node)
                rounds[node] += 1

    worker = pause.Worker(work)
    try:
        yield rounds
    finally:
        stop = True
        worker.result()


def test_cause_4_migration_between_nodes(engine: Any) -> None:
    """Pages and frames change their nodes all the time; unmerging and switching go on."""
    nodes = _real_nodes()
    arrays = _merged(engine, count=256)
    wanted = arrays[0].tobytes()
    with _moving(arrays, nodes) as rounds:
        for _ in range(10):
            engine.knobs.run = 2
            _no_store(arrays)
            engine.knobs.merge_across_nodes = 1 - engine.knobs.merge_across_nodes
            engine.scan(3, eager=True)
            engine._core.check()
            assert [array.tobytes() for array in arrays] == [wanted] * 3
    assert rounds[nodes[-1]] > 1
    engine.knobs.run = 2
    _switched(engine)


@pytest.fixture
def unbalanced() -> Iterator[None]:
    """The kernel moves no page to the node that uses it: not where a thread has a policy."""
    _set_policy(4)  # MPOL_LOCAL, which is what it does by default, but for the moving
    yield
    _set_policy(0)  # MPOL_DEFAULT


def _set_policy(mode: int) -> None:
    number = {"x86_64": 238, "aarch64": 237}[platform.machine()]  # of set_mempolicy
    libc = ctypes.CDLL(None)
    failed = libc.syscall(ctypes.c_long(number), ctypes.c_long(mode), None, ctypes.c_ulong(0))
    assert not failed, f"memory policy {mode} is refused"


def _lies_on(array: Bytes, node: int) -> bool:
    nodes = SystemTopology().node_of_pages(page_addresses(*memory.span(array)))
    return bool((nodes == node).all())


def _settle(array: Bytes, node: int) -> None:
    """Move an array to a node, again and again while pages are refused for a moment."""
    deadline = time.monotonic() + patience(10)
    while not _lies_on(array, node):
        assert time.monotonic() < deadline, f"the kernel does not move pages to node {node}"
        move([memory.span(array)], node)


def test_frames_lie_on_their_node(engine: Any, unbalanced: None) -> None:
    """Without merging across nodes, a page reads a frame on its own node, by the kernel's word."""
    nodes = _real_nodes()
    engine.knobs.merge_across_nodes = 0
    one = memory.distinct(64, seed=5)
    arrays = [memory.twin(one) for _ in range(2 * len(nodes))]
    homes = [node for node in nodes for _ in range(2)]
    for array, node in zip(arrays, homes, strict=True):
        _settle(array, node)
        engine.register(array)
    engine.scan(3)
    engine._core.check()
    assert oracle.true_saved_pages(map(memory.span, arrays)) == 64 * len(nodes)
    for array, node in zip(arrays, homes, strict=True):
        assert (array == one).all()  # and every page is present
        assert _lies_on(array, node)


# ---- cause 5: swapoff ------------------------------------------------------------------------


def test_cause_5_swapoff_during_unmerge(mode: Mode, swap_area: str) -> None:
    """All merged pages are brought back by swapoff, in the middle of an unmerge."""
    pause.stopped_at_every_call("stale", "swapoff", *mode, swap_area)


# ---- run = 2 under trouble -------------------------------------------------------------------

TROUBLE = """
import errno, sys
import ksmpy
from support import memory, oracle
from support.inject import Injector

freeze, tracking, kind = sys.argv[1:]
engine = ksmpy.Engine(freeze=freeze, tracking=tracking)
one = memory.distinct(300, seed=4)
arrays = [one, memory.twin(one), memory.twin(one)]
for array in arrays:
    engine.register(array)
wanted = one.tobytes()
injector = Injector()

def merge():
    engine.knobs.run = 0
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 600, engine.stats()

def unmerge():
    engine.knobs.run = 2

merge()
unmerge()  # what is made once is made now
merge()
with injector.counting():
    unmerge()
count = sum(call.kind == kind for call in injector.calls())
assert count >= 3, (kind, injector.calls())
for nth in (1, count // 2 + 1, count):
    merge()
    failed = None
    with injector.failing_kind(kind, nth=nth):
        try:
            unmerge()
        except OSError as error:
            failed = error
    assert failed is not None and failed.errno == errno.ENOMEM, (nth, count, failed)
    assert engine.knobs.run == 0
    assert [array.tobytes() for array in arrays] == [wanted] * 3
    engine._core.check()
    stats = engine.stats()
    users = oracle.shared_pages(map(memory.span, arrays))
    assert stats.pages_shared == len(users) > 0, (stats, len(users))
    assert stats.pages_shared + stats.pages_sharing == users.total()
    assert (stats.pages_sharing < 600) == (nth > 1), stats
    try:
        engine.knobs.merge_across_nodes = 0
    except OSError as error:
        assert error.errno == errno.EBUSY
    else:
        raise AssertionError("switched while frames are shared")
    unmerge()
    assert engine.knobs.run == 2
    assert not any(oracle.maps_store(*memory.span(array)) for array in arrays)
    engine.knobs.merge_across_nodes = 0
    engine.knobs.merge_across_nodes = 1
    stats = engine.stats()
    assert (stats.pages_shared, stats.pages_sharing, stats.frame_bytes) == (0, 0, 0)
    assert [array.tobytes() for array in arrays] == [wanted] * 3
    engine._core.check()
engine.close()
"""


@pytest.mark.parametrize("step", ["memory", "mapping"])
def test_no_memory_half_way(mode: Mode, step: str) -> None:
    """ENOMEM leaves run 0 and the rest merged, loses nothing; a second try finishes the work."""
    taken = "madvise(MADV_POPULATE)" if mode.freeze == "signal" else "UFFDIO_COPY"
    kind = taken if step == "memory" else "mremap"
    python_ok("-c", TROUBLE, mode.freeze, mode.tracking, kind, env=preloaded({}))
