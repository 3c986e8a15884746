"""SIGKILL at chosen moments: the others go on, and what the dead one held comes back.

A process is stopped at one call that the extension makes (support/pause.c), looked at, and killed
there. So each of these moments is forced and not hoped for.
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import EACH_FREEZE, Mode
from ksmpy import Store
from support import oracle
from support.layout import extents, frame_memory
from support.nursery import Nursery, Peer
from support.oracle import PAGE
from support.patience import patience, until
from support.procs import python_ok
from support.sharer import PAGES

pytestmark = pytest.mark.timeout(200)
EACH = pytest.mark.parametrize("mode", EACH_FREEZE, ids=str)

#: Whether every kind of call is tried in every mode, which takes a minute.
THOROUGH = os.environ.get("KSMPY_INJECT_ALL") == "1"
#: How long a survivor's pass may take, in seconds, whatever the dead one was doing: less than who
#: asks a store waits for its lock.
SOON = patience(4)
#: Pages of a run that is long enough to be stopped half way.
LONG = 1200


@pytest.fixture
def mode() -> Mode:
    """The first way of freezing that this machine has; tests that are marked run in each."""
    return next(mode for mode in EACH_FREEZE if not mode.missing())


class Company:
    """A neighbour with merged pages, and the victim, which shares frames with it."""

    def __init__(self, nursery: Nursery, store: Store, mode: Mode) -> None:
        self.nursery, self.store, self.mode = nursery, store, mode
        self.neighbour = self.member()
        self.victim = self.member()
        pages = {int(p): p.merging_pages for p in store.processes()}
        assert pages == {self.neighbour.pid: 2 * PAGES, self.victim.pid: 2 * PAGES}
        assert store.stats().pages_shared == PAGES

    def member(self) -> Peer:
        """One more process with the same bytes, merged."""
        peer = self.nursery.born(self.store)
        peer.call("attach", self.mode.options)
        peer.call("add", 1)
        peer.call("scan", 3)
        return peer

    def joined(self, peer: Peer) -> int:
        """A process's pages on frames, as the store has counted them."""
        return {int(p): p.merging_pages for p in self.store.processes()}[peer.pid]

    def goes_on(self, *, deaths: int, rebuilds: int) -> None:
        """Once the others' leases are gone the neighbour's next pass is quick, and all is as if it
        had always been alone. Memory, and so a lease, outlasts its process while somebody reads
        what it maps.
        """
        self.until_alone()
        seconds = self.neighbour.call("scan", 1)
        assert seconds < SOON, f"the survivor took {seconds:.1f} s"
        self.neighbour.call("check")
        seen = self.store.stats()
        assert (seen.deaths, seen.rebuilds) == (deaths, rebuilds)
        self.is_alone()

    def is_alone(self) -> None:
        """Only the neighbour shares; no frame is in use or has memory but those that it maps."""
        frames, pages = self.neighbour.call("on_frames")
        seen = self.store.stats()
        assert [int(p) for p in self.store.processes()] == [self.neighbour.pid]
        assert (seen.pages_shared, seen.pages_shared + seen.pages_sharing) == (frames, pages)
        assert seen.stale_frames == 0
        assert seen.frame_bytes == frames * PAGE == frame_memory(self.store)
        assert self.joined(self.neighbour) == pages

    def until_alone(self) -> None:
        """Wait until the others, and their forked children, if there are any, have ended."""
        until(lambda: self.store.processes() == [self.neighbour.pid], self.store.processes)

    def part(self) -> None:
        """The neighbour merges all it has and more, and leaves: nothing is left of anybody."""
        self.neighbour.call("scan", 3)
        frames, pages = self.neighbour.call("on_frames")
        self.neighbour.call("add", 3)
        self.neighbour.call("scan", 3)
        self.neighbour.call("check")
        assert self.neighbour.call("on_frames") == (frames + PAGES, pages + 2 * PAGES)
        self.neighbour.call("close")
        self.neighbour.call("compare")
        assert self.store.stats().frame_bytes == 0 == frame_memory(self.store)
        assert self.store.processes() == []


@pytest.fixture
def company(nursery: Nursery, store: Store, mode: Mode) -> Company:
    """Two processes on a store."""
    if reason := mode.missing():
        pytest.skip(reason)
    return Company(nursery, store, mode)


# ---- one moment after the other --------------------------------------------------------------


class Moment(NamedTuple):
    """Where the victim is stopped: at the nth call of a function, with the lock or anywhere."""

    function: str
    nth: int
    locked: bool
    work: str = "scan"

    def stop(self, peer: Peer, *args: Any) -> None:
        """Get a process there."""
        peer.stop(self.function, self.nth, self.locked, self.work, *args)


