"""Fleets: processes that come by fork, exec and spawn, and go on with one store.

What they share is read from all processes' /proc/PID/maps and pagemap, not from any engine.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy import Store
from support import memory, oracle
from support.fleet import Member, Worker, count_outside, pages_on_store
from support.memory import Bytes
from support.patience import until
from support.procs import PATIENCE, Child, environment, in_child

PAGES = 64
METHODS = ["fork", "forkserver", "spawn"]
KINDS = ["named", "anonymous"]


@pytest.fixture(autouse=True, scope="module")
def helpers() -> Iterator[None]:
    """Multiprocessing's helper processes stay from their first use on: no test's leftover."""
    multiprocessing.resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    """A named store."""
    with Store.open("name") as store:
        yield store


@pytest.fixture
def master(store: Store) -> Iterator[Worker]:
    """An engine by enable() in the process of the test, with two equal arrays merged."""
    worker = Worker(ksmpy.enable(store=store, adopt=False, run=0))
    for _ in range(2):
        worker.hold_distinct(PAGES, 31)
    worker.scan()
    yield worker
    ksmpy.disable()


@contextmanager
def _open(kind: str) -> Iterator[Store]:
    with Store.open("name") if kind == "named" else Store.anonymous() as store:
        yield store


def _spans(worker: Worker) -> list[tuple[int, int]]:
    return [memory.span(array) for array in worker.arrays]


# ---- multiprocessing ------------------------------------------------------------------------


def _share(store: Store, ppid: int) -> None:
    with ksmpy.Engine(store=store) as engine:
        worker = Worker(engine)
        worker.hold_distinct(PAGES, 31)
        worker.scan()
        mine = oracle.shared_pages(_spans(worker))
        assert mine == dict.fromkeys(pages_on_store([ppid], store)[ppid], 1) and len(mine) == PAGES
        worker.compare()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_gets_the_store_as_argument(place: Path, method: str, kind: str) -> None:
    """However it is started, it shares its parent's frames, whom it can name."""
    with _open(kind) as store, ksmpy.Engine(store=store) as engine:
        mine = Worker(engine)
        mine.hold_distinct(PAGES, 31), mine.hold_distinct(PAGES, 31)
        mine.scan()
        context: Any = multiprocessing.get_context(method)
        child = context.Process(target=_share, args=(store, os.getpid()))
        child.start()
        child.join()
        assert child.exitcode == 0
        child.close()
        mine.scan()
        assert count_outside(store, [os.getpid()]) == PAGES


_kept: list[Worker] = []


def _join_in(seed: int) -> tuple[int, int, bool]:
    """A task of a pool: keep more equal pages; says who it was, how many, and whether ksmd runs."""
    engine = ksmpy.enable()
    if not _kept:
        _kept.append(Worker(engine))
    worker = _kept[0]
    worker.hold_distinct(PAGES, seed)
    worker.scan()
    return os.getpid(), worker.merging(), engine.knobs.run == 1


def _pool(method: str, store: Store) -> Executor:
    context = multiprocessing.get_context(method)
    initializer = partial(ksmpy.worker_init, store=store, adopt=False, sleep_millisecs=5)
    return ProcessPoolExecutor(2, context, initializer)


def _shared_by(store: Store, pids: set[int]) -> bool:
    """Whether processes have pages on frames, and have them in common."""
    users = pages_on_store(pids, store)
    return all(users.values()) and set.intersection(*map(set, users.values())) != set()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_gets_the_store_by_its_initializer(place: Path, method: str, kind: str) -> None:
    """The workers' scanners merge with each other's pages, and leave the store when they end."""
    with _open(kind) as store:
        with _pool(method, store) as pool:
            said = list(pool.map(_join_in, [7] * 8))
            assert all(runs for _, _, runs in said)
            pids = {pid for pid, _, _ in said}
            until(lambda: _shared_by(store, pids), store.processes, limit=PATIENCE)
        assert store.processes() == []
        with ksmpy.Engine(store=store) as engine:
            engine.scan()
            assert store.stats().frame_bytes == 0


def test_two_pools_at_once(store: Store) -> None:
    """Workers of a forked and of a spawned pool share frames with one another."""
    with _pool("fork", store) as one, _pool("spawn", store) as two:
        said = [pool.map(_join_in, [8] * 6) for pool in (one, two)]
        pids = [{pid for pid, _, _ in answers} for answers in said]
        both = pids[0] | pids[1]
        until(lambda: _shared_by(store, both), store.processes, limit=PATIENCE)
        assert both <= {int(process) for process in store.processes()}
    assert store.processes() == []


# ---- preload and fork -----------------------------------------------------------------------


