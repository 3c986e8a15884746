"""Processes on one store that come, fork, and are killed, and the one that watches them.

``python -m tests.soak.fleet --seconds 1800``; docs/testing.md says what they do and what must hold.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import ksmpy
from ksmpy import Store, StoreError
from ksmpy.errors import Unsupported
from ksmpy.native import FREEZES, TRACKINGS
from ksmpy.store.stats import StoreStats
from tests.support.oracle import PAGE
from tests.support.patience import until

from .cargo import Cargo
from .diary import Diary
from .house import House, expect_clean
from .member import Home, Member
from .outside import Outside, at_rest, family, held, lock_holder, send

#: Without one of each, nothing was proven.
NEEDED = ("born", "killed", "forked", "merged", "bystander", "heir", "seen", "settled")
#: Likewise in a run of at least so many seconds.
NEEDED_LATER = ("refused", "closed", "unmerged", "stranger", "exec", "deaths", "rebuilds")
LATER = 300
#: Looks at the store's lock for somebody to kill.
GLANCES = 2000
#: How long members may take to end once they were told, in seconds.
PATIENCE = 120.0
PR_SET_CHILD_SUBREAPER = 36


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.fleet",
        description="Processes that merge on one store, fork, end and are killed at random. Exit"
        " code 1 and the state on the first violation.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument(
        "--interval", type=float, default=60, help="seconds between lines (default: %(default)s)"
    )
    parser.add_argument(
        "--look", type=float, default=2, help="seconds between looks (default: %(default)s)"
    )
    parser.add_argument(
        "--generation", type=float, default=60, help="seconds of one store (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, default=6, help="without their children (default: %(default)s)"
    )
    parser.add_argument(
        "--nodes", type=int, default=2, help="on a machine with one node (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of what is chosen at random")
    parser.add_argument(
        "--folder", default="/dev/shm", help="on tmpfs, for named stores (default: %(default)s)"
    )
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Plan:
    """What to do, and for how long; seconds."""

    seconds: float
    interval: float
    look: float
    generation: float
    processes: int
    nodes: int
    seed: int
    folder: str


def _modes() -> tuple[str, ...]:
    """The ways of freezing and tracking that this machine has."""
    found = []
    for freeze in FREEZES[1:]:
        for tracking in TRACKINGS[1:]:
            try:
                ksmpy.Engine(freeze=freeze, tracking=tracking).close()
            except Unsupported:
                continue
            found.append(f"{freeze}+{tracking}")
    return tuple(found)


class Fleet:
    """The processes, seen from the one that bears, kills, looks and waits."""

    def __init__(self, plan: Plan, folder: str) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._folder = folder
        self._diary = Diary(folder)
        self._modes = _modes()
        self._births = self._stores = 0
        self._first: set[int] = set()
        self._began = time.monotonic()
        self._next_line = self._began + plan.interval
        self._home = self._new_home()
        self.count = self._diary.count
        self.last: Outside | None = None
        self.stats: StoreStats | None = None

    def _new_home(self) -> Home:
        self._stores += 1
        if self._rng.random() < 0.5:
            store = Store.anonymous()
        else:
            store = Store.open(f"soak-{self._stores}", directory=Path(self._folder, "stores"))
        return Home(store, self._diary, self._modes, self._plan.nodes, os.getpid())

    @property
    def store(self) -> Store:
        """The one of this generation."""
        return self._home.store

    # ---- one generation ---------------------------------------------------------------------

    def live(self) -> None:
        """One generation after the other, until the time is over."""
        end = self._began + self._plan.seconds
        while time.monotonic() < end:
            self._generation(min(end, time.monotonic() + self._plan.generation))
            self._settle()
        self._home.store.close()
        self.say()
        self._proven()

    def _generation(self, end: float) -> None:
        next_look = time.monotonic() + self._plan.look
        while (now := time.monotonic()) < end:
            self._bear()
            time.sleep(self._rng.uniform(0.0, 0.1))
            if self._rng.random() < 0.4:
                self._kill_one()
            self._reap()
            self._diary.look()
            if now >= next_look:
                self._look()
                next_look = time.monotonic() + self._plan.look
            if now >= self._next_line:
                self.say()
                self._next_line = now + self._plan.interval

    def _bear(self) -> None:
        while len(self._first) < self._plan.processes:
            self._births += 1
            self._first.add(self._diary.born(self._life))
            self.count["born"] += 1

    def _life(self) -> None:
        Member(self._home, f"{self._plan.seed}/{self._births}").live()

    def _kill(self, most: int = 1) -> None:
        """Some of all who live, whatever they are doing."""
        alive = sorted(family())
        for pid in self._rng.sample(alive, min(most, len(alive))):
            send(pid, signal.SIGKILL)
            self.count["killed"] += 1

    def _kill_one(self) -> None:
        """Whoever has the store's lock, if anyone takes it soon: perhaps he dies with it."""
        alive = family()
        for _ in range(GLANCES if self._rng.random() < 0.5 else 0):
            holder = lock_holder(self.store, alive)
            if holder is not None:
                send(holder, signal.SIGKILL)
                self.count["killed"] += 1
                return
        self._kill()

    def _reap(self) -> bool:
        """Reap whoever has ended: members, and orphans of members. True: none is left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            self._diary.reaped(pid, status)
            self._first.discard(pid)

    # ---- looking ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Everybody stops, some die like that; what the others map must be there, and counted."""
        with at_rest() as pids:
            if pids is None:
                self.count["restless"] += 1
                return
            if self._rng.random() < 0.5:
                self._kill(self._rng.randint(1, 3))
            if self._leave_to_holder(pids):
                return
            try:
                self._compare(pids)
            except StoreError as error:
                if error.errno != errno.ETIMEDOUT:
                    raise
                self.count["timeouts"] += 1  # someone stopped who was attaching, or looking too

    def _leave_to_holder(self, pids: set[int]) -> bool:
        """Whether one who rests holds the store's lock, and nobody is to wait for it now."""
        holder = lock_holder(self.store, pids & family())
        if holder is None:
            return False
        self.count["locked"] += 1
        if self._rng.random() < 0.5:
            return True
        send(holder, signal.SIGKILL)
        self.count["killed"] += 1
        return self._rng.random() < 0.5  # the others find the lock, or the watcher does

    def _compare(self, pids: set[int]) -> None:
        self._take_down(self.store.stats())
        Outside(self.store, pids & family()).check_allocated()
        with ksmpy.Engine(store=self.store, topology=self._home.topology()) as newcomer:
            newcomer._core.check()
            newcomer.scan()
            after = Outside(self.store, pids & family())
            after.check_allocated()
            after.check_counted()
            newcomer._core.check()
        self.last = after
        self.count["seen"] += 1

    def _take_down(self, now: StoreStats) -> None:
        before, self.stats = self.stats, now
        for name in ("deaths", "rebuilds"):
            old = getattr(before, name, 0)
            new = getattr(now, name)
            self.count[name] += new - old if new >= old else new  # another store, or laid out anew

    def _settle(self) -> None:
        """All go but one, who merges on: nothing of theirs is left, nor in the end of its own."""
        with ksmpy.Engine(store=self.store, topology=self._home.topology()) as last:
            cargo = [Cargo(self._rng) for _ in range(2)]
            for one in cargo:
                last.register(one.array)
            last.scan(2, eager=True)
            self._end_all()
            last.scan(3, eager=True)
            last._core.check()
            there = self.store.processes()
            assert [int(p) for p in there] == [os.getpid()], f"the dead are there: {there}"
            last.unmerge()
            for one in cargo:
                one.verify()
            last.scan()  # its end sees who has died
            last.unmerge()
            self._expect_empty()
        assert self.store.processes() == [], "closed, and still there"
        self.count["settled"] += 1
        self._leave()

    def _end_all(self) -> None:
        """Killed all at once, or told to end."""
        self._home.enough.touch()
        if self._rng.random() < 0.5:
            self._kill(len(family()))
        # A process without a leader may have threads that still end.
        until(self._reap, lambda: f"they do not end: {family()}", limit=PATIENCE)
        self._home.enough.unlink()
        self._diary.look()

    def _expect_empty(self) -> None:
        begins = Outside(self.store, {os.getpid()}).views[os.getpid()].frames_begin
        assert begins is not None
        stats = self.store.stats()
        left = (stats.frame_bytes, stats.stale_frames, len(held(self.store, begins)) * PAGE)
        assert not any(left), f"frames are left: {left}"

    def _leave(self) -> None:
        """The next generation finds the store as it is, or gets another one."""
        if self._rng.random() < 0.5:
            return
        path = self.store.path
        assert self.store.unlink(unused_only=True), "nobody is there, and it is used"
        assert path is None or not os.path.exists(path)
        self.store.close()
        self._home = self._new_home()

    # ---- telling ----------------------------------------------------------------------------

    def say(self) -> None:
        """The line."""
        self._diary.look()
        counts = ", ".join(f"{name} {number}" for name, number in sorted(self.count.items()))
        frames = ""
        if self.last is not None and self.stats is not None:
            frames = f"| {len(self.last.views)} processes map {len(self.last.frames)} frames"
            frames += f" at {self.last.pages} pages, {self.stats.stale_frames} stale"
        print(f"{time.monotonic() - self._began:7.0f} s  {counts} {frames}", flush=True)

    def _proven(self) -> None:
        """AssertionError when a thing never happened."""
        names = NEEDED + (NEEDED_LATER if self._plan.seconds >= LATER else ())
        never = [name for name in names if not self.count[name]]
        assert not never, f"never happened, so this proves nothing: {never}"

    def print_state(self) -> None:
        """After a violation."""
        print(f"VIOLATION on {self.store!r}\n{dict(self.count)}", flush=True)
        for tell in (self.store.stats, self.store.processes):
            try:
                print(tell(), flush=True)
            except Exception as error:
                print(f"{error!r}", flush=True)

    def end(self) -> None:
        """None is left behind."""
        while not self._reap():
            for pid in family():
                send(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._diary.close()


def _live(plan: Plan) -> None:
    """From an empty house to an empty house."""
    with tempfile.TemporaryDirectory(prefix="ksmpy-soak-", dir=plan.folder) as folder:
        before = House.now()
        fleet = Fleet(plan, folder)
        try:
            fleet.live()
        except BaseException:
            fleet.print_state()
            raise
        finally:
            fleet.end()
        print(f"clean: {before} before, {expect_clean(before)} after", flush=True)


def main(arguments: list[str]) -> int:
    """0; 1 when anything was violated."""
    options = _parse(arguments)
    if options.seed is None:
        options.seed = time.time_ns() % 1_000_000
    plan = Plan(**vars(options))
    print(f"seed {plan.seed}", flush=True)
    # Orphans become this process's children, so that none gets out of sight.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        _live(plan)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
