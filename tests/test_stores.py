"""Engines of several processes on one store: who shares, who is told, and what a fork inherits."""

from __future__ import annotations

import errno
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ksmpy
from ksmpy import KsmpyError, Store, StoreError
from ksmpy.text import human_bytes
from ksmpy.watch.savings import observe_all
from ksmpy.watch.stores import look_at, saved_bytes
from ksmpy.whole import enable as enabling
from ksmpy.whole.tally import Tally
from support import memory, oracle
from support.procs import PATIENCE, Child, environment, in_child, python

PAGES = 64


@pytest.fixture(autouse=True, scope="module")
def resource_tracker() -> None:
    """Multiprocessing's helper process stays from its first use on: it is no test's leftover."""
    multiprocessing.resource_tracker.ensure_running()


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    """A named store."""
    with Store.open("name") as store:
        yield store


class Shared:
    """An engine on a store with two equal arrays, merged."""

    def __init__(self, make_engine: Any, store: Store | str) -> None:
        self.one = memory.distinct(PAGES, seed=31)
        self.two = memory.twin(self.one)
        self.wanted = self.one.tobytes()
        self.engine = make_engine(store=store)
        self.regions = [self.engine.register(array) for array in (self.one, self.two)]
        self.engine.scan(2, eager=True)
        assert self.engine.stats().merging_pages == 2 * PAGES

    def compare(self) -> None:
        """Both arrays have their bytes."""
        assert self.one.tobytes() == self.wanted == self.two.tobytes()


@pytest.fixture
def shared(make_engine: Any, store: Store) -> Shared:
    """Two equal arrays merged on the named store."""
    return Shared(make_engine, store)


def other_process(work: Any, *args: Any) -> None:
    """Run a function of this file in a fresh interpreter that multiprocessing starts."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=args)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


# ---- sharing --------------------------------------------------------------------------------


def _merge_the_same(store: Store | str, options: dict[str, str], before: int) -> None:
    array = memory.distinct(PAGES, seed=31)
    wanted = array.tobytes()
    with ksmpy.Engine(store=store, **options) as engine:  # type: ignore[arg-type]
        engine.register(array)
        engine.scan(2, eager=True)
        stats = engine.stats()
        assert stats.pages_shared == PAGES and stats.merging_pages == PAGES
        assert stats.pages_shared + stats.pages_sharing == before + PAGES
        assert array.tobytes() == wanted
        with Store.open("name") as again:
            pages = {int(p): p.merging_pages for p in again.processes()}
            whole = again.stats()
        assert pages == {os.getppid(): before, os.getpid(): PAGES}
        assert whole.pages_sharing == stats.pages_sharing == sum(pages.values()) - PAGES


@pytest.mark.parametrize("how", ["name", "Store"])
def test_processes_share_frames(shared: Shared, store: Store, mode: Any, how: str) -> None:
    """A spawned process with the same bytes merges onto the frames that are there."""
    given = "name" if how == "name" else store
    other_process(_merge_the_same, given, mode.options, 2 * PAGES)
    assert [int(process) for process in store.processes()] == [os.getpid()]
    shared.compare()
    shared.engine._core.check()


def test_an_anonymous_store_is_shared_by_descriptor(make_engine: Any) -> None:
    """Engines on a memfd: the child of a fork attaches by its inherited handle."""
    with Store.anonymous() as store:
        shared = Shared(make_engine, store)

        def attach() -> None:
            array = memory.distinct(PAGES, seed=31)
            with ksmpy.Engine(store=store) as engine:
                engine.register(array)
                engine.scan(2, eager=True)
                assert oracle.maps_store(*memory.span(array))
                assert store.stats().pages_shared == PAGES
                assert os.getpid() in store.processes()
            assert array.tobytes() == shared.wanted

        in_child(attach)
        shared.compare()


def test_an_engine_keeps_its_store(make_engine: Any, store: Store) -> None:
    """Neither close() nor unlink() of the handle touches engines that were made with it."""
    shared = Shared(make_engine, store)
    store.unlink()
    store.close()
    shared.two[0] ^= 1
    assert shared.engine.stats().merging_pages == 2 * PAGES - 1
    shared.engine._core.check()


def test_a_private_stores_pages_are_its_own(engine: Any) -> None:
    """merging_pages is pages_shared + pages_sharing where nobody else is."""
    one = memory.distinct(PAGES)
    two = memory.twin(one)
    engine.register(one), engine.register(two)
    engine.scan(2, eager=True)
    stats = engine.stats()
    assert stats.merging_pages == 2 * PAGES == stats.pages_shared + stats.pages_sharing


def test_a_regions_profit_is_not_charged_for_other_processes(shared: Shared) -> None:
    """The store's metadata counts by the page."""
    whole, part = shared.engine.stats(), shared.regions[0].stats()
    least = PAGES * 4096 - whole.metadata_bytes // 2
    assert least <= part.process_profit < PAGES * 4096


