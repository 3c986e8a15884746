"""Runs a command, and stays small while it runs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from ksmpy.errors import CommandError
from ksmpy.store.store import Store
from ksmpy.whole import guardian
from ksmpy.whole.tally import Tally

__all__ = ["supervise"]

_PR_SET_PDEATHSIG = 1

# In these systemd tells for whom others are: the sockets that it hands over (LISTEN_FDS), and the
# watchdog. They are the program's, which asks whether the number is its own (sd_listen_fds(3)).
_PID_VARIABLES = ("LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID")


def supervise(command: list[str], environ: dict[str, str], store: Store, *, report: bool) -> int:
    """Run it and return its exit code; by a signal that ended it this process is ended too.

    Without a report the process becomes a smaller one, which does the same. Raises CommandError
    when the command cannot be started.
    """
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_DFL) == signal.SIG_IGN
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, guardian.handed_on() | {signal.SIGCHLD})
    said = guardian.isolated(command)
    if said:
        guardian.say_left_alone(" ".join(command[:3]))
    pid = _start(command, environ, mask, ignored)
    if not report:
        _become_guardian(pid, store, said)
        return guardian.end_as(guardian.guard(pid, guardian.Isolated(pid), said=said))
    tally = Tally(pid, store)
    status = guardian.guard(pid, tally, said=said)
    guardian.say(tally.report())
    store.close()
    return guardian.end_as(status)


def _become_guardian(pid: int, store: Store, said: bool) -> None:
    """Exec the interpreter with nothing but guardian.py; returns where that cannot be.

    Blocked signals stay blocked, and those that came stay pending. The program finds an anonymous
    store by the number of its descriptor here.
    """
    if not sys.executable:
        return
    guardian.flush()
    arguments = [sys.executable, "-I", "-S", guardian.__file__, str(pid), "said" if said else ""]
    try:
        if store.name is None:
            os.set_inheritable(store.fileno(), True)
        os.execv(sys.executable, arguments)
    except OSError:
        pass


def _passed_on(environ: dict[str, str], parent: int) -> dict[str, str]:
    """The environment in this process, of which `parent` was the number before it was forked."""
    own = {name: str(os.getpid()) for name in _PID_VARIABLES if environ.get(name) == str(parent)}
    return {**environ, **own}


def _start(command: list[str], environ: dict[str, str], mask: set[int], ignored: bool) -> int:
    """Fork and exec; the command finds signals as this process found them."""
    reading, writing = os.pipe()
    libc = ctypes.CDLL(None)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            # If this process is killed, the command is to be killed as well.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            # Python ignores these signals in its own process; the command is to find them as usual.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            if ignored:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvpe(command[0], command, _passed_on(environ, parent))
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(pid, 0)
        missing = int(failed) in (2, 20)  # ENOENT, ENOTDIR
        raise CommandError(
            f"{command[0]}: {os.strerror(int(failed))}", code=127 if missing else 126
        )
    return pid