WITH_THE_LOCK = {
    "first memory for the index": Moment("fallocate", 1, True),
    "more memory for the index": Moment("fallocate", 2, True),
}


@pytest.mark.parametrize("moment", WITH_THE_LOCK.values(), ids=WITH_THE_LOCK)
def test_killed_with_the_lock(company: Company, moment: Moment) -> None:
    """Whoever takes the lock next makes the index anew, from the frames and the living's counts."""
    company.victim.call("add", 7, 2, LONG)
    moment.stop(company.victim)
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=1)
    company.part()


def test_who_waits_for_the_lock_gets_it(company: Company) -> None:
    """A pass that waits for the victim goes on as soon as that is dead."""
    company.victim.call("add", 7, 2, LONG)
    company.victim.stop("fallocate", 1, True, "scan")
    company.neighbour.start("scan", 2)
    assert not company.neighbour.answered(0.3), "the lock was not held"
    company.victim.kill()
    assert company.neighbour.answered(SOON)
    company.neighbour.answer()
    company.goes_on(deaths=1, rebuilds=1)
    company.part()


def _garble(store: Store, start: int, end: int, size: int, stride: int) -> int:
    """Random bytes for the first `size` of every `stride`, where there is memory; how many."""
    chance, count = random.Random(5), 0
    for first, last in list(extents(store.fileno(), start, end)):
        first += -(first - start) % stride
        for at in range(first, last - stride + 1, stride):
            os.pwrite(store.fileno(), chance.randbytes(size), at)
            count += 1
    return count


def test_nothing_in_the_index_is_believed(company: Company, store: Store) -> None:
    """Killed with any structure half changed: trees, chains, sharers, announcements, counters.

    The layout is that of csrc/store/mapping.c, counted back from where the sharers' counts begin.
    """
    company.victim.call("add", 7, 2, LONG)
    company.victim.stop("fallocate", 2, True, "scan")
    index = oracle.store_mappings(company.victim.pid)
    counts = next(m.end - m.start for m in index if m.perms == "rw-s" and m.offset == 0)
    nodes, shift, _, record = struct.unpack_from("<IIII", os.pread(store.fileno(), 40, 0), 24)
    frames = nodes << shift
    events = counts - 8 * (1 << 16)
    announcements = events - 8 * 8 * frames
    records = announcements - record * frames
    trees = records - nodes * 4 * frames
    ids = trees - nodes * -(-((1 << shift) // 64 + 1) * 8 // PAGE) * PAGE
    parts = {"ids": (ids, trees, 8, 8), "trees": (trees, records, 4, 4)}
    parts["records"] = (records, announcements, 32, record)  # not: born, left, owner, tree, state
    parts["announcements"] = (announcements, events, 8, 8)
    parts["counters"] = (128, 176, 8, 8)
    changed = {name: _garble(store, *where) for name, where in parts.items()}
    assert all(changed.values()), changed
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=1)
    company.part()


WITHOUT_IT = {
    "frames taken, none filled": Moment("pwrite", 1, False),
    "frames filled in part": Moment("pwrite", 2, False),
}


@pytest.mark.parametrize("moment", WITHOUT_IT.values(), ids=WITHOUT_IT)
def test_killed_while_it_fills_frames(company: Company, moment: Moment) -> None:
    """Half-made frames are freed, those that were made are as well, and no index is made anew."""
    company.victim.call("add", 7, 2, LONG)
    moment.stop(company.victim)
    half_made = company.store.stats().frame_bytes - company.store.stats().pages_shared * PAGE
    assert half_made > 0
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=0)
    company.part()


@pytest.mark.parametrize("nth", [1, 2])
def test_killed_while_it_leaves(company: Company, nth: int) -> None:
    """Whoever is about to give back the memory of what it had counted is reaped like all others."""
    company.victim.call("add", 7, 2, LONG)
    company.victim.call("scan", 2)
    company.victim.stop("fallocate(PUNCH_HOLE)", nth, False, "close")
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=0)
    company.part()


def mapped(peer: Peer, spans: list[tuple[int, int]]) -> int:
    """How many pages of a stopped process are on frames, as the kernel says."""
    return oracle.shared_pages(spans, peer.pid).total()


@EACH
@pytest.mark.parametrize("then", ["killed", "goes on"])
def test_between_joining_and_mapping(
    nursery: Nursery, company: Company, store: Store, then: str
) -> None:
    """Frames are joined before they are mapped: nobody frees what a stopped process will map."""
    company.victim.call("close")
    late = nursery.born(store)
    late.call("attach", company.mode.options)
    late.call("add", 1, 1)
    spans = late.call("spans")
    late.stop("mmap(MAP_FIXED)", 1, False, "scan")
    joined = company.joined(late)  # fewer than all where a huge page could begin
    assert mapped(late, spans) == 0 < joined
    company.neighbour.call("unmerge")
    assert company.joined(company.neighbour) == 0
    assert frame_memory(store) == joined * PAGE, "frames that will be mapped were freed"
    if then == "killed":
        late.kill()
        company.goes_on(deaths=1, rebuilds=0)
    else:
        late.go_on()
        late.call("check")
        assert late.call("on_frames") == (joined, joined)
        late.call("close")
    company.part()


