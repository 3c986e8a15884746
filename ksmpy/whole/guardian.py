"""Waits for a command, hands on the signals that it would have got, and ends as it does.

`ksmpy run` becomes this, alone in an interpreter without its site: what else it has imported would
take 10 MiB as long as the program runs. So nothing is imported here that is not built in, neither
os nor signal.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Watch(Protocol):
        """Looks at the processes below the command from time to time."""

        @property
        def left_alone(self) -> str:
            """The command of one that ksmpy cannot follow, once there is one."""

        def seconds_left(self) -> float:
            """How long the next look may wait."""

        def look_if_due(self) -> None:
            """Look, if it is time."""


__all__ = ["Isolated", "below", "command_line", "end_as", "guard", "handed_on", "isolated"]

# siginfo.si_code of a signal that a terminal sends: it goes to the whole process group, and so to
# the command as well.
_SI_KERNEL = 0x80
_FAULTS = {
    _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP,
    _signal.SIGABRT, _signal.SIGSYS,
}  # fmt: skip
# The signals of errors in this process itself, and those that are to stop it like the command.
_NOT_HANDED_ON = _FAULTS | {
    _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGTSTP, _signal.SIGCONT, _signal.SIGCHLD,
    _signal.SIGPIPE,
}  # fmt: skip

_FIRST_SECONDS = 0.25
_IDLE_SECONDS = 30.0

_TAKE_A_VALUE = "WX"
_END_OF_OPTIONS = "cm"


def handed_on() -> set[int]:
    """The signals that are the command's."""
    return {int(each) for each in _signal.valid_signals()} - _NOT_HANDED_ON


def guard(pid: int, watch: Watch, *, said: bool) -> int:
    """Wait for it, with these signals and SIGCHLD blocked; its wait status.

    said: that a process is left alone was told already.
    """
    signals = handed_on()
    while True:
        info = _signal.sigtimedwait(signals | {_signal.SIGCHLD}, watch.seconds_left())
        ended, status = posix.waitpid(pid, posix.WNOHANG)
        if ended:
            return status
        if info is None:
            watch.look_if_due()
            if watch.left_alone and not said:
                said = True
                say_left_alone(watch.left_alone)
        elif info.si_signo != _signal.SIGCHLD and _only_ours(info):
            try:
                posix.kill(pid, info.si_signo)
            except OSError:  # it has become another user's (sudo)
                pass


def say_left_alone(command: str) -> None:
    """Tell whoever reads stderr."""
    say(f"ksmpy: {command!r} is left alone: with -I, -E or -S an interpreter lets nobody in")


def say(text: str) -> None:
    """Print a line to stderr, if anybody reads it: what the command does must not hang on that."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = None  # the interpreter's end would try again, and change the exit code


def _only_ours(info: _signal.struct_siginfo) -> bool:
    """Whether the command did not get the signal as well. It does from a terminal, which sends to a
    whole process group.
    """
    if info.si_code != _SI_KERNEL:
        return True
    # When a terminal hangs up the kernel sends SIGHUP to the leader of the session first.
    return info.si_signo == _signal.SIGHUP and posix.getsid(0) == posix.getpid()


def end_as(status: int) -> int:
    """The exit code of a wait status; by a signal that ended it this process is ended too."""
    if not posix.WIFSIGNALED(status):
        return posix.WEXITSTATUS(status)
    number = posix.WTERMSIG(status)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left a core dump already
    try:
        _signal.signal(number, _signal.SIG_DFL)
    except OSError:  # SIGKILL cannot be given its default action, as it has no other
        pass
    flush()
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {number})
    posix.kill(posix.getpid(), number)
    posix._exit(128 + number)


# ---- the processes below ----------------------------------------------------------------------


def flush() -> None:
    """Whatever was printed so far; a standard file that was closed from the start is None."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            pass


def below(pid: int) -> Iterator[int]:
    """A process and those that it has started, as far as their parents still live."""
    rest = [pid]
    while rest:
        pid = rest.pop()
        yield pid
        try:
            for task in posix.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    rest += map(int, file.read().split())
        except OSError:  # it ended
            pass


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with."""
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []


def isolated(arguments: list[str]) -> bool:
    """Whether these arguments start a Python that ignores PYTHONPATH, or has no sitecustomize."""
    if not arguments or not arguments[0].rpartition("/")[2].startswith(("python", "pypy")):
        return False
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("-") or argument in ("-", "--"):
            return False
        for index, letter in enumerate(argument[1:], 1):
            if letter in "IES":
                return True
            if letter in _END_OF_OPTIONS:
                return False
            if letter in _TAKE_A_VALUE or letter == "-":
                if argument[index + 1 :] == "":
                    next(rest, None)
                break
    return False


class Isolated:
    """Looks whom ksmpy cannot follow."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: set[int] = set()
        self._wait = _FIRST_SECONDS
        self._due = time.monotonic() + self._wait
        self.left_alone = ""

    def seconds_left(self) -> float:
        """How long the next look may wait."""
        return max(0.0, self._due - time.monotonic())

    def look_if_due(self) -> None:
        """Look, if it is time."""
        if self.seconds_left() > 0:
            return
        self.find(list(below(self._pid)))
        self._wait = min(2 * self._wait, _IDLE_SECONDS)
        self._due = time.monotonic() + self._wait

    def find(self, found: list[int]) -> None:
        """Look at those of these processes that are new."""
        for pid in found:
            if self.left_alone or pid in self._known:
                continue
            arguments = command_line(pid)
            if isolated(arguments):
                self.left_alone = " ".join(arguments[:3])
        self._known = set(found)


if __name__ == "__main__":
    _pid, _said = int(sys.argv[1]), sys.argv[2] == "said"
    sys.exit(end_as(guard(_pid, Isolated(_pid), said=_said)))