# ---- knobs and refusals -------------------------------------------------------------------


@pytest.mark.parametrize(("knob", "value"), [("merge_across_nodes", 0), ("max_page_sharing", 7)])
def test_knobs_of_the_whole_store(
    shared: Shared, make_engine: Any, store: Store, knob: str, value: int
) -> None:
    """EBUSY names the processes that hold frames; without any, all engines get the value."""
    child = Child(lambda: shared.engine.close()).ready()
    idle = make_engine(store=store)
    with pytest.raises(OSError) as caught:
        setattr(idle.knobs, knob, value)
    assert caught.value.errno == errno.EBUSY and not isinstance(caught.value, KsmpyError)
    assert caught.value.strerror.startswith(f"{knob}: frames are held by processes ")
    pids = caught.value.strerror.rpartition("processes ")[2].split(", ")
    assert sorted(map(int, pids)) == sorted([os.getpid(), child.pid])
    child.finish()
    shared.engine.unmerge()
    setattr(idle.knobs, knob, value)
    assert getattr(shared.engine.knobs, knob) == getattr(store.stats(), knob) == value


def test_what_is_no_store_is_refused(make_engine: Any, store: Store) -> None:
    """Foreign bytes and a cut file: StoreError that names it, and the bytes stay."""
    os.pwrite(store.fileno(), b"not a store" * 4096, 0)
    for use in (lambda: make_engine(store=store), lambda: make_engine(store="name"), store.stats):
        with pytest.raises(StoreError, match="the store 'name'") as caught:
            use()
        assert caught.value.errno in (errno.EPROTO, errno.EUCLEAN)
    assert os.pread(store.fileno(), 11, 0) == b"not a store"


def test_a_store_in_use_is_not_removed_as_unused(make_engine: Any, store: Store) -> None:
    """unlink(unused_only=True): False while it is used; afterwards its handles are stale."""
    engine = make_engine(store=store)
    path = Path(store.path or "")
    assert store.unlink(unused_only=True) is False and path.exists()
    engine.close()
    assert store.unlink(unused_only=True) is True and not path.exists()
    with pytest.raises(StoreError, match="open it again by its name") as caught:
        make_engine(store=store)
    assert caught.value.errno == errno.ESTALE
    make_engine(store="name")
    with Store.open("name", create=False) as new:
        assert [int(process) for process in new.processes()] == [os.getpid()]


# ---- fork ---------------------------------------------------------------------------------


def test_a_child_goes_on_with_its_parents_engine(shared: Shared, store: Store) -> None:
    """Its first use makes the engine the child's own: the same regions and knobs, run is 0."""
    shared.engine.knobs.run = 1
    shared.engine.knobs.sleep_millisecs = 7

    def use() -> None:
        engine = shared.engine
        assert engine._core.inherited
        assert {int(p): p.inherited for p in store.processes()}[os.getpid()]
        assert engine.knobs.run == 0 and engine.knobs.sleep_millisecs == 7
        assert list(engine.regions()) == shared.regions and not engine._core.inherited
        assert not {int(p): p.inherited for p in store.processes()}[os.getpid()]
        shared.compare()
        shared.one[:] = 1
        assert engine.stats().merging_pages == PAGES
        engine.scan(2, eager=True)
        engine.knobs.run = 1
        engine.knobs.run = 0
        engine._core.check()
        engine.close()
        assert os.getpid() not in store.processes()

    in_child(use)
    shared.engine.knobs.run = 0
    shared.compare()
    assert shared.engine.stats().merging_pages == 2 * PAGES
    shared.engine._core.check()


