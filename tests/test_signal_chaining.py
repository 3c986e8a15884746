"""The SIGSEGV handler of freeze="signal" takes nothing away from those before and after it.

Each case runs in a process of its own, since most of them end it.
"""

from __future__ import annotations

import signal
import subprocess

import pytest

from support.procs import python

pytestmark = pytest.mark.timeout(60)

_ENGINE = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
import ksmpy
from support import memory, oracle
one = memory.distinct(32); two = memory.twin(one)
def merge():
    engine = ksmpy.Engine(freeze="signal", tracking="checksum")
    engine.register(one); engine.register(two)
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(one), memory.span(two)]) == 32
    one[5] ^= 1
    engine.unmerge()
    one[5] ^= 1
    engine.scan(2, eager=True)
    return engine
def bad_access():
    ctypes.string_at(8)
def bad_write():
    raw = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    address = int(__import__("numpy").frombuffer(raw, dtype="u1").ctypes.data)
    ctypes.memset(address, 1, 1)
"""

_HANDLER = """
libc = ctypes.CDLL(None)
jumps = []
Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
class Sigaction(ctypes.Structure):
    _fields_ = [("handler", Handler), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]
@Handler
def repair(number, info, context):
    address = ctypes.c_uint64.from_address(info + 16).value
    jumps.append(address)
    libc.mprotect(ctypes.c_void_p(address & ~4095), ctypes.c_size_t(4096), 3)
def install():
    action = Sigaction(repair, (ctypes.c_uint64 * 16)(), 4, None)  # SA_SIGINFO
    assert libc.sigaction(11, ctypes.byref(action), None) == 0
def use():
    raw = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    address = int(__import__("numpy").frombuffer(raw, dtype="u1").ctypes.data)
    before = len(jumps)
    ctypes.memset(address, 1, 1)
    assert len(jumps) == before + 1 and jumps[-1] == address, jumps
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return python("-c", _ENGINE + code, seconds=30)


@pytest.mark.parametrize("access", ["bad_access", "bad_write"])
@pytest.mark.parametrize(
    "order",
    [
        "faulthandler.enable(); engine = merge()",
        "engine = merge(); faulthandler.enable(); merge_again = engine.scan(2, eager=True)",
        "faulthandler.enable(); engine = merge(); engine.close()",
        "faulthandler.enable(); engine = merge(); engine.close(); engine = merge()",
    ],
    ids=["before", "after", "closed", "reopened"],
)
def test_faulthandler_still_speaks(order: str, access: str) -> None:
    """A fault that is not ours reaches faulthandler, which prints, and the process dies of it."""
    done = _run(f"{order}\n{access}()\nprint('survived')")
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr)
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert access in done.stderr, "the traceback does not name the culprit"
    assert "survived" not in done.stdout


@pytest.mark.parametrize("access", ["bad_access", "bad_write"])
def test_the_default_action_still_kills(access: str) -> None:
    """With no handler before us a wild access ends the process by SIGSEGV, at once."""
    done = _run(f"engine = merge()\n{access}()")
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr)


def test_a_fault_in_another_thread_kills_too() -> None:
    """Not only the main thread's faults are handed on."""
    done = _run(
        "faulthandler.enable(); engine = merge()\n"
        "t = threading.Thread(target=bad_access); t.start(); t.join()"
    )
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr)
    assert "Segmentation fault" in done.stderr


def test_raise_and_kill_are_handed_on() -> None:
    """SIGSEGV sent by a process carries no address, and still reaches its handler."""
    for send in ("signal.raise_signal(signal.SIGSEGV)", "os.kill(os.getpid(), signal.SIGSEGV)"):
        done = _run(f"faulthandler.enable(); engine = merge()\n{send}\nprint('survived')")
        assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr)
        assert "Segmentation fault" in done.stderr


@pytest.mark.parametrize(
    "order",
    [
        "install(); use(); engine = merge(); use()",
        "engine = merge(); install(); use(); engine.scan(2, eager=True); use()",
        "install(); engine = merge(); engine.close(); use(); engine = merge(); use()",
        "install(); a = merge(); a.close(); one[0] ^= 1; one[0] ^= 1; b = merge(); use(); use()",
    ],
    ids=["before", "after", "reopened", "twice"],
)
def test_a_handler_that_repairs_faults_keeps_working(order: str) -> None:
    """A runtime that handles its own faults (as garbage collectors do) gets each of them once."""
    done = _run(f"{_HANDLER}\n{order}\nwanted = two.tobytes()\nuse()\nprint('fine')")
    assert done.returncode == 0 and "fine" in done.stdout, (done.returncode, done.stderr)


def test_writers_wait_while_a_foreign_handler_was_installed_later() -> None:
    """A handler installed after us does not see the faults of pages that we hold for a moment."""
    done = _run(
        _HANDLER
        + """
engine = merge()
install()
from support.torture import Torture
merged = 0
with Torture(count=64, buffers=2, efault_ok=True, syscalls=0) as torture:
    regions = [engine.register(buffer) for buffer in torture.buffers]
    for _ in range(100):
        merged += engine.scan(eager=True).merged
    engine.unmerge()
assert merged > 64 and not jumps, (merged, jumps)
print("fine")
"""
    )
    assert done.returncode == 0 and "fine" in done.stdout, (done.returncode, done.stderr)


def test_signal_disposition_of_a_child() -> None:
    """A forked child dies of its own faults as any other process."""
    done = _run(
        "engine = merge()\npid = os.fork()\nif pid == 0:\n    bad_access()\n"
        "status = os.waitpid(pid, 0)[1]\nprint(os.waitstatus_to_exitcode(status))"
    )
    assert done.stdout.strip() == str(-signal.SIGSEGV), (done.stdout, done.stderr)
