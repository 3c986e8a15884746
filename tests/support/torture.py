"""Python's side of ``torture.c``: threads that write, read and receive while pages are merged."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType
from typing import Any

from ksmpy import native

from .build import shared_library
from .memory import Bytes, address_of, huge_pages, pages
from .oracle import PAGE
from .patience import patience, until

MAX_BUFFERS = 8
#: How long a thread may take to come back before it counts as stuck, in seconds.
PATIENCE = patience(20)
#: How long something may take to happen often enough to prove something, in seconds.
ENOUGH = patience(60)


class Options(ctypes.Structure):
    """``struct torture_options``."""

    _fields_ = [
        ("buffers", ctypes.c_void_p * MAX_BUFFERS),
        ("nbuffers", ctypes.c_uint32),
        ("pages", ctypes.c_uint32),
        ("writers", ctypes.c_uint32),
        ("readers", ctypes.c_uint32),
        ("syscalls", ctypes.c_uint32),
        ("window", ctypes.c_uint32),
        ("epoch_us", ctypes.c_uint32),
        ("rest_us", ctypes.c_uint32),
        ("efault_ok", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    ]


class Totals(ctypes.Structure):
    """``struct torture_totals``: what the threads did, and what they found wrong."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "increments lost reads wrong backwards syscalls spoiled efaults errors "
            "first_bad first_want first_got"
        ).split()
    ]

    def __repr__(self) -> str:
        return ", ".join(
            f"{name}={getattr(self, name):#x}"
            if name.startswith("first")
            else f"{name}={getattr(self, name)}"
            for name, *_ in self._fields_
        )


class DirectIo(ctypes.Structure):
    """``struct direct_io``."""

    _fields_ = [
        ("fd", ctypes.c_int),
        ("blocks", ctypes.c_uint32),
        ("pages", ctypes.c_uint32),
        ("buffers", ctypes.c_void_p * 2),
        ("seed", ctypes.c_uint64),
        ("stop", ctypes.c_int),
        ("reads", ctypes.c_uint64),
        ("spoiled", ctypes.c_uint64),
        ("efaults", ctypes.c_uint64),
        ("errors", ctypes.c_uint64),
    ]


class Hammer(ctypes.Structure):
    """``struct hammer``."""

    _fields_ = [("at", ctypes.c_void_p), ("stop", ctypes.c_int), ("writes", ctypes.c_uint64)]


class ForkJob(ctypes.Structure):
    """``struct fork_job``."""

    _fields_ = [
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("wanted", ctypes.POINTER(ctypes.c_char_p)),
        ("nbuffers", ctypes.c_uint32),
        ("length", ctypes.c_size_t),
        ("forks", ctypes.c_uint32),
        ("bad_exits", ctypes.c_int),
        ("hung", ctypes.c_int),
    ]


@cache
def library() -> Any:
    """The compiled ``torture.c``; its functions run without the GIL."""
    lib = ctypes.CDLL(str(shared_library("torture")))
    lib.torture_new.restype = ctypes.c_void_p
    lib.torture_new.argtypes = [ctypes.POINTER(Options)]
    lib.torture_go.argtypes = [ctypes.c_void_p]
    lib.torture_threads.restype = ctypes.c_uint32
    lib.torture_threads.argtypes = [ctypes.c_void_p]
    lib.torture_progress.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]
    lib.torture_stop.argtypes = [ctypes.c_void_p, ctypes.c_double]
    lib.torture_sum.argtypes = [ctypes.c_void_p, ctypes.POINTER(Totals)]
    lib.torture_verify.restype = ctypes.c_uint64
    lib.torture_verify.argtypes = [ctypes.c_void_p]
    lib.torture_free.argtypes = [ctypes.c_void_p]
    lib.direct_block.argtypes = [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
    lib.direct_run.argtypes = [ctypes.POINTER(DirectIo)]
    lib.hammer_run.argtypes = [ctypes.POINTER(Hammer)]
    lib.fork_from_thread.argtypes = [ctypes.POINTER(ForkJob)]
    lib.broken_merger.restype = ctypes.c_uint64
    lib.broken_merger.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.POINTER(ctypes.c_int),
    ]
    return lib


def duration(default: float = 2.0) -> float:
    """How long one torture lasts, in seconds: KSMPY_TORTURE_SECONDS, or the default."""
    return float(os.environ.get("KSMPY_TORTURE_SECONDS", default))