def test_a_grandchild_does_so_too(shared: Shared, store: Store) -> None:
    """An engine that was made the child's own is inherited and revived once more."""

    def use() -> None:
        assert shared.engine.stats().merging_pages == 2 * PAGES

        def again() -> None:
            assert shared.engine._core.inherited
            shared.engine.unmerge()
            assert not any(oracle.maps_store(r.address, r.nbytes) for r in shared.regions)
            shared.compare()
            shared.engine.close()

        in_child(again)
        assert shared.engine.stats().merging_pages == 2 * PAGES
        shared.engine.close()

    in_child(use)
    shared.compare()


@pytest.mark.parametrize("how", ["release", "close", "owner"])
def test_letting_go_in_a_child_revives_nothing(shared: Shared, how: str) -> None:
    """release(), close() and an owner's death give memory back without a new engine."""

    def let_go() -> None:
        spans = [(region.address, region.nbytes) for region in shared.regions]
        if how == "release":
            for region in shared.regions:
                region.release()
        elif how == "close":
            shared.engine.close()
        else:
            del shared.one, shared.two
            ksmpy.doctor()
            spans = []
        assert shared.engine._core.closed or shared.engine._core.inherited
        assert not any(oracle.maps_store(*span) for span in spans)

    in_child(let_go)
    shared.compare()
    shared.engine._core.check()


def test_a_child_takes_a_buffer_to_an_engine_of_its_own(shared: Shared, store: Store) -> None:
    """Registering what an unused inherited engine holds ends the region there."""

    def take() -> None:
        with ksmpy.Engine(store=store) as own:
            own.register(shared.one)
            own.scan(2, eager=True)
            assert shared.regions[0]._released and shared.engine._core.inherited
            assert own.stats().merging_pages == PAGES
        shared.compare()
        shared.engine.close()

    in_child(take)
    shared.compare()


def _merge_alone(options: dict[str, str], merged: Any, over: Any) -> None:
    array = memory.distinct(PAGES, seed=31)
    wanted = array.tobytes()
    with Store.open("name") as store, ksmpy.Engine(store=store, **options) as engine:  # type: ignore[arg-type]
        engine.register(array)
        engine.scan(2, eager=True)
        assert engine.stats().merging_pages == PAGES
        merged.set()
        assert over.wait(PATIENCE)
        assert array.tobytes() == wanted


def test_what_a_fork_has_left_is_no_saving(make_engine: Any, store: Store, mode: Any) -> None:
    """What parent and child have in common is one page already; it merges with a stranger's."""
    array = memory.distinct(PAGES, seed=31)
    wanted = array.tobytes()
    parent = make_engine(store=store)
    parent.register(array)
    parent.scan(2, eager=True)
    spawn = multiprocessing.get_context("spawn")

    def child() -> None:
        merged, over = spawn.Event(), spawn.Event()
        stranger = spawn.Process(target=_merge_alone, args=(mode.options, merged, over))
        with ksmpy.Engine(store=store, **mode.options) as own:
            own.register(array)
            own.scan(3, eager=True)
            assert store.stats().pages_shared == 0
            stranger.start()
            assert merged.wait(PATIENCE)
            own.scan(2, eager=True)
            assert own.stats().merging_pages == PAGES
            over.set()
            stranger.join()
            assert stranger.exitcode == 0 and array.tobytes() == wanted

    def loaded_anew() -> None:
        again = memory.twin(array)
        with ksmpy.Engine(store=store, **mode.options) as own:
            own.register(again)
            own.scan(2, eager=True)
            assert own.stats().merging_pages == PAGES

    in_child(child)
    parent.scan(2, eager=True)  # which hears that the frames are gone, and waits again
    in_child(loaded_anew)
    assert array.tobytes() == wanted
    parent._core.check()


