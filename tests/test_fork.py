"""Children of fork() have right bytes and write for themselves, whatever the parent goes on doing.

The one that matters most: a child that has not touched its merged pages yet reads the frames of
the parent's store. The parent may not free one of them, whatever became of its own pages.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

import ksmpy
from conftest import MakeEngine, Mode
from ksmpy.store.store import Store
from support import memory, oracle
from support.background import merging
from support.descriptors import no_free_descriptor
from support.memory import Bytes
from support.oracle import PAGE
from support.procs import PATIENCE, Child, in_child
from support.torture import duration, fork_and_verify

pytestmark = pytest.mark.timeout(120 + 2 * duration())


class Merged:
    """Three equal arrays and one of zeros, registered and merged."""

    def __init__(self, engine: Any, count: int = 64, *, merge: bool = True) -> None:
        one = memory.distinct(count, seed=21)
        self.engine = engine
        self.arrays: list[Bytes] = [one, memory.twin(one), memory.twin(one)]
        self.arrays.append(memory.filled([0] * 8))
        self.wanted = [array.tobytes() for array in self.arrays]
        self.regions = [engine.register(array) for array in self.arrays]
        if merge:
            engine.scan(2, eager=True)
            assert oracle.true_saved_pages(self.spans()) >= 2 * count

    def spans(self) -> list[tuple[int, int]]:
        """The pages of all arrays."""
        return [memory.span(array) for array in self.arrays]

    def compare(self) -> None:
        """All bytes are as they were at the fork."""
        for array, wanted in zip(self.arrays, self.wanted, strict=True):
            assert array.tobytes() == wanted

    def compare_and_write(self) -> None:
        """The bytes are right, array by array, while the other arrays are overwritten."""
        for index, array in enumerate(self.arrays):
            assert array.tobytes() == self.wanted[index], f"array {index}"
            array[:] = index + 1
        for index, array in enumerate(self.arrays):
            assert (array == index + 1).all()

    def tear_apart(self) -> None:
        """Everything that could free a frame: new bytes, passes, unmerge, release."""
        rng = np.random.default_rng(22)
        for array in self.arrays:
            array[:] = rng.integers(0, 256, array.nbytes, dtype=np.uint8)
        self.engine.scan(2, eager=True)
        self.engine.unmerge()
        self.engine.scan(2, eager=True)
        for region in self.regions:
            region.release()
        self.fill_the_store()

    def fill_the_store(self) -> None:
        """Merge other bytes, so that freed frames would be used again."""
        for seed in range(3):
            other = memory.distinct(64, seed=100 + seed)
            copy = memory.twin(other)
            self.engine.register(other)
            self.engine.register(copy)
            self.engine.scan(2, eager=True)


@contextmanager
def _ksmd(engine: Any) -> Iterator[None]:
    engine.knobs.sleep_millisecs = 0
    engine.knobs.run = 1
    try:
        yield
    finally:
        engine.knobs.run = 0


@pytest.mark.parametrize("close_all", [False, True], ids=["", "descriptors-closed"])
def test_the_parent_frees_nothing_that_a_child_maps(engine: Any, close_all: bool) -> None:
    """The child touches its pages only after the parent has let go of all of them."""
    merged = Merged(engine)
    child = Child(merged.compare_and_write, close_all=close_all).ready()
    merged.tear_apart()
    child.finish()
    engine._core.check()


def _moved(page: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = libc.mmap.restype = ctypes.c_void_p
    size, flags = ctypes.c_size_t(PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    place = libc.mmap(None, size, 0, flags, -1, ctypes.c_long(0))
    may_move_fixed = 3
    at = libc.mremap(ctypes.c_void_p(page), size, size, may_move_fixed, ctypes.c_void_p(place))
    assert at == place, os.strerror(ctypes.get_errno())
    return int(at)


def _by_close(merged: Merged) -> None:
    merged.engine.close()
    merged.compare()


def _by_release(merged: Merged) -> None:
    for region in merged.regions:
        region.release()
    merged.compare()


def _by_death(merged: Merged) -> None:
    merged.arrays.clear()
    gc.collect()


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("ends", [_by_close, _by_release, _by_death])
def test_a_child_keeps_no_frame_that_it_maps_no_more(
    make_engine: Any, ends: Callable[[Merged], None], shared: bool
) -> None:
    """The child lives on, its regions ended: for its sake no frame stays, and no rule is barred."""
    engine = make_engine(store=ksmpy.Store.anonymous() if shared else None)
    merged = Merged(engine)
    ready, ended = os.pipe()

    def work() -> None:
        ends(merged)
        os.write(ended, b".")
        time.sleep(PATIENCE)

    child = Child(work).ready()
    engine.unmerge()
    assert engine.stats().stale_frames > 0
    child.start()
    assert os.read(ready, 1) == b"."
    engine.unmerge()
    assert engine.stats().stale_frames == 0 == engine.stats().frame_bytes
    engine.knobs.max_page_sharing = 7
    child.kill()
    merged.compare()
    os.close(ready), os.close(ended)


@pytest.mark.parametrize("what", ["one stays", "one was moved"])
def test_a_child_keeps_the_frames_of_a_single_page(engine: Any, what: str) -> None:
    """One overlay is left in the child, as a region or where nobody knows of it."""
    merged = Merged(engine)
    start, _ = memory.span(merged.arrays[0])
    ready, ended = os.pipe()
    told, tell = os.pipe()

    def work() -> None:
        at = start
        if what == "one was moved":
            at = _moved(start)
        for region in merged.regions[1 if what == "one stays" else 0 :]:
            region.release()
        os.write(ended, b".")
        os.read(told, 1)
        assert ctypes.string_at(at, PAGE) == merged.wanted[0][:PAGE]

    child = Child(work).ready()
    child.start()
    assert os.read(ready, 1) == b"."
    merged.tear_apart()
    os.write(tell, b".")
    child.finish()
    for end in (ready, ended, told, tell):
        os.close(end)


@pytest.mark.parametrize("close_all", [False, True], ids=["", "descriptors-closed"])
def test_the_parent_frees_nothing_that_a_grandchild_maps(engine: Any, close_all: bool) -> None:
    """The child forks and ends; the grandchild lives on with the frames."""
    merged = Merged(engine)
    wait, go = os.pipe()
    seen, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            _as_grandchild(merged, wait, tell, close_all)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(wait)
    os.close(tell)
    assert os.read(seen, 1) == b"."
    merged.tear_apart()
    os.write(go, b"x")
    said = os.read(seen, 100)
    os.close(seen)
    os.close(go)
    assert said == b"right", said


def _as_grandchild(merged: Merged, wait: int, tell: int, close_all: bool) -> None:
    try:
        if close_all:
            keep = sorted((wait, tell))
            os.closerange(0, keep[0])
            os.closerange(keep[0] + 1, keep[1])
            os.closerange(keep[1] + 1, 4096)
        os.write(tell, b".")
        os.read(wait, 1)
        merged.compare_and_write()
        os.write(tell, b"right")
    except BaseException as error:
        os.write(tell, repr(error).encode()[:100])
    finally:
        os._exit(0)


def test_a_fork_without_a_free_descriptor(make_engine: MakeEngine, store: Store) -> None:
    """Its child keeps what it maps, and no longer than it lives."""
    for where in (None, store):
        engine = make_engine(store=where)
        merged = Merged(engine)
        go, told = os.pipe(), os.pipe()
        with no_free_descriptor():
            child = os.fork()
            if not child:
                os.read(go[0], 1)
                same = [array.tobytes() for array in merged.arrays] == merged.wanted
                os.write(told[1], b"y" if same else b"n")
                os._exit(0)
        engine.unmerge()
        engine.scan(2)
        engine.unmerge()
        assert engine.stats().stale_frames > 0
        os.write(go[1], b"x")
        assert os.read(told[0], 1) == b"y"
        os.waitpid(child, 0)
        for end in go + told:
            os.close(end)
        engine.scan(2)
        engine.unmerge()
        assert engine.stats().stale_frames == engine.stats().frame_bytes == 0
        merged.compare()


def test_the_child_outlives_the_parents_engine(engine: Any) -> None:
    """The engine is closed, its store with it; the child's pages stay."""
    merged = Merged(engine)
    child = Child(merged.compare_and_write).ready()
    engine.close()
    for array in merged.arrays:
        array[:] = 9
    child.finish()


