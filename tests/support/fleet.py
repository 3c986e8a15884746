"""Several processes on one store: members that do what they are told, and what they share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import ksmpy

from . import memory, oracle
from .memory import Bytes
from .oracle import Frame
from .procs import PATIENCE


class Member:
    """A forked process that keeps an object and calls its methods when told to.

    `make` runs in the member at its first order, so that a member can be forked early and come to
    the store late. It ends by ``os._exit``, as a killed process does: it leaves nothing in order.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _obey(theirs, make)
            finally:
                os._exit(0)
        theirs.close()

    def ask(self, name: str, *args: Any) -> Any:
        """What a method returns there; AssertionError with the traceback if it failed."""
        self.tell(name, *args)
        return self.answer()

    def tell(self, name: str, *args: Any) -> None:
        """Call a method without waiting for it."""
        self._pipe.send((name, args))

    def answer(self) -> Any:
        """What the method that was called last returns."""
        if not self._pipe.poll(PATIENCE):
            self.kill()
            raise AssertionError("a process hangs")
        went_well, value = self._pipe.recv()
        assert went_well, f"process {self.pid}: {value}"
        return value

    def kill(self) -> None:
        """End it at once, and wait until it is gone. No-op when it is."""
        if not self._pipe.closed:
            self._pipe.close()
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _obey(pipe: Any, make: Callable[[], object]) -> None:
    obeying: object = None
    while True:
        name, args = pipe.recv()
        try:
            obeying = obeying or make()
            pipe.send((True, getattr(obeying, name)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()[-3000:]))


class Worker:
    """What most members keep: an engine on a store, arrays in it, and what these must hold."""

    def __init__(self, engine: ksmpy.Engine) -> None:
        self.engine = engine
        self.arrays: list[Bytes] = []
        self.wanted: list[bytes] = []

    def hold(self, kinds: list[int]) -> None:
        """Register pages of the alphabet of :func:`memory.content`."""
        self.add(memory.filled(kinds))

    def hold_distinct(self, count: int, seed: int) -> None:
        """Register random pages."""
        self.add(memory.distinct(count, seed))

    def add(self, array: Bytes) -> None:
        """Register an array and remember its bytes."""
        self.engine.register(array)
        self.arrays.append(array)
        self.wanted.append(array.tobytes())

    def write(self, index: int, pages: slice) -> None:
        """Change a byte in some pages of an array."""
        self.arrays[index].reshape(-1, oracle.PAGE)[pages, 5] ^= 1
        self.wanted[index] = self.arrays[index].tobytes()

    def scan(self, passes: int = 2) -> None:
        """Merge, and look that all is in order."""
        self.engine.scan(passes, eager=True)
        self.compare()
        self.engine._core.check()

    def merging(self) -> int:
        """How many pages the engine has on frames, by its own settled count."""
        return self.engine.stats().merging_pages

    def stats(self) -> ksmpy.Stats:
        """The engine's counters."""
        return self.engine.stats()

    def unmerge(self) -> None:
        """Everything has its own pages back afterwards."""
        self.engine.unmerge()
        assert not any(oracle.maps_store(*memory.span(array)) for array in self.arrays)
        self.compare()
        self.engine._core.check()

    def set(self, knob: str, value: int) -> None:
        """Assign a knob."""
        setattr(self.engine.knobs, knob, value)

    def knob(self, name: str) -> int:
        """A knob's value."""
        return int(getattr(self.engine.knobs, name))

    def refusal(self, knob: str, value: int) -> tuple[int | None, str]:
        """The errno and the text that assigning a knob is answered with."""
        try:
            self.set(knob, value)
        except OSError as error:
            return error.errno, str(error.strerror)
        return None, ""

    def compare(self) -> None:
        """No byte changed."""
        for index, (array, wanted) in enumerate(zip(self.arrays, self.wanted, strict=True)):
            assert array.tobytes() == wanted, f"array {index}"


def pages_on_store(pids: Iterable[int], store: ksmpy.Store) -> dict[int, Counter[Frame]]:
    """For each process, how many of its pages read each frame of a store, as the kernel sees it."""
    inode = os.fstat(store.fileno()).st_ino
    return {pid: oracle.users_of_store(inode, pid) for pid in pids}


def count_outside(store: ksmpy.Store, pids: Iterable[int]) -> int:
    """The store's counters and its processes' add up to what the kernel shows of `pids`.

    Each of them must have settled its own (``Engine.stats()``) and must not scan. Returns the
    number of frames.
    """
    seen = pages_on_store(pids, store)
    total: Counter[Frame] = Counter()
    for users in seen.values():
        total.update(users)
    stats = store.stats()
    assert {int(p): p.merging_pages for p in store.processes()} == {
        pid: users.total() for pid, users in seen.items()
    }
    assert stats.pages_shared == len(total)
    assert stats.pages_shared + stats.pages_sharing == total.total()
    return len(total)
