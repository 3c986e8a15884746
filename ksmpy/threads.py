"""The interpreter's own threads and locks, even if the program has replaced them by others.

gevent and eventlet replace Python's threads by greenlets, which take turns in one thread. A
greenlet that scans would let no other one run, and one that was started in a thread without a hub
would never run at all.

And threads that are not among those of the module threading: a program that nobody has told of
them may wait for the end of all that it finds there.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, Protocol

from ksmpy.own import genuine, own

__all__ = [
    "Event",
    "Lock",
    "RLock",
    "Thread",
    "are_gone",
    "are_stopped_by_signals",
    "event",
    "forget_current",
    "hide",
    "ident",
    "is_current",
    "pause",
    "start",
]

# How long the end of a thread of ours may take once it has nothing more to do.
_ENDING_SECONDS = 0.2


_own = genuine(_thread)

Lock = _own.allocate_lock
RLock = _own.RLock


class Event(Protocol):
    """As threading.Event, but never cleared."""

    def is_set(self) -> bool:
        """Whether set() was called."""

    def set(self) -> None:
        """Let all go on that wait."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; whether it is."""


class Thread(Protocol):
    """As threading.Thread."""

    @property
    def ident(self) -> int | None:
        """Its number, once it has begun."""

    def is_alive(self) -> bool:
        """Whether it has not ended."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


def event() -> Event:
    """An event that wakes threads without the help of a greenlet's hub."""
    return _Event() if _replaced() else threading.Event()


def start(target: Callable[..., None], args: tuple[Any, ...], name: str) -> Thread:
    """Start a thread that does not keep the process. RuntimeError where no more can be had.

    It, and all threads that it starts, block signals: a program that blocks one in all threads that
    it knows of, and waits for it (sigwait), would be ended by it in ours.
    """
    # The mask is asked for first: a signal that came before may raise where it is blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        if _replaced():
            return _Thread(target, args)
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        return thread
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# The signals that a thread brings on itself: none of them can be put off. They stand as well where
# this module cannot be imported: in whole/guardian.py, whole/site/sitecustomize.py and the C code.
_FAULTS = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS")
    if hasattr(signal, name)
}


def are_stopped_by_signals() -> bool:
    """Whether pythonnet has loaded Mono, which stops the program by a signal to each thread that
    has run its code, and waits until all have taken it. One of ours does not take it, and runs its
    code where it imports something or collects garbage, as it happens: so it is to end.
    """
    return "clr_loader.mono" in sys.modules


def ident() -> int:
    """The number of the interpreter's thread that this is."""
    return int(_own.get_ident())


def pause(seconds: float) -> None:
    """Let the interpreter's other threads run for so long."""
    event().wait(seconds)


def is_current(thread: Thread) -> bool:
    """Whether the caller is this very thread."""
    return thread.ident == ident()


_hidden = [False]
_idents: set[int] = set()
_process = [own.getpid()]


def _in_child() -> None:
    _process[0] = own.getpid()
    _idents.clear()  # others may get these numbers here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def are_gone() -> bool:
    """Whether C code has forked this process, past Python's hooks: what looks like a thread that
    runs is in the parent only.
    """
    return own.getpid() != _process[0]


def hide() -> None:
    """From now on keep our threads out of what the module threading knows."""
    _hidden[0] = True


def forget_current() -> None:
    """Make threading forget the current thread, if it is one of those: whoever asks it for the
    current thread, as logging does, makes it note one that it has not started.
    """
    ident = _own.get_ident()
    noted = getattr(threading, "_active", {})
    if ident in _idents and isinstance(noted.get(ident), getattr(threading, "_DummyThread", ())):
        del noted[ident]


def _replaced() -> bool:
    return _hidden[0] or not isinstance(_thread.start_new_thread, BuiltinFunctionType)


class _Event:
    """An event made of a lock that set() releases, and each waiter takes and releases again."""

    def __init__(self) -> None:
        self._is_set = False
        self._lock = Lock()
        self._lock.acquire()
        self._once = Lock()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if self._once.acquire(blocking=False):
            self._is_set = True
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set and self._lock.acquire(timeout=-1 if timeout is None else timeout):
            self._lock.release()
        return self._is_set


class _Thread:
    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._over = _Event()
        self._task = ""
        self.ident: int | None = None
        self.ident = _own.start_new_thread(self._run, (target, args))

    def _run(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        ident = _own.get_ident()
        self._task = f"/proc/self/task/{_own.get_native_id()}"
        _idents.add(ident)
        try:
            target(*args)
        finally:
            forget_current()
            _idents.discard(ident)
            self._over.set()

    def is_alive(self) -> bool:
        return not self._over.is_set()

    def join(self, timeout: float | None = None) -> None:
        if not self._over.wait(timeout):
            return
        # It still has to tell the interpreter that it ends, which may be ended next.
        deadline = own.monotonic() + _ENDING_SECONDS
        while os.path.exists(self._task) and own.monotonic() < deadline:
            pause(0.001)