def test_a_series_of_children_of_different_ages(engine: Any) -> None:
    """Each child keeps the bytes of the moment it was born at."""
    merged = Merged(engine)
    children = []
    for age in range(5):
        now = [array.tobytes() for array in merged.arrays]
        children.append(Child(partial(_same, merged, now)).ready())
        for array in merged.arrays[:3]:
            array[:] = merged.arrays[0] ^ np.uint8(age + 1)
        merged.arrays[1][:] = merged.arrays[2][:] = merged.arrays[0]
        engine.scan(2, eager=True)
        engine._core.check()
    assert oracle.true_saved_pages(merged.spans()) >= 128
    for child in reversed(children):
        child.finish()
    engine.unmerge()
    engine._core.check()


def _same(merged: Merged, then: list[bytes]) -> None:
    for array, wanted in zip(merged.arrays, then, strict=True):
        assert array.tobytes() == wanted


def test_half_scanned_regions(engine: Any) -> None:
    """A fork in the middle of a pass, with some pages merged and others only looked at."""
    merged = Merged(engine, merge=False)
    engine.scan(eager=True, max_pages=70)
    child = Child(merged.compare_and_write).ready()
    engine.scan(eager=True, max_pages=70)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages(merged.spans()) >= 128, "a fork must not end all merging"
    merged.compare()
    merged.tear_apart()
    child.finish()


