"""Processes on one store that a test directs from outside, stops, and kills.

They are born of a fresh interpreter that has loaded everything, so that a birth takes milliseconds
and inherits nothing of the test runner; calls of the extension can be stopped at (``pause.c``).
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import traceback
from typing import Any

from ksmpy import Engine, Store

from . import pause
from .patience import patience, until
from .procs import PATIENCE, environment, state_and_parent
from .sharer import Sharer

BIGGEST = 1 << 20


class Peer:
    """One such process. Its methods are those of a Sharer, by their names."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    def start(self, name: str, *args: Any) -> None:
        """Let it call a method; :meth:`answer` waits for the end."""
        self._connection.send(pickle.dumps((name, args)))

    def answered(self, seconds: float) -> bool:
        """Whether a method has come to its end, or the process to its own, by then."""
        return bool(select.select([self._connection], [], [], seconds)[0])

    def answer(self) -> Any:
        """What the method returned; AssertionError with its traceback if it raised."""
        assert self.answered(PATIENCE), f"process {self.pid} hangs"
        message = self._connection.recv(BIGGEST)
        assert message, f"process {self.pid} died"
        right, value = pickle.loads(message)
        assert right, f"process {self.pid}:\n{value}"
        return value

    def call(self, name: str, *args: Any) -> Any:
        """Call a method and wait for its end."""
        self.start(name, *args)
        return self.answer()

    def stop(self, function: str, nth: int, locked: bool, work: str, *args: Any) -> None:
        """Let it call a method, and wait until it is stopped at a call that the extension makes.

        See Sharer.stopped_at. LookupError when there was no such call.
        """
        self.start("stopped_at", function, nth, locked, work, *args)

        def stopped() -> bool:
            if self._state() == "T":
                return True
            if self.answered(0):
                raise LookupError(f"there were only {self.answer()} calls of {function!r}")
            return False

        until(stopped, f"process {self.pid} hangs", limit=PATIENCE)

    def go_on(self) -> Any:
        """Continue after a stop; what the stopped method returned."""
        os.kill(self.pid, signal.SIGCONT)
        return self.answer()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        until(lambda: not self._state(), f"process {self.pid} survives SIGKILL", limit=PATIENCE)
        self._connection.close()

    def _state(self) -> str:
        """The letter of its state; empty when there is no such process."""
        try:
            return state_and_parent(self.pid)[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""


class Nursery:
    """Where peers are born; all of them are gone after :meth:`close`."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        command = [sys.executable, "-X", "faulthandler", "-m", "support.nursery"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env=environment(pause.preloaded({})),
                pass_fds=[theirs.fileno()],
            )
        self._peers: list[Peer] = []

    def born(self, store: Store) -> Peer:
        """A process that has a handle of the store, and no engine yet."""
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._connection, [b"."], [theirs.fileno(), store.fileno()])
        peer = Peer(int(self._connection.recv(16)), ours)
        self._peers.append(peer)
        return peer

    def reap_all(self) -> None:
        """End all peers."""
        while self._peers:
            self._peers.pop().kill()

    def close(self) -> None:
        """End everything."""
        self.reap_all()
        self._connection.close()
        assert self._process.wait(patience(10)) == 0


def _serve(connection: socket.socket, fd: int) -> None:
    with Store.from_fd(fd) as store:
        sharer = Sharer(store)
        while message := connection.recv(BIGGEST):
            name, args = pickle.loads(message)
            try:
                answer = True, getattr(sharer, name)(*args)
            except BaseException:
                answer = False, traceback.format_exc()
            connection.send(pickle.dumps(answer))


def _give_birth(connection: socket.socket) -> None:
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 1, 2)
        if not message:
            return
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            try:
                _serve(socket.socket(fileno=fds[0]), fds[1])
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        connection.send(str(pid).encode())


def main() -> None:
    """Serve a :class:`Nursery`, whose descriptor is given."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are gone at once
    Engine().close()  # loads the extension
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _give_birth(connection)


if __name__ == "__main__":
    main()