def _seen_to_save(*pids: int) -> int:
    return sum(each.saved_bytes for each in observe_all()[0] if each.pid in pids)


def _reported(store: Store) -> str:
    tally = Tally(os.getpid(), store)
    while "looked" not in tally.report():
        tally.look_if_due()
    return tally.report()


def _counted_to_save(name: str) -> int:
    found = look_at(name)
    assert found.stats is not None
    return saved_bytes(found.stats, found.processes)


def test_what_came_by_a_fork_is_not_called_saved(shared: Shared, store: Store) -> None:
    """A child that goes on with the engine has all of it on frames, as the store counts; but a
    fork would have left it that without ksmpy too. Seen from outside in every way there is.
    """
    saved = PAGES * oracle.PAGE
    kept, before = _counted_to_save("name"), _seen_to_save(os.getpid())
    ready, over = multiprocessing.Event(), multiprocessing.Event()

    def child() -> None:
        shared.engine.scan()
        assert shared.engine.stats().merging_pages == 2 * PAGES
        ready.set()
        assert over.wait(PATIENCE)

    working = Child(child).ready()
    working.start()
    try:
        assert ready.wait(PATIENCE)
        assert store.stats().pages_sharing == 3 * PAGES
        told = _counted_to_save("name")
        reported = _reported(store)
        seen = _seen_to_save(os.getpid(), working.pid)
        page = json.loads(python("-m", "ksmpy", "report", str(os.getpid()), "--json").stdout)
    finally:
        over.set()
        working.finish()
    # The child's engine has tables of its own.
    assert told < kept < saved
    assert reported.startswith(f"ksmpy: saved {human_bytes(told)} at the most")
    assert seen <= before < saved
    assert page["totals"]["saved_bytes"] <= saved
    assert page["totals"]["by_fork_bytes"] == 2 * saved
    assert sum(each["saved_bytes"] for each in page["processes"]) <= saved


def test_nothing_is_saved_by_who_has_ended(store: Store, shared: Any) -> None:
    """The counters have the pages of a child that has just ended until another process notices, and
    what of these its parent's fork had left it cannot be told any more.
    """
    kept = _counted_to_save("name")
    pid = os.fork()
    if pid == 0:
        try:
            shared.engine.scan()
        finally:
            os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert store.stats().pages_sharing == 3 * PAGES
    assert _reported(store).startswith(f"ksmpy: saved {human_bytes(kept)} at the most")
    assert os.waitpid(pid, 0) == (pid, 0)
    assert store.stats().pages_sharing == 3 * PAGES
    assert _counted_to_save("name") == kept
    assert _reported(store).startswith(f"ksmpy: saved {human_bytes(kept)} at the most")


def test_what_is_written_is_not_reported_as_saved(store: Store, shared: Shared) -> None:
    """Although nobody scans any more, and so the counters have it for ever."""
    assert not _reported(store).startswith("ksmpy: saved 0 B")
    shared.one[:] = 1
    shared.two[:] = 2
    assert store.stats().pages_sharing == PAGES
    assert _reported(store).startswith("ksmpy: saved 0 B at the most")


def test_zeros_that_are_written_are_not_reported_as_saved(store: Store, make_engine: Any) -> None:
    """Although nobody scans any more; they are more than what is kept for them."""
    engine = make_engine(store=store)
    if (engine.freeze, engine.tracking) == ("signal", "checksum"):
        pytest.skip("nothing tells from outside which memory engines have")
    zeros = memory.pages(2048)
    zeros[:] = 0
    engine.register(zeros)
    engine.scan(2, eager=True)
    assert engine.stats().ksm_zero_pages == 2048
    assert not _reported(store).startswith("ksmpy: saved 0 B")
    zeros[:] = 1
    assert _reported(store).startswith("ksmpy: saved 0 B at the most")


# ---- enable, commands ---------------------------------------------------------------------