def test_forks_while_ksmd_runs(engine: Any) -> None:
    """Children are born at any moment of the scanner's work."""
    merged = Merged(engine)
    with _ksmd(engine):
        end = time.monotonic() + duration() / 3
        while time.monotonic() < end:
            in_child(merged.compare_and_write)
            merged.arrays[0][::PAGE] ^= 1
            merged.arrays[0][::PAGE] ^= 1
    merged.compare()


def test_forks_from_c_while_ksmd_runs(engine: Any) -> None:
    """The same from a thread that the interpreter does not know."""
    merged = Merged(engine)
    with _ksmd(engine):
        fork_and_verify(merged.arrays[:3], 20)
    merged.compare()
    engine._core.check()


def test_forks_while_everything_is_unmerged(engine: Any) -> None:
    """Children are born in the middle of unmerge(), and the parent leaves no overlay behind."""
    merged = Merged(engine)
    with merging(engine):
        fork_and_verify(merged.arrays[:3], 20)
    assert not any(oracle.maps_store(*span) for span in merged.spans())
    merged.compare()


def test_the_parent_merges_on_after_many_forks(engine: Any) -> None:
    """Pages that were shared with a child once can still be merged, also while it lives."""
    merged = Merged(engine)
    child = Child(merged.compare_and_write).ready()
    engine.unmerge()
    result = engine.scan(2, eager=True)
    assert result.merged >= 128, result
    assert oracle.true_saved_pages(merged.spans()) >= 128
    merged.compare()
    child.finish()
    merged.compare()


def test_what_was_a_huge_page_before_a_fork_is_merged(engine: Any) -> None:
    """A part of it; the rest the kernel still takes for shared with a child that is gone."""
    whole = memory.huge_pages(memory.HUGE)
    whole[:] = 1
    if not memory.are_huge(whole):
        pytest.skip("no huge page is to be had")
    child = Child(lambda: None).ready()
    whole[300 * PAGE] = 2  # comes apart, and with it what the page tables say of all
    child.finish()
    part = whole[100 * PAGE : 164 * PAGE]
    part[:] = np.tile(memory.distinct(32, seed=9), 2)
    engine.register(part)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(part)]) == 32
    assert engine.stats().pages_busy == 0


def test_the_inherited_engine_is_the_parents(engine: Any) -> None:
    """In the child it merges nothing; releasing and closing work, and cost no byte."""
    merged = Merged(engine)

    def child() -> None:
        for call in (engine.scan, engine.unmerge, engine.stats):
            with pytest.raises(ksmpy.KsmpyError):
                call()
        merged.compare()
        merged.regions[0].release()
        merged.compare()
        engine.close()
        merged.compare_and_write()

    in_child(child)
    merged.compare()
    assert oracle.true_saved_pages(merged.spans()) >= 128
    engine._core.check()


