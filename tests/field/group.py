"""Runs a program with all its processes, and measures them from outside.

Sizes are sums over /proc/PID/smaps_rollup of all processes below the command, that of `ksmpy run`
itself included.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np

from ksmpy import proc
from ksmpy.whole.guardian import below

from .programs import Program

__all__ = ["Group", "Sizes", "fill"]

APPS = Path(__file__).parent / "apps"
MIB = 1 << 20
ARRAYS = 16
#: Nothing has become less for so long: it is settled. With ksmpy, on a loaded machine too.
STILL_SECONDS, STILL_SECONDS_WITH = 2.0, 12.0
#: As an ordinary user, without capabilities.
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


@dataclass(frozen=True)
class Sizes:
    """Of all processes of a group, in MiB; and how long it took until they were so."""

    pss: float
    rss: float
    processes: int
    seconds: float = 0.0


def fill(here: Path, mebibytes: int) -> set[str]:
    """Write the weights that programs load; what they may answer, with the right bytes."""
    rng = np.random.default_rng(9)
    words = mebibytes * MIB // ARRAYS // 4
    arrays: dict[str, Any] = {}
    for i in range(ARRAYS if mebibytes else 0):
        arrays[f"layer{i}"] = rng.standard_normal(words, dtype="f4")
    np.savez(here / "weights.npz", **arrays)
    return {f"{name} {zlib.crc32(array)}" for name, array in arrays.items()} or {"none 0"}


@dataclass
class Group:
    """A program that runs, with whatever it has started."""

    program: Program
    here: Path
    workers: int
    options: tuple[str, ...] | None = None
    """Of `ksmpy run`; None: without it."""
    nobody: bool = False
    python: str = sys.executable
    port: int = 0
    failed: list[str] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    # ---- its life -----------------------------------------------------------------------

    def __enter__(self) -> Group:
        for old in (*self.here.glob("loaded.*"), self.here / "answers", self.here / "over"):
            old.unlink(missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if self.program.before:
            before = self._shell(self.program.before)
            subprocess.run(before, env=self._environment(), cwd=APPS, check=True)
        command = self._shell(self.program.command)
        if self.options is not None:
            command = [self.python, "-m", "ksmpy", "run", *self.options, "--", *command]
        if self.nobody:
            command = [*NOBODY, *command]
        with self.log() as log:
            self._process = subprocess.Popen(
                command, env=self._environment(), cwd=APPS, stdout=log, stderr=log
            )
        if self.program.serves:
            threading.Thread(target=self._ask, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        deadline = time.monotonic() + 10
        while (left := self._left()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
        assert self._process is not None
        self._process.wait(10)

    def _left(self) -> list[int]:
        """All processes with this folder in their environment, whoever is their parent now."""
        mark = f"HERE={self.here}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:  # it has ended
                pass
        return found

    def log(self) -> IO[bytes]:
        """What the program says."""
        return open(self.here / "log", "wb")

    def _shell(self, command: str) -> list[str]:
        words = {
            "bin": str(Path(self.python).parent),
            "python": self.python,
            "n": str(self.workers),
            "port": str(self.port),
        }
        for name, value in words.items():
            command = command.replace("{" + name + "}", value)
        return ["/bin/sh", "-c", command if ";" in command else f"exec {command}"]

    def _environment(self) -> dict[str, str]:
        hidden = ("KSMPY_", "PYTHONDONTWRITEBYTECODE")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        home = str(self.here)
        path = os.pathsep.join([str(APPS), str(Path(proc.__file__).parents[1])])
        return {
            **clean,
            **ONE_THREAD,
            "HERE": home,
            "HOME": home,
            "TMPDIR": home,
            "PYTHONPATH": path,
        }

    # ---- what it does -------------------------------------------------------------------

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as answer:
                    answer.read()
            except (OSError, HTTPException):  # it has not begun, or a worker was killed
                time.sleep(0.1)

    def pids(self) -> list[int]:
        """The processes that there are."""
        return [] if self._process is None else list(below(self._process.pid))

    def loaded(self) -> set[int]:
        """Those of them that have loaded."""
        told = {int(path.suffix[1:]) for path in self.here.glob("loaded.*")}
        return told & set(self.pids())

    def answers(self) -> list[tuple[int, str]]:
        """(process, answer), in the order in which they came."""
        try:
            lines = (self.here / "answers").read_text().splitlines()
        except FileNotFoundError:
            return []
        words = [line.partition(" ") for line in lines]
        return [(int(pid), answer) for pid, _, answer in words]

    def until(self, true: Callable[[], object], what: str, seconds: float) -> None:
        """Wait; AssertionError with what the program has said if it does not come."""
        deadline = time.monotonic() + seconds
        while not true():
            assert self._process is not None
            said = (self.here / "log").read_text(errors="replace")[-2000:]
            code = self._process.poll()
            assert code is None, f"{self.program.name} is over, {code}: {said}"
            assert time.monotonic() < deadline, f"{self.program.name}: {what}: {said}"
            time.sleep(0.1)

    def until_loaded(self, seconds: float) -> None:
        """All have loaded, and each has answered since."""
        self.until(self.all_loaded, "not all have loaded", seconds)

    def all_loaded(self) -> bool:
        """Whether as many have loaded as shall."""
        return len(self.loaded()) >= (self.program.copies or self.workers)

    def until_answered(self, more: int, seconds: float) -> None:
        """So many answers more."""
        before = len(self.answers())
        self.until(lambda: len(self.answers()) >= before + more, "no answers come", seconds)

    def kill_one(self, seconds: float) -> None:
        """SIGKILL for a worker that has answered; until another one answers in its place."""
        before = self._answering()
        victim = max(before)
        os.kill(victim, signal.SIGKILL)
        (self.here / f"loaded.{victim}").unlink(missing_ok=True)
        if self.program.loads == "numpy":
            self.until(lambda: self._answering() - before, "nobody in its place", seconds)
            self.until_loaded(seconds)

    def _answering(self) -> set[int]:
        return {pid for pid, _ in self.answers()} & set(self.pids())

    def reload(self, seconds: float) -> None:
        """SIGHUP for the program; until other workers have loaded."""
        assert self._process is not None
        before = self.loaded()
        self._process.send_signal(signal.SIGHUP)
        self.until(lambda: len(self.loaded() - before) >= self.workers, "no new workers", seconds)
        self.until(lambda: not self.loaded() & before, "the old workers stay", seconds)

    def end(self, seconds: float) -> int:
        """Tell it to end; its exit code."""
        assert self._process is not None
        self._over.set()
        (self.here / "over").touch()
        if self.program.serves:
            self._process.terminate()
        return self._process.wait(seconds)

    # ---- its size -----------------------------------------------------------------------

    def sizes(self) -> Sizes:
        """As they are now."""
        pss = rss = count = 0
        for pid in self.pids():
            try:
                rollup = proc.rollup(pid)
            except OSError:  # it has ended
                continue
            pss += rollup.get("Pss", 0)
            rss += rollup.get("Rss", 0)
            count += 1
        return Sizes(pss / MIB, rss / MIB, count)

    def settled(self, seconds: float, goal: float = 0.0) -> Sizes:
        """When they have not become smaller for a while, or after so many seconds, or when their
        PSS is down to a goal.
        """
        begin = time.monotonic()
        still = STILL_SECONDS if self.options is None else STILL_SECONDS_WITH
        least, since = self.sizes().pss, begin
        while least > goal and time.monotonic() < min(since + still, begin + seconds):
            time.sleep(0.5)
            now = self.sizes().pss
            if now < least - max(1.0, least / 200):
                least, since = now, time.monotonic()
        now_all = self.sizes()
        return Sizes(now_all.pss, now_all.rss, now_all.processes, since - begin)
