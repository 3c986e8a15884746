"""What is done to an engine while it unmerges, with the unmerging thread stopped at a chosen call.

``python -m support.stale NAME FREEZE TRACKING [PATH]`` runs one of the functions below at every
call there is of the function that it stops at. It needs ``pause.c`` preloaded.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, TypeVar

import ksmpy

from . import memory, oracle
from .memory import Bytes
from .patience import patience
from .pause import Pauser, Worker
from .procs import Child
from .swap import (
    evict,
    frames_to_swap,
    make_absent,
    swapped_copies,
    swapped_frames,
    swapping,
)

PAGES = 150  # more than are unmerged at once


class Merged:
    """Three equal arrays on common frames, some pages of them written since."""

    def __init__(self, freeze: str, tracking: str, store: ksmpy.Store | None = None) -> None:
        self.engine = ksmpy.Engine(store=store, freeze=freeze, tracking=tracking)
        one = memory.distinct(PAGES, seed=31)
        self.arrays: list[Bytes] = [one, memory.twin(one), memory.twin(one)]
        self.regions = [self.engine.register(array) for array in self.arrays]
        self.engine.scan(2, eager=True)
        assert oracle.true_saved_pages(self.spans()) == 2 * PAGES
        for index, array in enumerate(self.arrays):
            array[index * oracle.PAGE :: 16 * oracle.PAGE] ^= 1
        self.wanted = [array.tobytes() for array in self.arrays]

    def spans(self) -> list[tuple[int, int]]:
        """The pages of all arrays."""
        return [memory.span(array) for array in self.arrays]

    def add(self, array: Bytes) -> None:
        """Watch one more array."""
        self.arrays.append(array)
        self.wanted.append(array.tobytes())

    def compare(self) -> None:
        """No byte changed."""
        for index, (array, wanted) in enumerate(zip(self.arrays, self.wanted, strict=True)):
            assert array.tobytes() == wanted, f"array {index}"

    def unmerge(self) -> None:
        """What is stopped in the middle."""
        self.engine.knobs.run = 2

    def forget(self) -> int:
        """No page table knows the pages that read frames; says how many there are."""
        return make_absent(self.spans())

    def maps_store(self) -> list[int]:
        """Which arrays have an overlay, or a part of one."""
        return [i for i, span in enumerate(self.spans()) if oracle.maps_store(*span)]

    def finish(self) -> None:
        """Nothing is left of the old trees, which may be switched."""
        assert not self.maps_store()
        self.engine.knobs.merge_across_nodes = 0
        stats = self.engine.stats()
        assert (stats.pages_shared, stats.pages_sharing, stats.stale_frames) == (0, 0, 0)
        assert stats.frame_bytes == 0
        self.engine._core.check()
        self.engine.knobs.max_page_sharing = 3
        self.compare()
        self.engine.close()
        self.compare()


def registration(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """Regions come, one at a place behind the unmerging thread, and a scan tries to merge them."""
    merged = make()
    engine = merged.engine
    merged.regions[0].release()
    array = merged.arrays.pop(0)
    del merged.wanted[0], array
    late, later = memory.twin(merged.arrays[1]), memory.twin(merged.arrays[1])
    address, length = memory.span(late)
    with ExitStack() as stack:
        with pauser.at("pthread_mutex_lock", nth, merged.unmerge):
            before = oracle.store_mappings()
            native = Worker(lambda: engine._core._native.register(address, length, 0))
            public = Worker(lambda: engine.register(later))
            scan = Worker(lambda: engine.scan(eager=True))
            waits = scan.waits(0.1)
            if nth > 1:  # the first call is the one that keeps scans out
                assert waits, "scanned in the middle of an unmerge"
                assert oracle.store_mappings() == before, "merged in the middle of an unmerge"
            stack.callback(scan.result)
            stack.callback(public.result)
        number = native.result()
    merged.add(late)
    merged.add(later)
    merged.unmerge()
    merged.compare()
    assert not merged.maps_store()
    engine._core._native.release(number, discard=False)
    merged.finish()


def fork(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """A child is born; it has the bytes, may release, merge and unmerge what it got."""
    merged = make()

    def child() -> None:
        merged.compare()
        merged.regions[2].release()
        with ksmpy.Engine(freeze=merged.engine.freeze) as own:
            for array in merged.arrays:
                own.register(array)
            own.scan(2, eager=True)
            merged.compare()
            own.knobs.run = 2
            own._core.check()
            assert not merged.maps_store()
        merged.arrays[0][:] = 0
        assert merged.arrays[1].tobytes() == merged.wanted[1]

    # A fork waits while a piece is being unmerged, and Python forks with the GIL held.
    with pauser.at("pthread_mutex_lock", nth, merged.unmerge, limit=0.2):
        young = Child(child)
    young.ready()
    merged.compare()
    assert not merged.maps_store()
    _busy(merged.engine)
    young.finish()
    merged.finish()


def _busy(engine: Any) -> None:
    """Stale frames, if the child got any, keep the rule from being changed; nothing else does."""
    stale = engine.stats().stale_frames
    try:
        engine.knobs.merge_across_nodes = 0
    except BlockingIOError as error:
        raise AssertionError("not EBUSY") from error
    except OSError as error:
        assert error.errno == 16 and stale, error
    else:
        assert not stale
        engine.knobs.merge_across_nodes = 1


def frozen(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """Pages are frozen by a scan: an unmerge waits for them, and leaves none of them merged."""
    merged = make()
    merged.unmerge()

    def scan() -> None:
        merged.engine.scan(2, eager=True)

    with pauser.at("mmap", nth, scan):
        unmerge = Worker(merged.unmerge)
        assert unmerge.waits(0.1), "did not wait for frozen pages"
    unmerge.result()
    merged.unmerge()
    merged.finish()


def swap(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """Frames, copies and plain pages are in swap, and come back during and after the unmerge."""
    merged = make()
    merged.add(memory.distinct(PAGES, seed=32))
    merged.engine.register(merged.arrays[3])
    _to_swap(merged)
    with pauser.at("mremap", nth, merged.unmerge):
        merged.compare()
    assert not merged.maps_store()
    for span in merged.spans():
        evict(*span)
    merged.finish()


def swapoff(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """All of the swap is taken away in the middle of the unmerge."""
    merged = make()
    path = sys.argv[4]
    with swapping(path) as area:
        _to_swap(merged)
        with pauser.at("mremap", nth, merged.unmerge):
            area.off()
        assert not merged.maps_store()
    merged.finish()


def _to_swap(merged: Merged) -> None:
    merged.forget()
    frames_to_swap(merged.spans())
    frames = swapped_frames()
    assert frames > PAGES // 2, f"only {frames} frames were swapped out"
    for span in merged.spans():
        evict(*span)
    assert swapped_copies(merged.spans()), "no copy was swapped out"


def migration(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """The kernel moves pages and frames about (compaction) in the middle of it."""
    merged = make()
    with pauser.at("mremap", nth, merged.unmerge):
        with open("/proc/sys/vm/compact_memory", "w") as file:
            file.write("1")
        merged.compare()
    merged.finish()


def absent(pauser: Pauser, make: Callable[[], Merged], nth: int) -> None:
    """Pages are not present, as while they migrate: none is passed over, or taken for unmerged."""
    merged = make()
    assert merged.forget() > 2 * PAGES
    with pauser.at("mremap", nth, merged.unmerge):
        merged.forget()
    assert not merged.maps_store()
    merged.finish()


WORKS = (registration, fork, frozen, swap, swapoff, migration, absent)
SCENARIOS = {work.__name__: work for work in WORKS}
_Kind = TypeVar("_Kind", bound=Merged)


def at_every_call(
    work: Callable[[Pauser, Callable[[], _Kind], int], None],
    make: Callable[[], _Kind],
    *,
    sparse: bool = False,
) -> int:
    """Stop at the first call, the second and so on, until there is none; says how many.

    `sparse`: at ever fewer of them. AssertionError if there are so few that it proves nothing.
    """
    ksmpy.Engine().close()  # loads the extension
    pauser = Pauser()
    done, nth = 0, 1
    while True:
        try:
            work(pauser, make, nth)
        except LookupError:
            break
        done += 1
        nth += 1 + (nth if sparse else 0)
    assert done >= 3, f"{done} calls only: this proves nothing"
    return done


def main(argv: list[str]) -> None:
    """Run the scenario that the arguments name."""
    faulthandler.dump_traceback_later(patience(100), exit=True)
    name, freeze, tracking = argv[:3]
    with swapping(argv[3]) if name == "swap" else nullcontext():
        done = at_every_call(
            SCENARIOS[name], lambda: Merged(freeze, tracking), sparse=name == "frozen"
        )
    print(done, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
