"""Children: forked ones that check something, and fresh interpreters."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from .patience import patience

TESTS = Path(__file__).parent.parent
#: How long a child may take before it counts as hung, in seconds.
PATIENCE = patience(30)


def state_and_parent(process: int | str) -> tuple[str, int]:
    """The letter of a process's state, and its parent's id; OSError when it is gone.

    Of a thread, when that is "PID/task/TID".
    """
    # Bytes, as the name in brackets may have any, brackets among them.
    stat = Path(f"/proc/{process}/stat").read_bytes()
    state, parent = stat.rpartition(b")")[2].split()[:2]
    return state.decode(), int(parent)


def _reap(pid: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a child hangs after {seconds:.0f} s")


class Child:
    """A forked child that runs a function when it is told to, and says how it went.

    The function runs in the child only; an exception in it fails the parent's :meth:`finish`.
    With `close_all` the child first closes every descriptor except the two it reports by. It is
    killed when it says nothing for `seconds`. It ends by ``os._exit``: nothing of the test runner
    runs twice.
    """

    def __init__(
        self, work: Callable[[], None], *, close_all: bool = False, seconds: float = PATIENCE
    ) -> None:
        self._seconds = seconds
        wait, self._go = os.pipe()
        self._seen, tell = os.pipe()
        self._started = False
        self.pid = os.fork()
        if self.pid:
            os.close(wait)
            os.close(tell)
            return
        try:
            if close_all:
                _close_all_but(wait, tell)
            else:
                os.close(self._go)
            os.write(tell, b".")
            os.read(wait, 1)
            work()
            os.write(tell, b"right")
        except BaseException:
            os.write(tell, traceback.format_exc().encode()[-3000:])
        finally:
            os._exit(0)

    def ready(self) -> Child:
        """Wait until the child runs and has closed what it should."""
        self._read(1)
        return self

    def _read(self, size: int) -> bytes:
        ready, _, _ = select.select([self._seen], [], [], self._seconds)
        if not ready:
            self.kill()
            raise AssertionError("a child hangs")
        return os.read(self._seen, size)

    def start(self) -> None:
        """Let the child do its work."""
        if not self._started:
            os.write(self._go, b"x")
        self._started = True

    def kill(self) -> None:
        """End it, whatever it does."""
        os.close(self._go)
        os.close(self._seen)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def finish(self) -> None:
        """Let the child do its work; AssertionError with its traceback if that failed."""
        self.start()
        said = b""
        while part := self._read(4096):
            said += part
        os.close(self._go)
        os.close(self._seen)
        code = _reap(self.pid, PATIENCE)
        said = said.removeprefix(b".")
        assert code == 0 and said == b"right", f"child (exit {code}): {said.decode()}"


def _close_all_but(*keep: int) -> None:
    low = 0
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def in_child(
    work: Callable[[], None], *, close_all: bool = False, seconds: float = PATIENCE
) -> None:
    """Run a function in a forked child and wait for it, for so many seconds at the most."""
    Child(work, close_all=close_all, seconds=seconds).ready().finish()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a fresh interpreter that finds ksmpy and the helpers."""
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


def python(
    *arguments: str, env: Mapping[str, str] | None = None, seconds: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter to its end, whatever its exit code."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=patience(seconds),
        check=False,
    )


def python_ok(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a fresh interpreter that must succeed; returns what it printed."""
    done = python(*arguments, env=env)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