def lasting(seconds: float) -> Callable[[object], bool]:
    """For `while going_on(enough):`, for so long, and then until there was enough of something.

    A loaded machine takes longer for that; AssertionError if it takes ENOUGH seconds more.
    """
    end = time.monotonic() + seconds

    def going_on(enough: object) -> bool:
        now = time.monotonic()
        assert enough or now < end + ENOUGH, "too little has happened to prove anything"
        return now < end or not enough

    return going_on


class Torture:
    """Writer, reader and syscall threads over equal buffers, from entering to leaving.

    The buffers are made here, equal in every byte, and stay equal except for the few pages that
    the writers are at. Leaving stops the threads and raises AssertionError for a lost increment,
    a wrong byte or a stuck thread.
    """

    def __init__(
        self,
        *,
        count: int = 512,
        buffers: int = 3,
        writers: int = 3,
        readers: int = 1,
        syscalls: int = 4,
        window: int = 4,
        epoch_us: int = 3000,
        rest_us: int = 2000,
        efault_ok: bool = False,
        seed: int = 1,
        huge: bool = False,
    ) -> None:
        self.buffers = [(huge_pages if huge else pages)(count) for _ in range(buffers)]
        addresses = (ctypes.c_void_p * MAX_BUFFERS)(*map(address_of, self.buffers))
        options = Options(
            addresses, buffers, count, writers, readers, syscalls, window, epoch_us, rest_us,
            efault_ok, seed,
        )  # fmt: skip
        self._torture = library().torture_new(ctypes.byref(options))
        assert self._torture, "torture_new refused its options"
        self.totals = Totals()
        self.verdict = True
        # Its threads never rest, and nothing would be frozen beside them.
        self._unseen = efault_ok

    def __enter__(self) -> Torture:
        if self._unseen:
            native.know_no_interpreter()
        assert library().torture_go(self._torture) == 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stuck = library().torture_stop(self._torture, PATIENCE)
        if self._unseen:
            native.know_interpreter()
        assert not stuck, f"{stuck} threads are stuck on a page"
        library().torture_sum(self._torture, ctypes.byref(self.totals))
        spoiled = library().torture_verify(self._torture)
        library().torture_free(self._torture)
        if error is None and self.verdict:
            self._judge(spoiled)

    def _judge(self, spoiled: int) -> None:
        t = self.totals
        bad = (t.lost, t.wrong, t.backwards, t.spoiled, t.errors, spoiled)
        assert not any(bad), f"{t!r}; {spoiled} words wrong in the end"

    def progress(self) -> list[int]:
        """How far each thread has come; grows unless it is stuck."""
        steps = (ctypes.c_uint64 * library().torture_threads(self._torture))()
        library().torture_progress(self._torture, steps)
        return list(steps)

    def stuck_under_gil(self, milliseconds: int) -> set[int]:
        """The threads that did nothing in the second half of a time in which we held the GIL."""
        holding_gil = ctypes.PyDLL(library()._name)
        count = library().torture_threads(self._torture)
        half, end = (ctypes.c_uint64 * count)(), (ctypes.c_uint64 * count)()
        holding_gil.torture_watch(ctypes.c_void_p(self._torture), milliseconds * 1000, half, end)
        return {i for i in range(count) if half[i] == end[i]}

    def assert_alive(self) -> None:
        """Every thread gets on within PATIENCE seconds."""
        before = self.progress()

        def all_got_on() -> bool:
            return all(new != old for new, old in zip(self.progress(), before, strict=True))

        until(all_got_on, lambda: f"stuck: {before} -> {self.progress()}", limit=PATIENCE)


def fork_and_verify(buffers: Sequence[Bytes], forks: int) -> None:
    """Forks from a C thread; each child checks the bytes of all buffers and writes into them."""
    wanted = [buffer.tobytes() for buffer in buffers]
    job = ForkJob(
        (ctypes.c_void_p * len(buffers))(*map(address_of, buffers)),
        (ctypes.c_char_p * len(buffers))(*wanted),
        len(buffers),
        buffers[0].nbytes,
        forks,
    )
    assert library().fork_from_thread(ctypes.byref(job)) == 0
    assert not job.hung, "a child of fork() hangs"
    assert not job.bad_exits, "a child of fork() saw wrong bytes or died"


def direct_blocks(count: int, seed: int) -> bytes:
    """The contents of a file for :class:`DirectIo`: blocks of one page each."""
    block = (ctypes.c_uint64 * (PAGE // 8))()
    blocks = []
    for index in range(count):
        library().direct_block(seed, index, block)
        blocks.append(bytes(block))
    return b"".join(blocks)
