"""Whole lives of buffers, to be run while calls fail or privileges are missing.

``disturbed`` is what may be refused at any point, with one of the errors that users may see, but
never costs a byte. ``recover`` runs when nothing fails any more and must find everything working.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

import ksmpy

from . import memory, oracle
from .memory import Bytes
from .oracle import PAGE
from .patience import until

#: What a user may get to see. Anything else that comes out of a call is a bug.
REFUSALS = (ksmpy.KsmpyError, OSError, MemoryError)


class Scenario(Protocol):
    """What :mod:`support.injection_run` runs."""

    refusals: list[str]

    def disturbed(self) -> None:
        """The part during which calls fail."""

    def recover(self) -> None:
        """The part after it."""


class Life:
    """Register, merge, write, merge, unmerge, merge, release, close."""

    def __init__(self, freeze: str, tracking: str) -> None:
        self.options = {"freeze": freeze, "tracking": tracking}
        model = memory.distinct(40, seed=3)
        self.buffers: list[Bytes] = [model, memory.twin(model), memory.filled([0] * 6)]
        self.buffers.append(memory.filled([1, 2, 1, 2, 3, 1]))
        self.wanted = [buffer.tobytes() for buffer in self.buffers]
        self.engine: ksmpy.Engine | None = None
        self.regions: list[Any] = []
        self.refusals: list[str] = []

    def attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it; a refusal is noted, and the bytes are as they were either way."""
        result = None
        try:
            result = call(*args, **options)
        except REFUSALS as error:
            self.refusals.append(f"{type(error).__name__}: {error}")
        self.check_bytes()
        return result

    def check_bytes(self) -> None:
        """Every buffer holds what was written last."""
        for index, (buffer, wanted) in enumerate(zip(self.buffers, self.wanted, strict=True)):
            assert buffer.tobytes() == wanted, f"buffer {index} has wrong bytes"

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write into a buffer and into what it must hold."""
        self.buffers[index][offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)
        old = self.wanted[index]
        self.wanted[index] = old[:offset] + data + old[offset + len(data) :]

    def spans(self) -> list[tuple[int, int]]:
        """The pages of all buffers."""
        return [memory.span(buffer) for buffer in self.buffers]

    def begin(self) -> bool:
        """Make the engine and register everything; False if there is no engine."""
        self.engine = self.attempt(ksmpy.Engine, **self.options)
        if self.engine is None:
            return False
        self.engine.knobs.use_zero_pages = 1
        for buffer in self.buffers:
            region = self.attempt(self.engine.register, buffer)
            if region is not None:
                self.regions.append(region)
        return True

    def disturbed(self) -> None:
        """The life of four buffers."""
        if not self.begin():
            return
        engine = self.engine
        assert engine is not None
        self.attempt(engine.scan, eager=True)
        self.write(0, 3 * PAGE + 100, b"changed")
        self.write(1, 5 * PAGE, bytes(PAGE))
        self.write(2, 17, b"no longer zero")
        self.attempt(engine.scan)
        self.attempt(engine.scan, eager=True)
        if self.regions:
            self.attempt(self.regions[0].unmerge)
        self.attempt(engine.unmerge)
        self.attempt(engine.scan, eager=True)
        if self.regions:
            self.attempt(self.regions.pop().release)
        self.attempt(engine.close)

    def recover(self) -> None:
        """What was left behind can be undone, and a new engine does all of it."""
        if self.engine is not None:
            self.engine.close()
        self.check_bytes()
        assert not any(oracle.maps_store(*span) for span in self.spans()), "still maps the store"
        self.regions.clear()
        with ksmpy.Engine(**self.options) as engine:  # type: ignore[arg-type]
            for buffer in self.buffers[:2]:
                engine.register(buffer)
            # Where the interpreter's lock is not to be had in time the next pass tries again.
            until(
                lambda: (
                    engine.scan(2, eager=True).full > 0
                    and oracle.true_saved_pages(self.spans()) >= 10
                ),
                "fewer than 10 pages merged afterwards",
            )
            self.check_bytes()
            engine.unmerge()
            assert not any(oracle.maps_store(*span) for span in self.spans())
        self.check_bytes()


class Forking(Life):
    """The same engine goes on while a child keeps what was merged before the fork."""

    def disturbed(self) -> None:
        """Merge, fork, take everything apart in the parent; the child must not notice."""
        if not self.begin():
            return
        engine = self.engine
        assert engine is not None
        self.attempt(engine.scan, eager=True)
        pid, go, seen = self.fork_observer()
        try:
            fresh = os.urandom(len(self.wanted[0]))
            for index, wanted in enumerate(self.wanted):
                self.write(index, 0, fresh[: len(wanted)])
            self.attempt(engine.scan, 2, eager=True)
            self.attempt(engine.unmerge)
            self.attempt(engine.scan, eager=True)
            self.attempt(engine.close)
        finally:
            os.write(go, b"x")
            ready, _, _ = select.select([seen], [], [], 20)
            verdict = os.read(seen, 100) if ready else b"the child hangs"
            os.close(go)
            os.close(seen)
            os.waitpid(pid, 0)
        assert verdict == b"right", f"child: {verdict.decode()}"

    def fork_observer(self) -> tuple[int, int, int]:
        """A child that compares its bytes when told to: (pid, its input, its output)."""
        wait, go = os.pipe()
        seen, tell = os.pipe()
        pid = os.fork()
        if pid:
            os.close(wait)
            os.close(tell)
            return pid, go, seen
        try:
            os.close(go)
            os.read(wait, 1)
            self.check_bytes()
            os.write(tell, b"right")
        except BaseException as error:
            os.write(tell, repr(error).encode()[:100])
        os._exit(0)


SCENARIOS: dict[str, Callable[[str, str], Scenario]] = {"life": Life, "forking": Forking}