def test_nobody_waits_for_what_the_dead_one_promised(company: Company) -> None:
    """It was about to make frames that the neighbour waits for: the next one to come makes them."""
    company.neighbour.call("add", 9, 1)
    company.neighbour.call("scan", 2)
    company.victim.call("add", 9, 1)
    company.victim.stop("pwrite", 1, False, "scan", 3)
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=0)
    third = company.nursery.born(company.store)
    third.call("attach", company.mode.options)
    third.call("add", 9, 1)
    for peer in (third, company.neighbour, third):
        peer.call("scan", 2)
    assert company.joined(third) == PAGES and company.joined(company.neighbour) == 3 * PAGES
    third.call("check")
    third.kill()
    company.goes_on(deaths=2, rebuilds=0)
    company.part()


def test_room_that_the_dead_one_leaves_is_heard_of(
    nursery: Nursery, store: Store, mode: Mode
) -> None:
    """Who waits since all frames with its bytes are full gets a dead sharer's place."""
    first, second, waiting = (nursery.born(store) for _ in range(3))
    for peer in (first, second, waiting):
        peer.call("attach", mode.options)
        peer.call("set_knob", "max_page_sharing", 2)
        peer.call("add", 1, 1)
    for peer in (first, second, first, waiting):
        peer.call("scan", 2)
    assert waiting.call("on_frames") == (0, 0)
    first.kill()
    waiting.call("scan", 2)
    assert waiting.call("on_frames") == (PAGES, PAGES)
    assert store.stats().pages_sharing == PAGES
    waiting.call("check")


@EACH
@pytest.mark.parametrize("nth", [2, 4])
def test_killed_half_way_through_a_run(company: Company, nth: int) -> None:
    """Some of a run's pages are mapped, some are frozen, most are neither."""
    company.victim.call("add", 7, 2, LONG)
    spans = company.victim.call("spans")
    # Elsewhere than in the mode `signal` each piece has one call before it is frozen, one after it.
    calls = nth if company.mode.freeze == "signal" else 2 * nth - 1
    company.victim.stop("mmap(MAP_FIXED)", calls, False, "scan")
    done = mapped(company.victim, spans) - 2 * PAGES
    assert 0 < done < 2 * LONG
    assert done + 2 * PAGES < company.joined(company.victim)
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=0)
    company.part()


WITHIN_REPAIRS = {
    "reading counts": Moment("pread", 1, True),
    "clearing counts": Moment("fallocate(PUNCH_HOLE)", 1, True),
}


@pytest.mark.parametrize("moment", WITHIN_REPAIRS.values(), ids=WITHIN_REPAIRS)
@pytest.mark.parametrize("first", ["with the lock", "without it"])
def test_killed_while_it_clears_up(company: Company, moment: Moment, first: str) -> None:
    """Who makes the index anew after a death, or takes back what the dead one held, dies in it."""
    second = company.member()
    company.victim.call("add", 7, 2, LONG)
    if first == "with the lock":
        company.victim.stop("fallocate", 2, True, "scan")
    else:
        company.victim.stop("pwrite", 2, False, "scan")
    company.victim.kill()
    moment.stop(second, 1)
    second.kill()
    company.goes_on(deaths=2, rebuilds=1)
    company.part()


def test_killed_in_a_fork_before_the_child_is_there(company: Company, tmp_path: Path) -> None:
    """The child's slot was taken: it keeps no frame once its taker is dead."""
    victim = company.victim
    victim.call("attach", company.mode.options)
    victim.call("add", 7)
    victim.call("scan", 2)
    victim.stop("pthread_mutex_lock", 5, False, "fork", str(tmp_path / "told"))
    inherited = [process for process in company.store.processes() if process.inherited]
    assert len(inherited) == 1, "the child has no slot yet"
    victim.kill()
    company.goes_on(deaths=2, rebuilds=0)
    company.neighbour.call("unmerge")
    company.is_alone()
    company.part()


def test_killed_in_a_fork_when_the_child_is_there(company: Company, tmp_path: Path) -> None:
    """The child lives on: frames that it maps stay until it ends, though its parent is dead."""
    told = tmp_path / "told"
    company.victim.stop("munmap", 1, False, "fork", str(told))
    company.victim.kill()
    company.neighbour.call("unmerge")
    company.neighbour.call("scan", 1)
    company.neighbour.call("unmerge")
    assert company.joined(company.neighbour) == 0
    assert frame_memory(company.store) == PAGES * PAGE
    told.touch()
    until(lambda: told.read_text() == "right", told.read_text)
    company.until_alone()
    company.goes_on(deaths=1, rebuilds=0)
    company.part()


