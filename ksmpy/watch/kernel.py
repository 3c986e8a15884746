"""The kernel's own KSM: its settings, its counters, and what it does for this process.

Names are those of ``/sys/kernel/mm/ksm`` (admin-guide/mm/ksm in the kernel's documentation).
Reading needs no privileges; writing a knob needs root. Nothing here uses the engine, so it serves
as its oracle and its yardstick.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ksmpy import proc
from ksmpy.errors import KsmpyError, Unsupported

__all__ = [
    "Availability",
    "available",
    "in_use",
    "ksmd_seconds",
    "merge_process",
    "mergeable",
    "process_merging",
    "process_stat",
    "read",
    "settings",
    "settle",
    "unmergeable",
    "write",
]

SYSFS = Path("/sys/kernel/mm/ksm")

# How many seconds a knob that is refused for a moment (EBUSY) is tried again when it is restored.
_RESTORE_SECONDS = 10.0

# From linux/mman.h and linux/prctl.h.
_MADV_MERGEABLE = 12
_MADV_UNMERGEABLE = 13
_PR_SET_MEMORY_MERGE = 67
_PR_GET_MEMORY_MERGE = 68

# Counters that stand still once everything that can merge has merged. pages_unshared and
# pages_volatile are not among them: the pass that is under way moves pages between the two all the
# time.
_SETTLING = (
    "pages_shared",
    "pages_sharing",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
)

Value = int | str


@dataclass(frozen=True)
class Availability:
    """True where the kernel's KSM can be used; `reason` says why not (empty when it can)."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.reason or "the kernel's KSM can be used"


def available(*, writable: bool = True) -> Availability:
    """Whether the kernel has KSM and (unless `writable` is false) this process may change its
    settings.
    """
    if not SYSFS.is_dir():
        return Availability(False, f"this kernel has no KSM ({SYSFS} is missing)")
    if writable:
        # access(2) alone would say yes to root in a container that mounts sysfs read-only.
        try:
            os.close(os.open(SYSFS / "run", os.O_WRONLY))
        except OSError as error:
            return Availability(False, f"{SYSFS}/run cannot be written: {error.strerror}")
    return Availability(True)