def test_the_childs_own_engine(mode: Mode, engine: Any) -> None:
    """A child merges the memory it inherited, merged or not, with an engine of its own."""
    merged = Merged(engine)
    extra = memory.twin(merged.arrays[0])

    def child() -> None:
        with ksmpy.Engine(**mode.options) as own:  # type: ignore[arg-type]
            for array in (*merged.arrays, extra):
                own.register(array)
            own.scan(2, eager=True)
            merged.compare()
            assert extra.tobytes() == merged.wanted[0]
            own._core.check()
            users = oracle.shared_pages([*merged.spans(), memory.span(extra)])
            assert users.total() - len(users) >= 3 * 64
            merged.arrays[1][5] ^= 1
            own.unmerge()
            merged.arrays[1][5] ^= 1
            merged.compare()
        assert not any(oracle.maps_store(*span) for span in merged.spans())
        merged.compare_and_write()

    waiting = Child(child).ready()
    merged.compare()
    engine.scan(2, eager=True)
    waiting.finish()
    merged.compare()
    engine._core.check()


def test_the_childs_child_has_an_engine_too(mode: Mode, engine: Any) -> None:
    """Three generations, each with an engine over the same inherited memory."""
    merged = Merged(engine)

    def generation(depth: int) -> None:
        with ksmpy.Engine(**mode.options) as own:  # type: ignore[arg-type]
            for array in merged.arrays:
                own.register(array)
            own.scan(2, eager=True)
            if depth:
                in_child(lambda: generation(depth - 1))
            merged.compare()
        merged.compare_and_write()

    in_child(lambda: generation(1))
    merged.compare()


def test_popen_and_exec(engine: Any) -> None:
    """A child that calls exec at once neither disturbs nor keeps anything."""
    merged = Merged(engine)
    for close_fds in (True, False):
        done = subprocess.run([sys.executable, "-c", "pass"], close_fds=close_fds, check=False)
        assert done.returncode == 0
    before = subprocess.run([sys.executable, "-c", "pass"], preexec_fn=merged.compare, check=False)
    assert before.returncode == 0
    merged.compare()
    merged.tear_apart()
    engine._core.check()


def test_descriptors_do_not_leak_into_exec(engine: Any) -> None:
    """No descriptor of the engine is inherited by a program that is started."""
    Merged(engine)
    code = (
        "import os\n"
        "for fd in range(3, 4096):\n"
        "    if os.path.lexists(f'/proc/self/fd/{fd}'):\n"
        "        print(os.readlink(f'/proc/self/fd/{fd}'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], close_fds=False, capture_output=True, text=True, check=True
    )
    for trace in ("memfd:ksmpy", "userfaultfd", "pagemap"):
        assert trace not in done.stdout


_shared_with_workers: list[Bytes] = []


def _checksum(index: int) -> int:
    array = _shared_with_workers[index % 2]
    before = int(array.sum(dtype=np.int64))
    array[index % array.nbytes] ^= 1
    assert int(array.sum(dtype=np.int64)) != before
    array[index % array.nbytes] ^= 1
    return before


def test_multiprocessing_with_fork(engine: Any) -> None:
    """A pool of forked workers reads and writes merged arrays while the parent merges on."""
    merged = Merged(engine)
    _shared_with_workers[:] = merged.arrays[:2]
    want = int(merged.arrays[0].sum(dtype=np.int64))
    context = multiprocessing.get_context("fork")
    with _ksmd(engine):
        with context.Pool(3) as pool:
            assert set(pool.map(_checksum, range(60))) == {want}
            pool.close()
            pool.join()
    _shared_with_workers.clear()
    merged.compare()


def test_buffers_die_in_the_child(engine: Any) -> None:
    """A buffer that dies in the child is released there, and lives on in the parent."""
    merged = Merged(engine)

    def child() -> None:
        while merged.arrays:
            array, wanted = merged.arrays.pop(), merged.wanted.pop()
            assert array.tobytes() == wanted
        engine.close()

    in_child(child)
    merged.compare()
    assert oracle.true_saved_pages(merged.spans()) >= 128
    engine._core.check()
