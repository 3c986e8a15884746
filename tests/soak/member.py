"""One process of the fleet: it may be killed anywhere in here.

``python -m tests.soak.member`` is what a member becomes by exec.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ksmpy
from ksmpy import Store
from ksmpy.engine.numa import SystemTopology
from tests.support import oracle
from tests.support.nodes import Wandering

from .cargo import Cargo
from .diary import Diary

#: Buffers of one process at a time.
MOST_CARGO = 4
#: A member's steps, before it ends by itself; its children take half as many, and so on.
STEPS = (3, 60)
#: Forks of forks of forks.
DEPTH = 3
#: Children of one process at a time.
MOST_CHILDREN = 2
#: Rules of the whole store, and values to try.
RULES = {
    "merge_across_nodes": (0, 1),
    "max_page_sharing": (2, 3, 16, 256),
    "use_zero_pages": (0, 1),
}


@dataclass(frozen=True)
class Home:
    """What all processes of a fleet have in common."""

    store: Store
    diary: Diary
    modes: tuple[str, ...]
    nodes: int
    watcher: int

    def topology(self) -> Wandering | None:
        """One for each engine: where there is one node, pages wander in name."""
        return None if len(SystemTopology().nodes) > 1 else Wandering(self.nodes)

    @property
    def enough(self) -> Path:
        """Once this file is there, everybody ends."""
        return Path(self.diary.folder, "enough")

    def goes_on(self) -> bool:
        """Said before each step; the process ends here if the watcher is gone."""
        try:
            os.kill(self.watcher, 0)
        except ProcessLookupError:
            os._exit(0)
        self.diary.alive()
        return not self.enough.exists()

    def arguments(self, seed: str) -> list[str]:
        """For a member made by exec, which inherits an anonymous store's descriptor."""
        told: dict[str, Any] = {"seed": seed, "folder": self.diary.folder, "modes": self.modes}
        told |= {"nodes": self.nodes, "watcher": self.watcher, "name": self.store.name}
        told |= {"directory": self.store.directory, "fd": self.store.fileno()}
        if self.store.name is None:
            os.set_inheritable(self.store.fileno(), True)
        return [sys.executable, "-m", "tests.soak.member", json.dumps(told)]

    @classmethod
    def again(cls, told: dict[str, Any]) -> Home:
        """In that member."""
        if told["name"] is None:
            store = Store.from_fd(told["fd"])
            os.close(told["fd"])
        else:
            store = Store.open(told["name"], create=False, directory=told["directory"])
        diary = Diary(told["folder"])
        return cls(store, diary, tuple(told["modes"]), told["nodes"], told["watcher"])