@pytest.fixture
def enabled() -> Iterator[None]:
    """The process's engine is gone afterwards."""
    yield
    ksmpy.disable()


def _pid_in(name: str) -> bool:
    with Store.open(name, create=False) as store:
        return os.getpid() in store.processes()


def test_enable_takes_a_store(store: Store, enabled: None) -> None:
    """By name or as a Store, which may be mixed; another one is refused."""
    engine = ksmpy.enable(store="name", adopt=False)
    assert _pid_in("name")
    assert ksmpy.enable(store=store) is engine is ksmpy.enable(store="name")
    for other in ("other", None):
        with pytest.raises(KsmpyError, match="another store"):
            ksmpy.enable(store=other)
    with Store.anonymous() as anonymous, pytest.raises(KsmpyError, match="another store"):
        ksmpy.enable(store=anonymous)


def test_the_environment_names_the_store(
    place: Path, monkeypatch: pytest.MonkeyPatch, enabled: None
) -> None:
    """KSMPY_STORE is the default of enable(), in this process and in its workers."""
    monkeypatch.setenv("KSMPY_STORE", "by-environment")
    ksmpy.enable(adopt=False)
    assert _pid_in("by-environment")
    in_child(_enabled_in_a_child)
    other_process(_enabled_in_a_child)


def _enabled_in_a_child() -> None:
    assert not _pid_in("by-environment") or enabling._state.present() is None
    ksmpy.worker_init(adopt=False)
    with Store.open("by-environment", create=False) as store:
        assert {os.getpid(), os.getppid()} <= {int(p) for p in store.processes()}


_RUN = ["run", "--store", "name", "-c", "import ksmpy, os; ksmpy.enable(); print(os.getpid() in "
        "ksmpy.Store.open('name', create=False).processes())"]  # fmt: skip


def test_commands_see_the_store(shared: Shared, store: Store) -> None:
    """`ksmpy stats --store` as a table and as JSON, and `ksmpy run --store` on it."""
    told = python("-m", "ksmpy", "stats", "--store", "name", "--json")
    seen = json.loads(told.stdout)
    assert seen["name"] == "name" and seen["path"] == store.path
    assert seen["stats"]["pages_shared"] == PAGES and seen["stats"]["max_page_sharing"] == 256
    mine = {"pid": os.getpid(), "inherited": False, "merging_pages": 2 * PAGES}
    assert seen["processes"] == [mine]
    plain = python("-m", "ksmpy", "stats", "--store", "name").stdout
    assert f"pages_sharing  {PAGES}" in " ".join(plain.split()).replace(" ", "  ")
    assert str(os.getpid()) in plain and "attached" in plain
    by_pid = json.loads(python("-m", "ksmpy", "stats", str(os.getpid()), "--json").stdout)
    assert by_pid["merged_bytes"] == 2 * PAGES * 4096
    assert by_pid["saved_bytes"] < PAGES * 4096  # tables are off, which may take more than that
    assert python("-m", "ksmpy", *_RUN).stdout == "True\n"


def test_doctor_leaves_an_inherited_engine_alone(shared: Shared) -> None:
    """It looks at the engines of a process, and changes nothing."""

    def look() -> None:
        ksmpy.doctor()
        assert shared.engine._core.inherited

    in_child(look)


def test_a_killed_process_is_noticed(shared: Shared, store: Store) -> None:
    """SIGKILL: it is gone from processes(), and its pages are taken back."""
    code = (
        "import sys, ksmpy; from support import memory\n"
        "engine = ksmpy.Engine(store='name'); array = memory.distinct(64, seed=31)\n"
        "engine.register(array); engine.scan(2, eager=True)\n"
        "print(engine.stats().merging_pages, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None and int(child.stdout.readline()) == PAGES
        assert child.pid in store.processes()
        assert store.stats().pages_sharing == 2 * PAGES
        child.kill()
        child.wait()
    assert [int(process) for process in store.processes()] == [os.getpid()]
    shared.engine.scan()
    assert store.stats().pages_sharing == PAGES and store.stats().deaths == 1
