"""Runs a command, hands on the signals that it would have got, and ends as it does."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import NoReturn

from ksmpy.errors import CommandError
from ksmpy.store.store import Store
from ksmpy.whole.tally import Tally, isolated

__all__ = ["supervise"]

_PR_SET_PDEATHSIG = 1
# siginfo.si_code of what a terminal sends, to the whole process group, the command included.
_SI_KERNEL = 0x80
# Those of errors, and those that stop this process together with the command.
_NOT_HANDED_ON = {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD, signal.SIGPIPE,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT,
    signal.SIGSYS,
}  # fmt: skip


def supervise(command: list[str], environ: dict[str, str], store: Store, *, report: bool) -> int:
    """Run it and return its exit code; by a signal that ended it this process is ended too.

    Raises CommandError when it cannot be started.
    """
    handed_on = signal.valid_signals() - _NOT_HANDED_ON
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_DFL) == signal.SIG_IGN
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handed_on | {signal.SIGCHLD})
    said = isolated(command)
    if said:
        _say_left_alone(" ".join(command[:3]))
    pid = _start(command, environ, mask, ignored)
    tally = Tally(pid, store, report)
    while True:
        seconds = tally.seconds_left()
        info = signal.sigtimedwait(handed_on | {signal.SIGCHLD}, seconds)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if info is None:
            tally.look_if_due()
            if tally.left_alone and not said:
                said = True
                _say_left_alone(tally.left_alone)
        elif info.si_signo != signal.SIGCHLD and _only_ours(info):
            os.kill(pid, info.si_signo)
    if report:
        print(tally.report(), file=sys.stderr, flush=True)
    store.close()
    if os.WIFSIGNALED(status):
        _end_by(os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


def _say_left_alone(command: str) -> None:
    print(
        f"ksmpy: {command!r} is left alone: with -I, -E or -S an interpreter lets nobody in",
        file=sys.stderr,
        flush=True,
    )


def _only_ours(info: signal.struct_siginfo) -> bool:
    """Whether the command has not got it from its terminal, which tells a whole process group."""
    if info.si_code != _SI_KERNEL:
        return True
    # A terminal that hangs up tells the session's leader first.
    return info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid()


def _start(command: list[str], environ: dict[str, str], mask: set[int], ignored: bool) -> int:
    """Fork and exec; the command finds signals as this process found them."""
    reading, writing = os.pipe()
    libc = ctypes.CDLL(None)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            # Who kills this process means the command.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            # The interpreter ignores these for itself.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            if ignored:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvpe(command[0], command, environ)
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


def _end_by(number: int) -> NoReturn:
    """End as the command did, without a second core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        signal.signal(number, signal.SIG_DFL)
    except OSError:  # SIGKILL has no other way
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)
