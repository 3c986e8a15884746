"""Children: each looks at all of its bytes, writes for itself, lives on for a while, and ends."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence

import ksmpy
from tests.support.memory import Bytes
from tests.support.oracle import PAGE

#: How long a child may live longer than it was told to, in seconds.
PATIENCE = 60.0


class Young:
    """One child, and where it writes its traceback."""

    def __init__(self, life: Callable[[], None], seconds: float) -> None:
        self._says, tell = os.pipe()
        self._until = time.monotonic() + seconds + PATIENCE
        self.pid = os.fork()
        if self.pid:
            os.close(tell)
            return
        code = 1
        try:
            life()
            code = 0
        except BaseException:
            os.write(tell, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)

    def ended(self, *, wait: bool = False) -> bool:
        """Whether it is gone; AssertionError when it failed, or hangs."""
        done, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
        if not done:
            if time.monotonic() > self._until:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"child {self.pid} hangs")
            return False
        said = os.read(self._says, 4096).decode()
        os.close(self._says)
        assert status == 0, f"child {self.pid}: status {status:#x}\n{said}"
        return True


def live(arrays: Sequence[Bytes], verify: Callable[[], None], seconds: float, freeze: str) -> None:
    """What a child does. With a way of freezing it merges, with an engine of its own."""
    verify()
    born = [array.tobytes() for array in arrays]
    for array in arrays[::2]:
        array[::PAGE] ^= 0x5A
    for array, bytes_then in zip(arrays[1::2], born[1::2], strict=True):
        assert array.tobytes() == bytes_then, "a child's write came through"
    for array in arrays[::2]:
        array[::PAGE] ^= 0x5A
    if freeze:
        with ksmpy.Engine(freeze=freeze) as engine:
            for array in arrays:
                engine.register(array)
            engine.scan(2, eager=True)
            engine._core.check()
    end = time.monotonic() + seconds
    while True:
        for array, bytes_then in zip(arrays, born, strict=True):
            assert array.tobytes() == bytes_then, "bytes changed under a child"
        if time.monotonic() >= end:
            return
        time.sleep(0.05)


class Nursery:
    """The children alive."""

    def __init__(self, rng: random.Random, most: int) -> None:
        self._rng = rng
        self._most = most
        self._alive: list[Young] = []
        self.born = 0

    def __len__(self) -> int:
        return len(self._alive)

    def fork(self, arrays: Sequence[Bytes], verify: Callable[[], None], freeze: str) -> None:
        """One more, if there is room."""
        if len(self._alive) >= self._most:
            return
        seconds = self._rng.choice([0.0, 0.05, 0.2, 0.5, 1.0])
        how = freeze if self._rng.random() < 0.25 else ""
        self._alive.append(Young(lambda: live(arrays, verify, seconds, how), seconds))
        self.born += 1

    def look(self, *, wait: bool = False) -> None:
        """Who has ended? With `wait`: until all have."""
        self._alive = [young for young in self._alive if not young.ended(wait=wait)]

    def kill(self) -> None:
        """After a failure: none is left behind."""
        for young in self._alive:
            os.kill(young.pid, signal.SIGKILL)
