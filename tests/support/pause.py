"""Python's side of ``pause.c``: stops a thread or its process at one call of the extension."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .build import shared_library
from .patience import patience
from .procs import python

#: How long a thread may take to get to the call, or to its end, in seconds.
PATIENCE = patience(30)


def preloaded(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for a child process in which threads can be stopped."""
    return {**environ, "LD_PRELOAD": str(shared_library("pause"))}


class Worker:
    """A thread that runs a function; :meth:`result` gives what it returned, or raises its error."""

    def __init__(self, work: Callable[[], Any], *, prepare: Callable[[], None] | None = None):
        self._work = work
        self._prepare = prepare
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def waits(self, seconds: float = 0.3) -> bool:
        """Whether it has not come to its end by then."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def result(self) -> Any:
        """Wait for its end."""
        assert not self.waits(PATIENCE), "a thread hangs"
        if self._error is not None:
            raise self._error
        return self._value


@dataclass(frozen=True)
class Call:
    """What the extension calls, from which place of its code, and whether with a store's lock."""

    function: str
    site: int
    locked: bool


class Pauser:
    """Controls the library in a process that was started with :func:`preloaded`.

    From then on pages are frozen beside system calls that fail.
    """

    def __init__(self, target: str = "/_ksmpy.") -> None:
        from ksmpy import native

        # A thread that stands still in a freeze would have the interpreter's lock with it.
        native.know_no_interpreter()
        self._lib: Any = ctypes.CDLL(None)
        numbers = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        self._lib.pause_arm.argtypes = [ctypes.c_char_p, *numbers]
        self._lib.pause_arm_process.argtypes = [ctypes.c_char_p, *numbers]
        self._lib.pause_calls.restype = ctypes.c_uint64
        self._lib.pause_call.restype = ctypes.c_char_p
        self._names: list[bytes] = []  # the library keeps a pointer
        assert self._lib.pause_target(target.encode()), f"no object {target!r} is loaded"

    @contextmanager
    def at(
        self, function: str, nth: int, work: Callable[[], Any], *, limit: float = PATIENCE
    ) -> Iterator[Worker]:
        """Inside the block `work`, in a thread of its own, stands before its nth call.

        At the end of the block (or after `limit` seconds) it goes on, and its end is waited for.
        LookupError if it came to its end without making so many calls.
        """
        self._names.append(function.encode())

        def arm() -> None:
            tid = threading.get_native_id()
            self._lib.pause_arm(self._names[-1], nth, tid, int(limit * 1000))

        worker = Worker(work, prepare=arm)
        while self._lib.pause_wait(20) != 0:
            if worker.waits(0):
                continue
            worker.result()
            raise LookupError(f"there was no call {nth} of {function}")
        try:
            yield worker
        finally:
            self._lib.pause_go()
            worker.result()

    @contextmanager
    def thread_at(self, tid: int, function: str, nth: int) -> Iterator[Callable[[], bool]]:
        """Inside the block that thread stands before its nth call from now on, once it comes to it.

        What is given to the block waits for that, and says whether it does.
        """
        self._names.append(function.encode())
        self._lib.pause_arm(self._names[-1], nth, tid, int(PATIENCE * 1000))
        try:
            yield lambda: self._lib.pause_wait(int(PATIENCE * 1000)) == 0
        finally:
            self._lib.pause_go()

    def stop_process(self, function: str, nth: int, *, locked: bool = False) -> None:
        """Let this thread's nth call from now on stop the whole process, before it is made.

        `function` is the beginning of its name: "" is any that can be stopped at. `locked` leaves
        out calls that are made without the lock of a store. SIGCONT lets the process go on.
        """
        self._names.append(function.encode())
        self._lib.pause_arm_process(self._names[-1], nth, threading.get_native_id(), locked)

    def calls(self) -> list[Call]:
        """The calls of that kind that this thread made since then, as far as the log goes."""
        site, locked = ctypes.c_uint64(), ctypes.c_int()
        found = []
        for n in range(self._lib.pause_calls()):
            name = self._lib.pause_call(
                ctypes.c_uint64(n), ctypes.byref(site), ctypes.byref(locked)
            )
            if name is None:
                break
            found.append(Call(name.decode(), site.value, bool(locked.value)))
        return found


def stopped_at_every_call(module: str, scenario: str, *arguments: str) -> None:
    """Run a scenario of ``support/MODULE.py`` in a process of its own, which it must survive."""
    command = ["-X", "faulthandler", "-m", f"support.{module}", scenario, *arguments]
    done = python(*command, env=preloaded({}), seconds=200)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
