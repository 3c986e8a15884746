"""What is done to a shared store while one of its processes unmerges, stopped at a chosen call.

``python -m support.neighbours NAME FREEZE TRACKING [PATH]``, with ``pause.c`` preloaded. Some of
the scenarios are those of :mod:`support.stale`, with a neighbour that lives on the same frames.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

import ksmpy

from . import memory, stale
from .fleet import Member, Worker, count_outside
from .patience import patience
from .pause import Pauser
from .procs import Child
from .stale import PAGES, Merged
from .swap import make_absent, swapping

KNOB = "merge_across_nodes"


class Neighbour(Worker):
    """A process that merges the bytes that :class:`Merged` begins with."""

    def __init__(self, store: ksmpy.Store, freeze: str, tracking: str) -> None:
        super().__init__(ksmpy.Engine(store=store, freeze=freeze, tracking=tracking))
        self.hold_distinct(PAGES, 31)

    def forget(self) -> int:
        """No page table here knows the pages that read frames."""
        return make_absent(map(memory.span, self.arrays))

    def close(self) -> None:
        """Leave the store, in order."""
        self.engine.close()
        self.compare()


class Newcomer:
    """A process that comes to the store when it is told to, and goes again."""

    def __init__(self, make: Callable[[], Neighbour]) -> None:
        self._make = make

    def come(self) -> None:
        """Attach, register, and merge."""
        self._neighbour = self._make()
        self._neighbour.scan()

    def merging(self) -> int:
        """How many pages it has on frames."""
        return self._neighbour.merging()

    def go(self) -> None:
        """Close, with the bytes in place."""
        self._neighbour.close()


class Shared(Merged):
    """Three equal arrays, on frames that a neighbour is on too."""

    def __init__(
        self, freeze: str, tracking: str, store: ksmpy.Store, neighbour: Member, newcomer: Member
    ) -> None:
        self.store, self.neighbour, self.newcomer = store, neighbour, newcomer
        self.theirs = PAGES
        neighbour.ask("set", KNOB, 1)
        neighbour.ask("set", "max_page_sharing", 256)
        super().__init__(freeze, tracking, store)
        neighbour.ask("scan")
        assert neighbour.ask("merging") == PAGES

    def compare(self) -> None:
        """No byte changed, neither here nor there."""
        super().compare()
        self.neighbour.ask("compare")

    def forget(self) -> int:
        """Nor does a page table of the neighbour's know them."""
        return int(self.neighbour.ask("forget")) + super().forget()

    def finish(self) -> None:
        """The neighbour alone is in the way of a switch; after its unmerge nothing is."""
        assert not self.maps_store()
        self.compare()
        assert self.neighbour.ask("merging") == self.theirs
        assert count_outside(self.store, [self.neighbour.pid, os.getpid()]) == self.theirs
        assert self.in_the_way() == {self.neighbour.pid}
        self.neighbour.ask("unmerge")
        super().finish()
        assert self.neighbour.ask("knob", KNOB) == 0

    def in_the_way(self) -> set[int]:
        """Who keeps merge_across_nodes from being switched, as the neighbour is told."""
        number, text = self.neighbour.ask("refusal", KNOB, 0)
        assert number == errno.EBUSY, (number, text)
        return {int(pid) for pid in text.rpartition("processes ")[2].split(", ")}


Make = Callable[[], Shared]


def lingering(pauser: Pauser, make: Make, nth: int) -> None:
    """Cause 1: a neighbour's pages stay, and it goes on merging; nobody can switch the rule."""
    shared = make()
    written = slice(nth, PAGES, 16)
    with pauser.at("mremap", nth, shared.unmerge):
        assert shared.neighbour.pid in shared.in_the_way()
        shared.neighbour.ask("write", 0, written)
        shared.neighbour.ask("scan")
        assert shared.neighbour.pid in shared.in_the_way()
    shared.theirs -= len(range(*written.indices(PAGES)))
    shared.finish()
    shared.neighbour.ask("write", 0, written)


def arrival(pauser: Pauser, make: Make, nth: int) -> None:
    """Cause 2: a process attaches, registers and joins frames; it is one more in the way then."""
    shared = make()
    with pauser.at("pthread_mutex_lock", nth, shared.unmerge):
        shared.newcomer.ask("come")
    assert not shared.maps_store()
    assert shared.newcomer.ask("merging") == PAGES
    assert shared.in_the_way() == {shared.neighbour.pid, shared.newcomer.pid}
    shared.newcomer.ask("go")
    shared.finish()


def fork(pauser: Pauser, make: Make, nth: int) -> None:
    """Cause 2: a child comes with regions, and goes on with the engine or never looks at it."""
    shared = make()
    touches = nth % 2 == 1

    def child() -> None:
        Merged.compare(shared)
        if touches:
            shared.engine.scan(2, eager=True)
            shared.engine._core.check()
            Merged.compare(shared)
            shared.unmerge()
            shared.engine._core.check()
            assert not shared.maps_store()
            Merged.compare(shared)

    # A fork waits while a piece is being unmerged, and Python forks with the GIL held.
    with pauser.at("pthread_mutex_lock", nth, shared.unmerge, limit=0.2):
        young = Child(child)
    young.ready()
    shared.compare()
    assert not shared.maps_store()
    # Born after the last page was unmerged, it has no frame.
    listed = {int(process) for process in shared.store.processes()}
    assert shared.in_the_way() == {shared.neighbour.pid, young.pid} & listed
    young.finish()
    shared.engine.scan()
    shared.unmerge()
    shared.finish()


SCENARIOS = {
    **{work.__name__: work for work in (lingering, arrival, fork)},
    **{name: stale.SCENARIOS[name] for name in ("swap", "swapoff", "migration", "absent")},
}


def main(argv: list[str]) -> None:
    """Run the scenario that the arguments name, at every call."""
    faulthandler.dump_traceback_later(patience(100), exit=True)
    name, freeze, tracking = argv[:3]
    with (
        ksmpy.Store.anonymous() as store,
        Member(lambda: Neighbour(store, freeze, tracking)) as neighbour,
        Member(lambda: Newcomer(lambda: Neighbour(store, freeze, tracking))) as newcomer,
        swapping(argv[3]) if name == "swap" else nullcontext(),
    ):
        done = stale.at_every_call(
            SCENARIOS[name], lambda: Shared(freeze, tracking, store, neighbour, newcomer)
        )
    print(done, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
