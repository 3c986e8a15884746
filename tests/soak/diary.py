"""What the processes of a fleet leave behind for the one that watches: what they did, what failed.

Two files that everybody appends to, so that nothing is lost with a process that is killed.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

#: A process that does one thing for so long hangs, in seconds.
PATIENCE = 120


class Diary:
    """The two files, in a folder of the fleet's own."""

    def __init__(self, folder: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.folder = folder
        self._did = os.open(Path(folder, "did"), flags, 0o600)
        self._failed = os.open(Path(folder, "failed"), flags, 0o600)
        self._read = 0
        self.count: Counter[str] = Counter()
        faulthandler.enable(self._failed)
        # A timer of the kernel's: faulthandler's own is a thread, whose locks a fork leaves locked.
        faulthandler.register(signal.SIGALRM, self._failed, chain=True)

    def close(self) -> None:
        """Both files; they stay in the folder."""
        signal.alarm(0)
        faulthandler.unregister(signal.SIGALRM)
        faulthandler.disable()
        os.close(self._did)
        os.close(self._failed)

    def note(self, *what: str) -> None:
        """Something was done."""
        os.write(self._did, "".join(f"{word}\n" for word in what).encode())

    def fail(self, text: str) -> None:
        """Something must not be."""
        os.write(self._failed, f"process {os.getpid()}: {text}\n".encode())

    def alive(self) -> None:
        """Said before each step: PATIENCE begins anew."""
        signal.alarm(PATIENCE)

    def look(self) -> None:
        """Count what was done since the last look; AssertionError if anything failed."""
        new = os.pread(self._did, 1 << 24, self._read)
        self._read += len(new)
        self.count.update(new.decode().split())
        failed = os.pread(self._failed, 1 << 16, 0).decode()
        assert not failed, failed

    def born(self, life: Callable[[], None]) -> int:
        """Fork a process that lives this life and ends; its number."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self.alive()
            life()
            code = 0
        except BaseException:
            self.fail(traceback.format_exc())
        finally:
            os._exit(code)

    def reaped(self, pid: int, status: int) -> None:
        """Whoever waited for a process says how it ended: by itself, or killed by the watcher."""
        if os.waitstatus_to_exitcode(status) not in (0, -9):
            self.fail(f"process {pid} ended with status {status:#x}")
