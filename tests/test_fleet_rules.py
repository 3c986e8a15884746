"""What belongs to the store of several processes: its counters, and the rules for all of them."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ksmpy
from ksmpy import Store
from support import memory, oracle
from support.fleet import Member, Worker, count_outside, pages_on_store
from support.procs import Child

PAGES = 32


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    """A named store."""
    with Store.open("name") as store:
        yield store


class OnNode:
    """An injected topology of two nodes: all pages of the process are on one of them."""

    nodes = (0, 1)

    def __init__(self, node: int) -> None:
        self.node = node

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Where pages are, in name."""
        return np.full(len(addresses), self.node, np.int64)


Make = Callable[..., Member]


@pytest.fixture
def member(store: Store) -> Iterator[Make]:
    """Makes processes with an engine on the store each."""
    with ExitStack() as stack:

        def make(node: int | None = None) -> Member:
            topology = None if node is None else OnNode(node)
            engine = partial(ksmpy.Engine, store=store, topology=topology)
            return stack.enter_context(Member(lambda: Worker(engine())))

        yield make


def _settle(members: list[Member], *, passes: int = 2) -> None:
    for _ in range(passes):
        for each in members:
            each.ask("scan", 1)
    for each in members:
        each.ask("merging")


# ---- counters -------------------------------------------------------------------------------


def test_counters_add_up(member: Make, store: Store) -> None:
    """Over random writes and merges, and a SIGKILL, as the kernel shows it of all processes."""
    rng = random.Random(5)
    members = [member() for _ in range(4)]
    for each in members:
        for _ in range(2):
            each.ask("hold", [rng.randrange(memory.ALPHABET) for _ in range(PAGES)])
    frames = []
    for _ in range(4):
        _settle(members)
        frames.append(count_outside(store, [each.pid for each in members]))
        each = rng.choice(members)
        each.ask("write", rng.randrange(2), slice(rng.randrange(PAGES), None, 3))
        members[0].ask("merging"), each.ask("merging")
        count_outside(store, [each.pid for each in members])
    assert min(frames) >= memory.ALPHABET - 1
    members.pop().kill()
    members[0].ask("scan")
    _settle(members)
    count_outside(store, [each.pid for each in members])
    assert store.stats().deaths == 1


def test_a_forks_pages_are_counted_when_it_uses_them(store: Store) -> None:
    """Until then the child holds frames, and is counted with none of its pages."""
    with ksmpy.Engine(store=store) as engine:
        mine = Worker(engine)
        mine.hold_distinct(PAGES, 1), mine.hold_distinct(PAGES, 1)
        mine.scan()
        with Member(lambda: mine) as child:
            child.ask("compare")
            before = {int(p): (p.inherited, p.merging_pages) for p in store.processes()}
            assert before == {os.getpid(): (False, 2 * PAGES), child.pid: (True, 0)}
            assert child.ask("merging") == 2 * PAGES
            count_outside(store, [os.getpid(), child.pid])
            assert store.stats().pages_sharing == 3 * PAGES
        mine.scan()
        count_outside(store, [os.getpid()])


def test_every_engine_tells_the_stores_counters(member: Make, store: Store) -> None:
    """What the kernel has for the machine an engine tells of the store; but for its own pages."""
    members = [member() for _ in range(2)]
    for count, each in enumerate(members, 1):
        for _ in range(count + 1):
            each.ask("hold_distinct", PAGES, 1)
    _settle(members)
    told = [each.ask("stats") for each in members]
    whole = store.stats()
    for name in ("pages_shared", "pages_sharing", "frame_bytes", "stable_node_dups"):
        assert {getattr(stats, name) for stats in told} == {getattr(whole, name)}
    assert [stats.merging_pages for stats in told] == [2 * PAGES, 3 * PAGES]


# ---- rules ----------------------------------------------------------------------------------


def _named(refusal: tuple[int | None, str]) -> set[int]:
    number, text = refusal
    assert number == errno.EBUSY, refusal
    return {int(pid) for pid in text.rpartition("processes ")[2].split(", ")}