class Member:
    """One life on the store: an engine, its buffers, and what happens to them at random."""

    def __init__(self, home: Home, seed: str) -> None:
        self._home = home
        self._begin(seed, 0)
        self._cargo: list[Cargo] = []
        self._engine = self._new_engine()

    def _begin(self, seed: str, depth: int) -> None:
        self._seed, self._depth = seed, depth
        self._rng = random.Random(seed)
        self._children: list[int] = []
        self._born = 0

    def _new_engine(self) -> Any:
        self._topology = self._home.topology()
        freeze, tracking = self._rng.choice(self._home.modes).split("+")
        return ksmpy.Engine(
            store=self._home.store, topology=self._topology, freeze=freeze, tracking=tracking
        )

    # ---- living -----------------------------------------------------------------------------

    def live(self) -> None:
        """From the first buffer to the end, whichever that is."""
        steps: dict[Callable[[], None], float] = {
            self._take: 4,
            self._write: 4,
            self._scan: 6,
            self._ksmd: 3,
            self._fork: 3,
            self._drop: 1,
            self._unmerge: 0.7,
            self._switch: 1,
            self._renew_engine: 0.3,
            self._check: 0.5,
        }
        self._take()
        for _ in range(self._rng.randint(STEPS[0], STEPS[1] >> self._depth)):
            if not self._home.goes_on():
                break
            if self._topology is not None and self._rng.random() < 0.2:
                self._topology.turn += 1
            self._rng.choices(list(steps), list(steps.values()))[0]()
            self._verify()
            self._wait(os.WNOHANG)
        self._end()

    def _end(self) -> None:
        """Without a word, or by close(); the children are waited for, or left alone."""
        self._home.diary.alive()
        if self._rng.random() < 0.5:
            self._wait(0)
        if self._rng.random() < 0.5:
            self._engine.close()
            self._expect_unmerged()
            self._home.diary.note("closed")
        self._verify()
        self._home.diary.note("ended")

    def _verify(self) -> None:
        for cargo in self._cargo:
            cargo.verify()

    def _expect_unmerged(self) -> None:
        left = [c.span for c in self._cargo if oracle.maps_store(*c.span)]
        assert not left, f"unmerged, and still merged: {left}"

    # ---- steps ------------------------------------------------------------------------------

    def _take(self) -> None:
        if len(self._cargo) < MOST_CARGO:
            cargo = Cargo(self._rng)
            cargo.region = self._engine.register(cargo.array)
            self._cargo.append(cargo)

    def _write(self) -> None:
        for cargo in self._cargo:
            cargo.write(self._rng)

    def _scan(self) -> None:
        done = self._engine.scan(self._rng.randint(1, 3), eager=self._rng.random() < 0.6)
        self._home.diary.note(*["merged"] * bool(done.merged))

    def _ksmd(self) -> None:
        """For a moment, or until something else stops it; writes come in between."""
        knobs = self._engine.knobs
        knobs.sleep_millisecs = self._rng.choice([0, 1, 20])
        knobs.run = 1
        end = time.monotonic() + self._rng.uniform(0.0, 0.15)
        while time.monotonic() < end:
            self._write()
            self._verify()
        if self._rng.random() < 0.7:
            knobs.run = 0
        self._home.diary.note("ksmd")

    def _drop(self) -> None:
        """A buffer dies without a word, or is released first."""
        if not self._cargo:
            return
        cargo = self._cargo.pop(self._rng.randrange(len(self._cargo)))
        if self._rng.random() < 0.5:
            cargo.region.release()
            assert not oracle.maps_store(*cargo.span), "released, and still merged"
        cargo.verify()

    def _unmerge(self) -> None:
        if self._cargo and self._rng.random() < 0.3:
            self._rng.choice(self._cargo).region.unmerge()
            return
        self._engine.knobs.run = 2
        self._expect_unmerged()
        self._home.diary.note("unmerged")

    def _switch(self) -> None:
        """A rule of the whole store, which frames may forbid to change: EBUSY is the worst."""
        knobs = self._engine.knobs
        name = self._rng.choice(list(RULES))
        try:
            setattr(knobs, name, self._rng.choice(RULES[name]))
        except OSError as error:
            assert error.errno == errno.EBUSY and name != "use_zero_pages", f"{name}: {error!r}"
            self._home.diary.note("refused")

    def _renew_engine(self) -> None:
        self._engine.close()
        self._expect_unmerged()
        self._engine = self._new_engine()
        for cargo in self._cargo:
            cargo.region = self._engine.register(cargo.array)

    def _check(self) -> None:
        self._engine._core.check()

    # ---- children ---------------------------------------------------------------------------

    def _fork(self) -> None:
        if self._depth >= DEPTH or len(self._children) >= MOST_CHILDREN:
            return
        lives = [self._bystander] * 3 + [self._heir] * 3 + [self._stranger, self._successor]
        life = self._rng.choice(lives)
        self._born += 1
        seed = f"{self._seed}.{self._born}"
        if self._rng.random() < 0.3:
            thread = threading.Thread(target=self._bear, args=(life, seed))
            thread.start()
            thread.join()
        else:
            self._bear(life, seed)
        self._home.diary.note("forked")
        if self._rng.random() < 0.2:
            self._wait(0)

    def _bear(self, life: Callable[[], None], seed: str) -> None:
        def begin() -> None:
            self._begin(seed, self._depth + 1)
            self._verify()
            life()

        self._children.append(self._home.diary.born(begin))

    def _wait(self, options: int) -> None:
        """For children who have ended, or with 0 for all."""
        for pid in list(self._children):
            self._home.diary.alive()
            done, status = os.waitpid(pid, options)
            if done:
                self._home.diary.reaped(pid, status)
                self._children.remove(pid)

    def _bystander(self) -> None:
        """Never touches ksmpy: writes for itself, and may have a child that is one too, or not."""
        if self._rng.random() < 0.6:
            self._write()
        if self._rng.random() < 0.3:
            self._fork()
        end = time.monotonic() + self._rng.choice([0.0, 0.05, 0.3, 1.0])
        while time.monotonic() < end and self._home.goes_on():
            self._verify()
            time.sleep(0.02)
        self._verify()
        self._home.diary.note("bystander")

    def _heir(self) -> None:
        """Goes on with the engine that it inherited, which the first use makes its own."""
        first_use: list[Callable[[], Any]] = [
            self._engine.stats,
            self._engine.regions,
            self._scan,
            self._ksmd,
            self._unmerge,
            self._take,
            self._check,
        ]
        self._rng.choice(first_use)()
        self._verify()
        self._home.diary.note("heir")
        self.live()

    def _stranger(self) -> None:
        """Takes all buffers over to an engine of its own, and lets the inherited one be."""
        inherited, self._engine = self._engine, self._new_engine()
        for cargo in self._cargo:
            cargo.region = self._engine.register(cargo.array)
        self._verify()
        if self._rng.random() < 0.5:
            inherited.close()
        self._home.diary.note("stranger")
        self.live()

    def _successor(self) -> None:
        """Execs: a new member, or a program that knows nothing of all this."""
        self._home.diary.note("exec")
        if self._rng.random() < 0.5:
            os.execv("/bin/true", ["true"])
        command = self._home.arguments(self._seed)
        os.execv(command[0], command)


def main(told: str) -> None:
    """A member by exec: it ends as programs do, with Python's own clearing up."""
    home = Home.again(json.loads(told))
    try:
        Member(home, json.loads(told)["seed"]).live()
        home.diary.note("successor")
    except BaseException as error:
        home.diary.fail(f"after exec: {error!r}")
        raise


if __name__ == "__main__":
    main(sys.argv[1])