def in_use() -> bool:
    """Whether another program is inside its own `settings`: ours would have to wait for its end."""
    if _machine.depth:
        return False
    descriptor = os.open(SYSFS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _require(*, writable: bool) -> None:
    state = available(writable=writable)
    if not state:
        raise Unsupported(state.reason)


def _parse(text: str) -> Value:
    text = text.strip()
    if "[" in text:  # "[none] scan-time": the chosen one of several words
        return text[text.index("[") + 1 : text.index("]")]
    try:
        return int(text)
    except ValueError:
        return text


def read() -> dict[str, Value]:
    """Every setting and counter by name; `Unsupported` when the kernel has no KSM."""
    _require(writable=False)
    return {path.name: _parse(path.read_text()) for path in sorted(SYSFS.iterdir())}


def write(name: str, value: Value) -> None:
    """Set one knob. OSError with the kernel's errno (EINVAL, EBUSY, EACCES) when it refuses."""
    if not name.isidentifier():
        raise ValueError(f"not the name of a knob: {name!r}")
    path = SYSFS / name
    # One write(2): the kernel parses each call by itself. The name must exist: sysfs never creates
    # files.
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _writable_knobs(values: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if (SYSFS / name).stat().st_mode & 0o200}


def _apply(values: dict[str, Value]) -> None:
    """Write several knobs in an order in which the kernel accepts them all.

    advisor_mode before pages_to_scan, which switching the advisor changes and the advisor refuses;
    run last.
    """
    last = {"advisor_mode": 0, "pages_to_scan": 1, "run": 3}
    for name in sorted(values, key=lambda name: last.get(name, 2)):
        if name == "run" or read().get(name) != values[name]:
            write(name, values[name])


class _Machine:
    """Keeps the settings of the machine for one process at a time, and puts them back.

    The kernel's KSM is one for all processes, so two programs that measure with it would spoil
    each other's figures: an advisory lock on its directory makes the second one wait for the
    first.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0
        self.descriptor = -1

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            if self.depth == 0:
                descriptor = os.open(SYSFS, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except BaseException:
                    os.close(descriptor)
                    raise
                self.descriptor = descriptor
            self.depth += 1
        except BaseException:
            self.lock.release()
            raise

    def __exit__(self, *_exception: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            os.close(self.descriptor)
        self.lock.release()


_machine = _Machine()


def _way_back(saved: dict[str, Value]) -> list[tuple[str, Value]]:
    """What to write, in this order, to have everything unmerged and every knob as it was."""
    knobs = dict(saved)
    run = knobs.pop("run")
    if knobs.get("advisor_mode") == "scan-time":
        del knobs["pages_to_scan"]  # the advisor sets it itself, and refuses others
    return [("run", 2), *knobs.items(), ("run", run)]


def _write_back(name: str, value: Value) -> None:
    """Two of the knobs are refused (EBUSY) while anything is merged, which a process that does not
    know of this lock, or a page that was just on its way somewhere, may bring about for a moment.
    """
    deadline = time.monotonic() + _RESTORE_SECONDS
    while True:
        try:
            _apply({name: value})
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
        write("run", 2)


def _restore(saved: dict[str, Value]) -> None:
    """Go all of the way back; one knob that is refused does not keep the others from it."""
    failed: list[str] = []
    for name, value in _way_back(saved):
        try:
            _write_back(name, value)
        except OSError as error:
            failed.append(f"{name}: {error.strerror}")
    if failed:
        raise KsmpyError("could not restore the kernel's KSM settings: " + "; ".join(failed))


# The program of the guard process. It waits for a word from its parent. If the pipe ends without
# one, the parent was killed, and the guard restores the settings itself.
_GUARD = """
trap '' HUP INT TERM
read -r word && exit
cd "$1" && shift && for step; do echo "${step#*=}" > "${step%%=*}"; done
"""


@contextlib.contextmanager
def _guard(saved: dict[str, Value]) -> Iterator[None]:
    """Have a process of its own restore the settings, should this one be killed outright.

    It holds the machine's lock as well, so that nobody takes half-restored settings for granted.
    """
    import subprocess

    steps = [f"{name}={value}" for name, value in _way_back(saved)]
    owner = os.getpid()
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "ksmpy", str(SYSFS), *steps],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(_machine.descriptor,),
        start_new_session=True,
    )
    try:
        yield
    finally:
        if os.getpid() == owner:
            guard.communicate(b"done\n")


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """Turn the default death by SIGTERM or SIGHUP into SystemExit, so that the settings are
    restored.
    """
    replaced: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _leave)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def settings(**values: Value) -> Iterator[dict[str, Value]]:
    """Change knobs for the length of a with block, then unmerge and restore every knob as it was.

    Starts from nothing merged (run 2), so that merge_across_nodes and max_page_sharing may be
    among `values`; `run` is written last (0 when not given). Restores after exceptions, SIGTERM,
    SIGHUP, at interpreter exit and when the process is killed. Blocks while another process is
    inside its own `settings`. Gives the knobs as they were. `Unsupported` when they cannot be
    written.
    """
    _require(writable=True)
    unknown = set(values) - set(_writable_knobs(read()))
    if unknown:
        raise KsmpyError(f"this kernel's KSM has no knob {', '.join(sorted(unknown))}")
    owner = os.getpid()
    with _machine, contextlib.ExitStack() as stack:
        saved = _writable_knobs(read())
        if _machine.depth == 1:  # what inner blocks change is restored with the outermost
            stack.enter_context(_guard(saved))
        stack.enter_context(_ending_signals())

        def restore() -> None:
            # A forked child that leaves the block must not undo its parent's.
            if os.getpid() == owner:
                _restore(saved)

        atexit.register(restore)
        try:
            write("run", 2)
            _apply({"run": 0, **values})
            yield saved
        finally:
            atexit.unregister(restore)
            restore()


def settle(max_seconds: float = 60.0) -> dict[str, Value]:
    """Wait until two whole scans in a row changed no counter of merged pages; the counters then.

    Needs run 1 and something mergeable, else no scan ever ends. TimeoutError after `max_seconds`.
    """
    now = read()
    if now["run"] != 1:
        raise KsmpyError(f"the kernel's KSM does not scan (run is {now['run']})")
    deadline = time.monotonic() + max_seconds
    still, since = now, int(now["full_scans"])
    # The scan under way at the start is not a whole one: two whole scans have passed when three
    # have ended.
    while int(now["full_scans"]) < since + 3:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the kernel's KSM has not settled in {max_seconds:g} s")
        time.sleep(0.005)
        now = read()
        if any(now.get(name) != still.get(name) for name in _SETTLING):
            still, since = now, int(now["full_scans"])
    return now


def ksmd_seconds() -> float:
    """CPU time that the kernel's scanner thread has used since it was started, in steps of a clock
    tick (10 ms).

    `Unsupported` where its thread cannot be seen, as in a container with a process table of its
    own.
    """
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes end meanwhile
            if proc.command(path.name) == "ksmd":
                fields = proc.stat(path.name)
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    raise Unsupported("the kernel's thread ksmd cannot be seen here")


_libc: ctypes.CDLL | None = None


def _call(name: str, *arguments: Any) -> int:
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    result = int(_libc[name](*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _advise(address: int, length: int, advice: int) -> None:
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + length) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= start:
        raise ValueError(f"no whole page in {length} bytes at {address:#x}")
    _call("madvise", ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(advice))


def mergeable(address: int, length: int) -> None:
    """Offer the whole pages of a range of this process to the kernel's KSM:
    madvise(MADV_MERGEABLE).

    `address` and `length` in bytes; ValueError when they hold no whole page, OSError when the
    kernel refuses.
    """
    _advise(address, length, _MADV_MERGEABLE)


def unmergeable(address: int, length: int) -> None:
    """Take a range back: its merged pages get memory of their own again, now.

    The kernel's counters follow when its scanner next comes by. OSError ENOMEM without memory.
    """
    _advise(address, length, _MADV_UNMERGEABLE)


def merge_process(enabled: bool = True) -> None:
    """Offer all of this process's memory, and its future children's and programs', to the kernel's
    KSM.

    prctl(PR_SET_MEMORY_MERGE), Linux 6.4; needs CAP_SYS_RESOURCE. OSError EINVAL on older kernels,
    EPERM without.
    """
    zero = ctypes.c_ulong(0)
    _call("prctl", _PR_SET_MEMORY_MERGE, ctypes.c_ulong(int(enabled)), zero, zero, zero)


def process_merging() -> bool:
    """Whether `merge_process` is in force for this process."""
    zero = ctypes.c_ulong(0)
    return bool(_call("prctl", _PR_GET_MEMORY_MERGE, zero, zero, zero, zero))


def process_stat(pid: int | str = "self") -> dict[str, Value]:
    """The kernel's KSM counters of one process, from /proc/PID/ksm_stat (Linux 6.1; some fields
    are newer).

    ksm_process_profit is in bytes, the others in pages. `Unsupported` on kernels without the file.
    """
    path = Path("/proc", str(pid), "ksm_stat")
    try:
        text = path.read_text()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ProcessLookupError(f"no process {pid}") from None
        raise Unsupported("this kernel has no /proc/PID/ksm_stat (Linux 6.1 and later)") from None
    pairs = (line.replace(":", " ").split(None, 1) for line in text.splitlines() if line.strip())
    return {name: _parse(value) for name, value in pairs}