@pytest.mark.parametrize(("knob", "value"), [("merge_across_nodes", 0), ("max_page_sharing", 7)])
def test_who_holds_frames_is_named(member: Make, store: Store, knob: str, value: int) -> None:
    """Exactly they, whoever asks; when the last of them has unmerged, the rule is switched."""
    members = [member() for _ in range(3)]
    idle = members[2]
    for each in members[:2]:
        each.ask("hold_distinct", PAGES, 1)
        each.ask("hold_distinct", PAGES, 1)
    _settle(members)
    holding = {each.pid for each in members[:2]}
    for each in members:
        assert _named(each.ask("refusal", knob, value)) == holding
    members[0].ask("unmerge")
    for each in members:
        assert _named(each.ask("refusal", knob, value)) == {members[1].pid}
        assert each.ask("knob", knob) != value
    members[1].ask("unmerge")
    idle.ask("set", knob, value)
    assert {each.ask("knob", knob) for each in members} == {value} == {getattr(store.stats(), knob)}


def _frames(members: list[Member], store: Store) -> list[set[oracle.Frame]]:
    return [set(users) for users in pages_on_store([m.pid for m in members], store).values()]


def test_merging_across_nodes_is_switched_for_all(member: Make, store: Store) -> None:
    """With 1 all pages merge, with 0 only those of the same node; to and fro, asked by either."""
    members = [member(node) for node in (0, 1, 0, 1)]
    for each in members:
        each.ask("hold_distinct", PAGES, 1)
    for across in (1, 0, 1, 0):
        members[across].ask("set", "merge_across_nodes", across)
        _settle(members, passes=4)
        pids = [each.pid for each in members]
        assert count_outside(store, pids) == (PAGES if across else 2 * PAGES)
        one, two, three, four = _frames(members, store)
        assert len(one) == PAGES and one == three and two == four
        assert one == two if across else not one & two
        for each in members:
            each.ask("compare")
            each.ask("unmerge")


@pytest.mark.parametrize("across", [0, 1])
def test_pages_that_wait_when_the_rule_is_switched(member: Make, store: Store, across: int) -> None:
    """An engine that held no frame learns of it, and finds its like by the new rule."""
    switching, waiting = member(0), member(1)
    switching.ask("set", "merge_across_nodes", 1 - across)
    waiting.ask("hold_distinct", PAGES, 1)
    _settle([waiting], passes=4)
    switching.ask("set", "merge_across_nodes", across)
    waiting.ask("hold_distinct", PAGES, 1)
    _settle([waiting])
    assert waiting.ask("merging") == 2 * PAGES
    count_outside(store, [switching.pid, waiting.pid])


def test_max_page_sharing_holds_for_all_together(member: Make, store: Store) -> None:
    """No frame has more sharers than it says, whichever processes they are in."""
    members = [member() for _ in range(3)]
    members[1].ask("set", "max_page_sharing", 4)
    for each in members:
        each.ask("hold", [3] * 6)
    _settle(members, passes=4)
    count_outside(store, [each.pid for each in members])
    users: Counter[oracle.Frame] = Counter()
    for theirs in pages_on_store([each.pid for each in members], store).values():
        users.update(theirs)
    assert max(users.values()) <= 4 and users.total() >= 16
    assert store.stats().stable_node_chains == 1 and store.stats().stable_node_dups == len(users)


def test_zero_pages_are_used_by_all(member: Make, store: Store) -> None:
    """One engine switches use_zero_pages: the others' empty pages become the kernel's zero page."""
    members = [member() for _ in range(2)]
    members[0].ask("set", "use_zero_pages", 1)
    assert members[1].ask("knob", "use_zero_pages") == 1
    members[1].ask("hold", [0] * PAGES)
    _settle(members)
    assert members[1].ask("stats").ksm_zero_pages == PAGES
    assert store.stats().pages_shared == 0
    members[1].ask("set", "use_zero_pages", 0)
    members[0].ask("hold", [0] * PAGES)
    _settle(members, passes=4)
    assert members[0].ask("stats").ksm_zero_pages == 0
    assert members[0].ask("merging") == PAGES


def test_a_child_that_looked_at_nothing_is_named(store: Store) -> None:
    """It may map any frame there was: it is in the way until it ends, although it has no count."""
    with ksmpy.Engine(store=store) as engine:
        mine = Worker(engine)
        mine.hold_distinct(PAGES, 1), mine.hold_distinct(PAGES, 1)
        mine.scan()
        child = Child(mine.compare).ready()
        assert _named(mine.refusal("max_page_sharing", 7)) == {os.getpid(), child.pid}
        mine.unmerge()
        assert _named(mine.refusal("max_page_sharing", 7)) == {child.pid}
        child.finish()
        mine.set("max_page_sharing", 7)
