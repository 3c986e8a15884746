"""One engine's hard life, round by round."""

from __future__ import annotations

import errno
import faulthandler
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ksmpy
from ksmpy import native
from ksmpy.engine.numa import SystemTopology
from tests.support import memory as pages
from tests.support import oracle, swap
from tests.support.memory import Bytes
from tests.support.nodes import Wandering
from tests.support.torture import Torture

from .children import Nursery
from .memory import Herd, constant_words, wrong_pages

#: Children alive at a time; every second round waits for all of them.
CHILDREN = 3
#: Rounds before the threads' buffers die and new ones come.
GENERATION = 12
#: Values of max_page_sharing.
LIMITS = (2, 3, 16, 256)
#: A round that takes so long hangs, in seconds.
PATIENCE = 600.0


@dataclass(frozen=True)
class Plan:
    """What to do, and for how long."""

    seconds: float
    freeze: str
    tracking: str
    seed: int
    interval: float
    nodes: int
    swap_path: str


class Soak:
    """An engine, its buffers, and the main thread's part in what happens to them."""

    def __init__(self, plan: Plan) -> None:
        self._rng = random.Random(plan.seed)
        self._can_swap = bool(plan.swap_path)
        several = len(SystemTopology().nodes) > 1
        self.topology = None if several else Wandering(plan.nodes)
        self.engine: Any = ksmpy.Engine(
            topology=self.topology, freeze=plan.freeze, tracking=plan.tracking
        )
        self._efault_ok = self.engine.freeze == "signal" or not native.probe()["uffd_kernel_mode"]
        self.count: Counter[str] = Counter()
        self.children = Nursery(self._rng, CHILDREN)
        self.herd = Herd(self.engine, self._rng)
        self._hammered: tuple[tuple[int, int], ...] = ()

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Whatever may be swapped or moved now."""
        return self.herd.spans + self._hammered

    def rounds(self, number: int, each: Callable[[], bool]) -> None:
        """So many, with the same threads from the first to the last; `each` says whether to go on.

        The threads' buffers die in the end, and none of their increments is lost.
        """
        seed = self._rng.randrange(1 << 32)
        torture = Torture(
            count=128, writers=2, epoch_us=500, rest_us=5000, efault_ok=self._efault_ok, seed=seed
        )
        buffers = torture.buffers
        constant = constant_words(buffers[0])

        def verify() -> None:
            self.herd.verify()
            for buffer in buffers:
                wrong = wrong_pages(buffer, constant)
                assert not wrong, f"constant words have changed: {wrong}"

        for buffer in buffers:
            self.engine.register(buffer)
        self._hammered = tuple(map(pages.span, buffers))
        with torture:
            while number and each():
                self._round(buffers, verify)
                torture.assert_alive()
                number -= 1
        self._hammered = ()
        self.count["increments"] += torture.totals.increments

    def _round(self, hammered: list[Bytes], verify: Callable[[], None]) -> None:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        self.count["rounds"] += 1
        alone = self.count["rounds"] % 2 == 0
        self._merge()
        self.herd.write()
        if not alone:
            arrays = [quiet.array for quiet in self.herd.alive] + hammered
            self.children.fork(arrays, verify, self.engine.freeze)
            del arrays
        self._merge()
        self._refused()
        self._some_change()
        verify()
        self.engine._core.check()
        self.children.look(wait=alone)
        self._unmerge()
        self._switch()
        verify()

    def _merge(self) -> None:
        engine = self.engine
        if self._rng.random() < 0.7:
            engine.knobs.run = 0
            self.count["merges"] += engine.scan(2, eager=True).merged
        else:
            engine.knobs.sleep_millisecs = 0
            engine.knobs.run = 1
            time.sleep(self._rng.uniform(0.0, 0.2))
            engine.knobs.run = 0

    def _some_change(self) -> None:
        """What else may come in between."""
        knobs = self.engine.knobs
        chosen = self._rng.randrange(6)
        if chosen == 0:
            self.herd.renew()
        elif chosen == 1:
            self.herd.take_apart_one()
        elif chosen == 2:
            knobs.use_zero_pages = 1 - knobs.use_zero_pages
        elif chosen == 3:
            knobs.smart_scan = 1 - knobs.smart_scan
        elif chosen == 4 and self._can_swap:
            swap.frames_to_swap(self.herd.spans)

    def _try(self, name: str, value: int) -> bool:
        """Write a knob that old frames forbid to change: EBUSY is the worst answer."""
        before = getattr(self.engine.knobs, name)
        try:
            setattr(self.engine.knobs, name, value)
        except OSError as error:
            assert error.errno == errno.EBUSY, f"{name}: {error!r} instead of EBUSY"
            assert getattr(self.engine.knobs, name) == before, f"{name}: refused, and changed"
            self.count["refused"] += 1
            return False
        assert getattr(self.engine.knobs, name) == value
        return True

    def _try_both(self) -> tuple[bool, bool]:
        across = 1 - self.engine.knobs.merge_across_nodes
        most = self.engine.knobs.max_page_sharing
        other = self._rng.choice([limit for limit in LIMITS if limit != most])
        return self._try("merge_across_nodes", across), self._try("max_page_sharing", other)

    def _refused(self) -> None:
        """While pages share frames, neither can be changed."""
        shared = self.engine.stats().pages_shared
        self.count["frames"] = shared
        if shared:
            assert self._try_both() == (False, False), f"changed over {shared} frames"

    def _unmerge(self) -> None:
        if self._rng.random() < 0.5:
            self.engine.unmerge()
        else:
            self.engine.knobs.run = 2
        left = [span for span in self.spans() if oracle.maps_store(*span)]
        assert not left, f"unmerged, and still merged: {left}"
        stats = self.engine.stats()
        assert stats.pages_shared == stats.pages_sharing == 0, "unmerged, and counted as merged"

    def _switch(self) -> None:
        """Nothing is shared: only frames of children may forbid it, and then they exist."""
        lingering = self.engine.stats().stale_frames
        across, most = self._try_both()
        assert lingering or (across and most), "refused, and no frame is left"
        self.count["switches"] += across
        if across:
            assert oracle.store_bytes() == 0, f"changed over {oracle.store_bytes()} bytes of frames"
        self.engine._core.check()

    def end(self) -> None:
        """Unmerged, no frame is left; closed, nothing at all."""
        self.children.look(wait=True)
        self._unmerge()
        assert self._try_both() == (True, True), "refused in the end"
        stats = self.engine.stats()
        left = (stats.stale_frames, stats.frame_bytes, oracle.store_bytes())
        assert not any(left), f"frames are left: {left}"
        self.herd.verify()
        self.engine.close()
        self.herd.verify()