class Request(Worker):
    """A worker of a preloading server: it has the master's arrays by fork, and calls enable()."""

    def __init__(self, master: Worker, store: Store) -> None:
        before = [oracle.frames_of(*span) for span in _spans(master)]
        ksmpy.worker_init(store=store, adopt=False, sleep_millisecs=1)
        super().__init__(ksmpy.enable())
        assert self.engine is master.engine and not self.engine._core.inherited
        assert [oracle.frames_of(*span) for span in _spans(master)] == before
        assert self.engine.knobs.run == 1
        self.arrays, self.wanted = list(master.arrays), list(master.wanted)

    def stop(self) -> int:
        """The scanner rests; returns the settled number of pages on frames."""
        self.engine.knobs.run = 0
        self.compare()
        return self.merging()

    def leave(self) -> None:
        """As a worker that is told to end in order."""
        ksmpy.disable()
        assert not any(oracle.maps_store(*span) for span in _spans(self))
        self.compare()

    def again(self) -> None:
        """enable() once more is the same engine; disable() closes it, and then a new one comes."""
        engine = ksmpy.enable(store="name")
        assert engine is self.engine
        self.leave()
        assert engine._core.closed
        new = ksmpy.enable(store="name", adopt=False)
        assert new is not engine and not new.regions()
        ksmpy.disable()


def test_a_preloading_server(master: Worker, store: Store) -> None:
    """Workers go on with the master's pages, share what requests bring, end, and are replaced."""
    me = os.getpid()
    for generation in range(2):
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Member(partial(Request, master, store))) for _ in range(4)
            ]
            for number, worker in enumerate(workers):
                worker.ask("hold_distinct", PAGES, 32 + generation)
                worker.ask("write", number % 2, slice(number, None, 16))
            pids = {worker.pid for worker in workers}
            wanted = set(pages_on_store([me], store)[me])

            def merged(pids: set[int] = pids, wanted: set[Any] = wanted) -> bool:
                new = [set(users) - wanted for users in pages_on_store(pids, store).values()]
                return all(len(frames & new[0]) >= PAGES for frames in new)

            until(merged, lambda: f"{store.stats()} {store.processes()}", limit=PATIENCE)
            for worker in workers:
                assert worker.ask("stop") >= 3 * PAGES - 8
            master.scan()
            assert master.merging() == 2 * PAGES
            count_outside(store, [me, *pids])
            for worker in workers[:2]:
                worker.ask("leave")
        master.scan()
        assert count_outside(store, [me]) == PAGES
    assert store.stats().deaths >= 4
    master.unmerge()
    assert store.stats().frame_bytes == 0


def test_enable_and_disable_in_a_child(master: Worker, store: Store) -> None:
    """enable() is idempotent there too; after disable() it begins with an empty engine."""
    with Member(partial(Request, master, store)) as child:
        child.ask("again")
    master.scan()
    assert master.merging() == 2 * PAGES and ksmpy.enable() is master.engine


def test_enable_in_a_child_with_another_store(master: Worker) -> None:
    """The engine that is asked for is made; the inherited one stays as it is."""

    def work() -> None:
        for options in ({"store": "other"}, {"store": None}, {"freeze": "signal"}):
            own = ksmpy.enable(adopt=False, **options)  # type: ignore[arg-type]
            assert own is not master.engine and master.engine._core.inherited
            ksmpy.disable()
        master.compare()

    in_child(work)


