"""Debuggers and tracers come and go, and the process may be stopped, at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Mode
from support.patience import patience, until
from support.procs import environment

pytestmark = pytest.mark.timeout(patience(300))

#: How long a tracer may take to come or to go, in seconds.
PATIENCE = patience(60)
ROUNDS = int(os.environ.get("KSMPY_TRACER_ROUNDS", "6"))


class Busy:
    """A process that merges and unmerges."""

    def __init__(self, mode: Mode) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.busy", *mode], env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.await_progress()

    def await_progress(self) -> None:
        """Wait until it has got on twice: once it may have been about to before."""
        assert self.process.stdout is not None
        for _ in range(2):
            assert self.process.stdout.readline(), "it has ended"

    def finish(self) -> None:
        """End it; AssertionError where it saw a wrong byte, or died."""
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def busy(mode: Mode) -> Iterator[Busy]:
    """Merges in the mode at hand, until it is told to finish."""
    process = Busy(mode)
    yield process
    process.kill()


def _can_trace() -> bool:
    """Whether this user may trace processes that are not its children (Yama)."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as scope:
            return os.geteuid() == 0 or scope.read().strip() == "0"
    except FileNotFoundError:
        return True


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    if not _can_trace():
        pytest.skip("this user may not trace")
    return path


def _wait(tracer: subprocess.Popen[bytes], what: str) -> None:
    try:
        tracer.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tracer.kill()
        raise AssertionError(f"{what} hangs") from None


def _tracer_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("TracerPid:")[2].split()[0])


def _strace(pid: int) -> None:
    tracer = subprocess.Popen(
        [_tool("strace"), "-f", "-p", str(pid), "-o", os.devnull],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Before it is there, it has no handler either: the signal could be lost, if it is ignored here.
    until(lambda: _tracer_of(pid) == tracer.pid, "strace does not come", limit=PATIENCE)
    time.sleep(0.1)
    tracer.send_signal(signal.SIGINT)
    _wait(tracer, "strace")


def _gdb(pid: int) -> None:
    command = [_tool("gdb"), "-nx", "-batch", "-p", str(pid), "-ex", "detach"]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait(tracer, "gdb")


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("visit", "rounds"), [(_strace, ROUNDS), (_gdb, 2), (_stop, 20)], ids=["strace", "gdb", "stop"]
)
def test_tracers_come_and_go(busy: Busy, visit: Callable[[int], None], rounds: int) -> None:
    """Attaching and detaching takes a moment, the process goes on, and no byte is wrong."""
    for _ in range(rounds):
        visit(busy.process.pid)
        busy.await_progress()
    busy.finish()