# ---- coming, and nobody there ----------------------------------------------------------------


def test_killed_while_it_comes_with_the_lock(company: Company) -> None:
    """A newcomer holds the lock while it makes sure of the index's memory; it has no slot yet."""
    company.victim.call("close")
    newcomer = company.nursery.born(company.store)
    newcomer.stop("fallocate", 1, True, "attach", company.mode.options)
    newcomer.kill()
    company.goes_on(deaths=0, rebuilds=1)
    company.part()


@pytest.mark.parametrize("function", ["ftruncate", "fallocate", "mmap"])
def test_killed_while_it_lays_the_store_out(
    nursery: Nursery, store: Store, mode: Mode, function: str
) -> None:
    """Half a store that nobody uses is laid out by the next one, which finds nothing in it."""
    for nth in range(1, 100):
        first = nursery.born(store)
        try:
            first.stop(function, nth, False, "attach", mode.options)
        except LookupError:
            break
        first.kill()
    assert nth > 2
    first.kill()
    company = Company(nursery, store, mode)
    company.victim.kill()
    company.goes_on(deaths=1, rebuilds=0)
    company.part()


def test_the_last_one_is_killed(company: Company, store: Store) -> None:
    """Nobody is left to clear up: the next one finds an empty store; retiring it gives all back."""
    company.neighbour.kill()
    company.victim.call("add", 7, 2, LONG)
    company.victim.stop("fallocate", 2, True, "scan")
    company.victim.kill()
    assert store.processes() == [] and frame_memory(store) > 0
    company.neighbour = company.member()
    company.goes_on(deaths=0, rebuilds=0)
    company.part()
    last = company.member()
    last.kill()
    assert frame_memory(store) > 0
    assert store.unlink(unused_only=True)
    assert os.fstat(store.fileno()).st_blocks * 512 <= PAGE


# ---- every moment ----------------------------------------------------------------------------


def _spread(moments: list[Any], some: int) -> list[Any]:
    return moments[:: max(1, len(moments) // some)]


@EACH
def test_killed_at_every_call(company: Company, store: Store) -> None:
    """A whole life, from attaching to leaving, ends early at each kind of call it makes."""
    company.victim.call("close")
    whole = company.nursery.born(store)
    moments = whole.call("moments", "live", company.mode.options)
    whole.kill()
    if not THOROUGH:  # what happens in the store is the same in each mode
        locked = [moment for moment in moments if moment[1].locked]
        others = [moment for moment in moments if not moment[1].locked]
        some = 15 if company.mode == EACH_FREEZE[0] else 5
        moments = [*_spread(locked, some), *_spread(others, 2 * some)]
    assert len(moments) > 12 and any(call.locked for _, call in moments), moments
    killed = 0
    for number, call in moments:
        victim = company.nursery.born(store)
        try:
            victim.stop("", number, False, "live", company.mode.options)
            killed += 1
        except LookupError:
            pass  # lives are not quite alike
        victim.kill()
        company.until_alone()  # a child that was born may end a little later
        seconds = company.neighbour.call("scan", 1)
        assert seconds < SOON, (call, seconds)
        company.neighbour.call("check")
        company.is_alone()
    assert killed > 0.8 * len(moments)
    assert store.stats().rebuilds > 1
    company.part()


HEIR = """
import os, signal
import ksmpy
from support import memory

store = ksmpy.Store.anonymous()
told, tell = os.pipe()
first = os.fork()
if not first:
    engine = ksmpy.Engine(store=store)
    arrays = [memory.distinct(64, seed=11), memory.distinct(64, seed=11)]
    regions = [engine.register(array) for array in arrays]
    engine.scan(3, eager=True)
    assert engine.stats().pages_sharing == 64
    os.write(tell, b".")
    signal.pause()
os.read(told, 1)
engine = ksmpy.Engine(store=store)
go, let = os.pipe()
heir = os.fork()
if not heir:
    os.read(go, 1)
    one = memory.distinct(8, seed=12)
    region = engine.register(one)
    engine.scan(2, eager=True)
    engine._core.check()
    assert store.stats().frame_bytes == 0, store.stats()
    os._exit(0)
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
os.write(let, b".")
assert os.waitpid(heir, 0)[1] == 0
engine._core.check()
"""


def test_a_child_that_held_no_slot_buries_the_dead() -> None:
    """Its number was nobody's, or that of the first process, whose frames it would free twice."""
    python_ok("-c", HEIR)