def test_enable_in_a_child_keeps_the_parents_knobs(
    master: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run, adopt and min_bytes begin anew, the rest stays; a refused knob can be tried again."""
    monkeypatch.setenv("KSMPY_PAGES_TO_SCAN", "33")
    monkeypatch.setenv("KSMPY_ADOPT", "0")
    master.engine.knobs.sleep_millisecs = 11
    master.engine.knobs.advisor_mode = "scan-time"

    def work() -> None:
        with pytest.raises(OSError):
            ksmpy.enable(max_page_sharing=0)
        assert master.engine.knobs.run == 0
        engine = ksmpy.enable()
        assert engine is master.engine and engine.knobs.run == 1
        assert engine.knobs.sleep_millisecs == 11 and engine.knobs.pages_to_scan != 33
        assert "ksmpy-adopt" not in {thread.name for thread in threading.enumerate()}
        ksmpy.disable()

    in_child(work)


def test_the_child_adopts_for_itself(master: Worker) -> None:
    """An array that the child makes is found there by its own thread, and nowhere else."""

    def work() -> None:
        engine = ksmpy.enable(min_bytes=1 << 20)
        kept = [np.ones(1 << 20, np.uint8)]
        address, nbytes = memory.span(kept[0])
        until(
            lambda: any(engine._core.overlapping(address, address + nbytes)),
            "the array is not adopted",
            limit=PATIENCE,
        )
        ksmpy.disable()
        assert kept[0].all()

    in_child(work)
    assert len(master.engine.regions()) == 2


# ---- forks ----------------------------------------------------------------------------------


def test_forks_from_a_thread_while_ksmd_runs(master: Worker, store: Store) -> None:
    """Children and their children, born at any moment, have the bytes and go on with the engine."""
    busy = memory.twin(master.arrays[0])
    master.engine.register(busy)
    master.set("sleep_millisecs", 0)
    master.set("run", 1)
    failed: list[BaseException] = []

    def use() -> None:
        _same_but_for_byte_5(busy, master.arrays[0])
        master.scan()
        master.write(0, slice(0, 9))
        in_child(last)
        master.scan()

    def last() -> None:
        master.scan()
        master.unmerge()

    def many() -> None:
        try:
            for _ in range(8):
                in_child(use)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=many)
    thread.start()
    flips = 0
    while thread.is_alive():
        busy[5 :: 3 * oracle.PAGE] ^= 1
        flips += 1
    thread.join()
    assert not failed, failed
    _same_but_for_byte_5(busy, master.arrays[0])
    assert busy[5] ^ master.arrays[0][5] == flips % 2
    master.set("run", 0)
    master.scan()
    master.merging()
    count_outside(store, [os.getpid()])


def _same_but_for_byte_5(one: Bytes, two: Bytes) -> None:
    different = np.flatnonzero(one != two)
    assert (different % oracle.PAGE == 5).all(), different


def test_a_child_that_never_touches_ksmpy(master: Worker, store: Store) -> None:
    """It is known from its first instruction on; its bytes stay, and the frames with them."""
    child = Child(master.compare).ready()
    assert {int(p): p.inherited for p in store.processes()} == {os.getpid(): False, child.pid: True}
    master.unmerge()
    for array in master.arrays:
        array[:] = 1
    assert store.stats().stale_frames == PAGES
    number, text = master.refusal("merge_across_nodes", 0)
    assert number == errno.EBUSY and text.endswith(f"held by processes {child.pid}")
    child.finish()
    master.engine.scan()
    assert store.stats().stale_frames == 0 == store.stats().frame_bytes
    master.set("merge_across_nodes", 0)


def test_the_last_one_out_is_a_child(store: Store) -> None:
    """The engine that made the frames is closed: a child, then its child, go on with them."""
    with ksmpy.Engine(store=store) as engine:
        worker = Worker(engine)
        worker.hold_distinct(PAGES, 31), worker.hold_distinct(PAGES, 31)
        worker.scan()

        def last() -> None:
            worker.compare()
            worker.scan()
            assert (
                worker.merging()
                == 2 * PAGES
                == pages_on_store([os.getpid()], store)[os.getpid()].total()
            )
            worker.unmerge()

        child = Child(lambda: in_child(last)).ready()
    assert store.stats().pages_sharing == 0
    child.finish()
    with ksmpy.Engine(store=store):
        assert store.stats().frame_bytes == 0


# ---- exec -----------------------------------------------------------------------------------

_LOOK = """
import os, sys
seen = [line for line in open('/proc/self/maps') if 'ksmpy' in line.split('/')[-1]]
for fd in os.listdir('/proc/self/fd'):
    try:
        seen += [to for to in [os.readlink('/proc/self/fd/' + fd)] if 'ksmpy' in to]
    except OSError:
        pass
print(len(seen), seen, flush=True)
sys.stdin.read()
"""


def _free_of_the_store(master: Worker, store: Store) -> None:
    """While the program runs: nobody but us is on the store, and no frame is kept for it."""
    assert [int(process) for process in store.processes()] == [os.getpid()]
    master.unmerge()
    assert store.stats().frame_bytes == 0
    master.scan()
    assert master.merging() == 2 * PAGES


@pytest.mark.parametrize("how", ["close_fds", "posix_spawn", "preexec_fn"])
def test_programs_that_are_started(master: Worker, store: Store, how: str) -> None:
    """By vfork, posix_spawn and fork: the program keeps neither frames nor descriptors."""
    more: dict[str, Any] = {
        "close_fds": {"close_fds": True},
        "posix_spawn": {"close_fds": False},
        "preexec_fn": {"close_fds": False, "preexec_fn": master.compare},
    }[how]
    with subprocess.Popen(
        [sys.executable, "-c", _LOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(), **more,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        said = program.stdout.readline()
        assert said.startswith(b"0 "), said
        _free_of_the_store(master, store)
        assert program.stdin is not None
        program.stdin.close()
    assert program.returncode == 0


@pytest.mark.parametrize("revived", [False, True], ids=["inherited", "revived"])
def test_fork_then_exec(master: Worker, store: Store, revived: bool) -> None:
    """os.execv lets go of what the child mapped, whether it had used the engine or not."""
    wait, go = os.pipe()
    seen, tell = os.pipe()
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        if revived:
            master.scan()
        os.write(say, b".")
        os.read(wait, 1)
        os.dup2(tell, 1), os.dup2(wait, 0)
        os.close(go)
        os.execv(sys.executable, [sys.executable, "-c", _LOOK])
    os.read(ready, 1)
    try:
        assert {int(p): p.inherited for p in store.processes()}[pid] is not revived
        os.write(go, b"x")
        with open(seen, closefd=False) as lines:
            assert lines.readline().startswith("0 ")
        master.engine.scan()  # notices that a process has gone
        _free_of_the_store(master, store)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (wait, go, seen, tell, ready, say):
            os.close(fd)
