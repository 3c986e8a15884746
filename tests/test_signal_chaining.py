"""The SIGSEGV handler of freeze="signal" takes nothing away from those before and after it.

Each case runs in a process of its own, since most of them end it.
"""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from support.build import shared_library
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
        if merged > 640:
            break
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


_PROGRAM = """
lib = ctypes.CDLL({library!r})
lib.handlers_write.argtypes = [ctypes.c_void_p, ctypes.c_double]
PLAIN, INFO, IGNORED, DEFAULT = range(4)
LEAP, REPAIR, UNBLOCK_AND_LEAP, FAULT_AGAIN, RETURN = range(5)
WRITE, READ, RAISE = range(3)
ONSTACK, RESTART, NODEFER, RESETHAND = 0x08000000, 0x10000000, 0x40000000, 0x80000000 - (1 << 32)
def install(kind, flags=0, masked=0, leaving=LEAP):
    lib.handlers_install_one(kind, flags, masked, leaving)
def probe(*accesses):
    for access in accesses:
        lib.handlers_probe(access)
        sys.stderr.write(f"after {{access}}: {{lib.handlers_calls()}} calls\\n")
lib.handlers_open()
"""


def _program(code: str) -> subprocess.CompletedProcess[str]:
    library = str(shared_library("handlers"))
    return python("-c", _ENGINE + _PROGRAM.format(library=library) + code, seconds=30)


# How a handler is installed, and what then happens.
_HANDLERS = {
    "leaps": ("install(INFO)", "probe(WRITE, WRITE, READ, READ, WRITE, RAISE)"),
    "leaps-plain": ("install(PLAIN)", "probe(WRITE, WRITE, READ, RAISE)"),
    "unblocks": ("install(INFO, 0, 0, UNBLOCK_AND_LEAP)", "probe(WRITE, WRITE, READ, READ)"),
    "repairs": ("install(INFO, 0, 0, REPAIR)", "probe(WRITE, WRITE, WRITE)"),
    "masks": ("install(INFO, 0, 10)", "probe(WRITE, READ)"),
    "not-deferred": ("install(INFO, NODEFER, 10)", "probe(WRITE, READ)"),
    "onstack": ("install(INFO, ONSTACK)", "probe(WRITE, READ, WRITE)"),
    "once": ("install(INFO, RESETHAND)", "probe(WRITE, WRITE)"),
    "once-raised": ("install(INFO, RESETHAND)", "probe(RAISE, RAISE)"),
    "faults-inside": ("install(INFO, 0, 0, FAULT_AGAIN)", "probe(WRITE)"),
    "faults-inside-not-deferred": ("install(INFO, NODEFER, 0, FAULT_AGAIN)", "probe(WRITE, READ)"),
    "ignored-raise": ("install(IGNORED)", "probe(RAISE, RAISE)"),
    "ignored-fault": ("install(IGNORED)", "probe(WRITE)"),
    "ignored-wild": ("install(IGNORED)", "probe(READ)"),
    "default-raise": ("install(DEFAULT)", "probe(RAISE)"),
    "default-fault": ("install(DEFAULT)", "probe(WRITE)"),
}
_ORDERS = (
    "engine = merge(); {install}; {probe}",
    "{install}; engine = merge(); {probe}",
    "engine = merge(); {install}; engine.unmerge(); engine.scan(2, eager=True); {probe}",
)


# Each code in a child of its own, which ends as programs do; the modules are imported once.
_CHILDREN = """
import json
done = []
for code in {codes!r}:
    written = os.memfd_create("stdout"), os.memfd_create("stderr")
    child = os.fork()
    if not child:
        os.dup2(written[0], 1), os.dup2(written[1], 2)
        exec(code)
        break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [os.pread(fd, 1 << 20, 0).decode() for fd in written]
    done.append([status, *texts])
else:
    print(json.dumps(done))
"""


@pytest.mark.parametrize(("install", "probe"), _HANDLERS.values(), ids=_HANDLERS.keys())
def test_a_handler_is_called_as_the_kernel_would(install: str, probe: str) -> None:
    """A handler sees what it sees without an engine: each call, its mask, its stack, its death."""
    codes = [f"{install}; {probe}"]
    codes += [order.format(install=install, probe=probe) for order in _ORDERS]
    done = _program(_CHILDREN.format(codes=codes))
    assert done.returncode == 0, done.stderr
    alone, *others = json.loads(done.stdout)
    assert len(others) == len(_ORDERS)
    for order, beside in zip(_ORDERS, others, strict=True):
        assert beside[:2] == alone[:2], (order, beside)


def test_a_handler_may_be_installed_again_and_again() -> None:
    """One that is called once (SA_RESETHAND), and installed anew each time, never runs out."""
    done = _program("""
engine = merge()
for round in range(40):
    install(INFO, RESETHAND)
    engine.unmerge()
    engine.scan(2, eager=True)
    probe(WRITE)
assert lib.handlers_calls() == 40
""")
    assert done.returncode == 0, done.stderr


def test_a_handler_that_is_called_may_write_to_regions() -> None:
    """While it runs SIGSEGV is blocked, and a page that were frozen then would kill it."""
    done = _program("""
engine = merge()
install(INFO)
busy = memory.distinct(64); equal = memory.twin(busy)
engine.register(busy); engine.register(equal)
assert engine.scan(2, eager=True).merged, "the engine's handler is before the other one"
stop = threading.Event()
def scan():
    while not stop.is_set():
        engine.scan(2, eager=True)
        equal[::4096] = busy[::4096]
scanner = threading.Thread(target=scan); scanner.start()
lib.handlers_write(busy.ctypes.data, 0.5)
probe(WRITE, READ)
lib.handlers_write(None, 0)
stop.set(); scanner.join()
engine.unmerge()
assert engine.scan(3, eager=True).merged, "merging goes on once the handler was left"
""")
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_too_many_handlers_cost_merges_and_nothing_else() -> None:
    """A program that never ends installing other handlers keeps its bytes, and its handlers."""
    done = _program("""
engine = merge()
one[7] ^= 1  # one of the two pages becomes equal when the other is written
for number in range(1, 31):
    if number in (9, 11, 19):
        continue
    install(INFO, NODEFER, number)
    one[[7, 9000]] ^= 1
    engine.scan(2, eager=True)
    probe(WRITE, READ)
assert engine.stats().pages_busy
assert bytes(one[:4096]) == bytes(two[:4096]) or one[7] != two[7]
""")
    assert done.returncode == 0, (done.returncode, done.stderr)
