"""One process on a shared store, with arrays of which it knows the bytes."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
from contextlib import suppress
from typing import Any

import ksmpy

from . import memory, oracle
from .memory import Bytes
from .pause import Call, Pauser
from .procs import in_child

PAGES = 64


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Sharer:
    """What one process does: each method is called from another one (support/nursery.py)."""

    def __init__(self, store: ksmpy.Store) -> None:
        self._store = store
        self._engines: list[ksmpy.Engine] = []
        self._arrays: list[Bytes] = []
        self._wanted: list[bytes] = []
        self._pauser = Pauser()
        self._log: _Log | None = None

    def attach(self, options: dict[str, Any]) -> None:
        """Make an engine on the store; what follows is done with the one that was made last."""
        self._engines.insert(0, ksmpy.Engine(store=self._store, **options))

    def refusal(self, options: dict[str, Any]) -> int:
        """The errno that attaching is refused with; 0 when it is not."""
        try:
            self.attach(options)
        except ksmpy.StoreError as error:
            assert "store" in str(error)
            return error.errno or -1
        return 0

    def refusals_without_descriptors(self, options: dict[str, Any]) -> list[int]:
        """The errnos of attaching with no descriptor left, with one, and so on until it works."""
        open_ones = sorted(map(int, os.listdir("/proc/self/fd")))
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
        seen: list[int] = []
        while True:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_ones[-1] + len(seen), old[1]))
            try:
                self.attach(options)
                break
            except ksmpy.Unsupported:  # what is there could not even be asked for
                seen.append(errno.EOPNOTSUPP)
            except OSError as error:
                seen.append(error.errno or -1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, old)
            assert sorted(map(int, os.listdir("/proc/self/fd"))) == open_ones, seen
        return seen

    def set_knob(self, name: str, value: int) -> None:
        """Set one of the engine's knobs."""
        setattr(self._engines[0].knobs, name, value)

    def add(self, seed: int, copies: int = 2, count: int = PAGES) -> None:
        """Register equal arrays of pages of which none is like another."""
        for _ in range(copies):
            array = memory.distinct(count, seed=seed)
            self._engines[0].register(array)
            self._arrays.append(array)
            self._wanted.append(array.tobytes())

    def scan(self, passes: int = 2) -> float:
        """Scan; how many seconds it took."""
        begin = time.monotonic()
        self._engines[0].scan(passes, eager=True)
        return time.monotonic() - begin

    def write(self) -> None:
        """Change some pages of the last array."""
        self._arrays[-1][:: 8 * oracle.PAGE] ^= 1
        self._wanted[-1] = self._arrays[-1].tobytes()

    def unmerge(self) -> None:
        """Give every page memory of its own."""
        self._engines[0].unmerge()

    def fork(self, told: str) -> None:
        """Fork; the child looks at its bytes when `told` is there, and says in it how it went."""
        if os.fork():
            return
        try:
            while not os.path.exists(told):
                time.sleep(0.002)
            self.compare()
            said = "right"
        except BaseException as error:
            said = repr(error)[:200]
        with open(told, "a") as file:
            file.write(said)
        os._exit(said != "right")

    def child_ended(self) -> int:
        """Wait for the end of a child; 0 if its bytes were right."""
        return os.waitstatus_to_exitcode(os.wait()[1])

    def drop(self) -> None:
        """Let the last array die."""
        self._wanted.pop()
        del self._arrays[-1:]

    def seconds(self, work: str, *args: Any) -> float:
        """How long a method takes."""
        begin = time.monotonic()
        getattr(self, work)(*args)
        return time.monotonic() - begin

    def fork_and_wait(self) -> None:
        """Fork; the child looks at its bytes."""
        in_child(self.compare)

    def stats(self) -> ksmpy.Stats:
        """The engine's counters."""
        return self._engines[0].stats()

    def close_files(self) -> None:
        """Close the engine's descriptors of the store, as a program does that becomes a daemon."""
        inode = os.fstat(self._store.fileno()).st_ino
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):
                if fd != self._store.fileno() and os.fstat(fd).st_ino == inode:
                    os.close(fd)

    def asked(self) -> int:
        """The errno that the engine's counters are refused with, or 0."""
        try:
            self.stats()
        except OSError as error:
            return error.errno or -1
        return 0

    def whole_stats(self) -> None:
        """The counters of the whole store."""
        self._store.stats()

    def refused(self, work: str, *args: Any) -> tuple[int, str, float]:
        """The errno and the words that a method is refused with, and the longest of the forks
        that are made meanwhile, in seconds.
        """
        caught: list[ksmpy.StoreError] = []

        def run() -> None:
            try:
                getattr(self, work)(*args)
            except ksmpy.StoreError as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        longest = 0.0
        while thread.is_alive():
            begin = time.monotonic()
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            longest = max(longest, time.monotonic() - begin)
            os.waitpid(pid, 0)
            time.sleep(0.02)
        return caught[0].errno or 0, caught[0].strerror or "", longest

    def refused_then_fork(self, told: str) -> int:
        """Scan until that is refused, and fork."""
        number = 0
        try:
            self.scan(1)
        except ksmpy.StoreError as error:
            number = error.errno or -1
        self.fork(told)
        return number

    def compare(self) -> None:
        """No byte of any array is wrong."""
        for index, (array, wanted) in enumerate(zip(self._arrays, self._wanted, strict=True)):
            assert array.tobytes() == wanted, f"array {index}"

    def doctor(self, name: str) -> tuple[bool, str, str]:
        """What ksmpy.doctor says of one thing."""
        check = next(check for check in ksmpy.doctor() if check.name == name)
        return check.ok, check.detail, check.hint

    def warnings(self) -> list[str]:
        """What the log has since the first call."""
        if self._log is None:
            self._log = _Log()
            logging.getLogger("ksmpy").addHandler(self._log)
        return self._log.said

    def check(self) -> None:
        """Neither bytes nor structures are wrong."""
        self.compare()
        for engine in self._engines:
            engine._core.check()

    def spans(self) -> list[tuple[int, int]]:
        """Where the arrays are."""
        return [memory.span(array) for array in self._arrays]

    def on_frames(self) -> tuple[int, int]:
        """How many frames are mapped, and by how many pages, as the kernel says."""
        users = oracle.shared_pages(self.spans())
        return len(users), users.total()

    def close(self) -> None:
        """Close the engines."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()

    def live(self, options: dict[str, Any]) -> None:
        """Everything above, on a store that has another sharer: once, from start to end."""
        self.attach(options)
        self.add(seed=1)
        self.add(seed=2, count=150)
        self.scan(3)
        self.write()
        self.scan(3)
        self.check()
        if not os.fork():
            os._exit(0)
        os.wait()
        self.scan(1)
        self.unmerge()
        self.scan(2)
        self.close()
        self.compare()

    # ---- being stopped ----

    def stopped_at(self, function: str, nth: int, locked: bool, work: str, *args: Any) -> int:
        """Run a method; the process is stopped before its nth call of a function.

        Returns how many such calls there were.
        """
        self._pauser.stop_process(function, nth, locked=locked)
        getattr(self, work)(*args)
        return len(self._pauser.calls())

    def clocks(self, work: str, *args: Any) -> set[str]:
        """Run a method; by which clocks the engine looks at the time meanwhile."""
        self.stopped_at("clock ", 1 << 40, False, work, *args)
        return {call.function for call in self._pauser.calls()}

    def moments(self, work: str, *args: Any) -> list[tuple[int, Call]]:
        """Run a method; the calls that it makes, as nth of stopped_at("", nth, False, work).

        Of those that look the same only the first one and the last one.
        """
        self.stopped_at("", 1 << 40, False, work, *args)
        first: dict[Call, int] = {}
        last: dict[Call, int] = {}
        for number, call in enumerate(self._pauser.calls(), 1):
            first.setdefault(call, number)
            last[call] = number
        return sorted(
            ((number, call) for call in first for number in {first[call], last[call]}),
            key=lambda moment: moment[0],
        )
