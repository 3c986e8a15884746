"""Without /proc, as in a chroot, no engine is made; one that is there already gives all back."""

from __future__ import annotations

import pytest

import ksmpy
from conftest import EACH_FREEZE, Mode
from support.procs import python

pytestmark = pytest.mark.timeout(120)

HIDDEN = """
import ctypes, os, sys, threading
import ksmpy
from ksmpy.watch import doctor
from ksmpy.engine import engine
from ksmpy.whole import enable as enabling
from support import memory

NEWNS, NEWUSER, PRIVATE, RECURSIVE = 0x20000, 0x10000000, 1 << 18, 1 << 14
libc = ctypes.CDLL(None, use_errno=True)


def hide():
    # A thread cannot enter a user namespace while others live: so root is to do without one.
    flags = NEWNS if os.geteuid() == 0 else NEWNS | NEWUSER
    if (
        libc.unshare(flags)
        or libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None)
        or libc.mount(b"none", b"/proc", b"tmpfs", 0, None)
    ):
        print("cannot hide /proc here:", os.strerror(ctypes.get_errno()))
        sys.exit(77)
    assert not os.path.exists("/proc/self")
"""

DOCTOR = """
ksmpy.doctor()
hide()
for check in ksmpy.doctor():
    assert len(str(check.detail).splitlines()) <= 1, check
    print(f"{check.name}: {check.detail} {check.hint}")
"""

ENGINE = """
hide()
for make in (ksmpy.Engine, lambda: ksmpy.Engine(freeze="signal", tracking="checksum")):
    try:
        make()
    except ksmpy.Unsupported as error:
        print(error)
"""

MERGED = """
engine = ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2])
one = memory.distinct(1024)
two, plain = memory.twin(one), one.tobytes()
for array in (one, two):
    engine.register(array)
engine.scan(eager=True)
assert engine.stats().pages_sharing == 1024
"""

ALIVE = """
import resource
if os.geteuid() == 0:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
one[:: 2 * 4096] ^= 1
wanted = one.tobytes()
with open("/proc/self/maps") as maps:
    hide()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    engine.close()
    maps.seek(0)
    assert "memfd:ksmpy" not in maps.read()
assert one.tobytes() == wanted and two.tobytes() == plain
"""


CHILD = """
import traceback
told, tell = os.pipe()
child = os.fork()
if not child:
    status = 1
    try:
        one[:: 2 * 4096] ^= 1
        wanted = one.tobytes()
        with open("/proc/self/maps") as maps:
            hide()
            try:
                engine.close()
            except (OSError, ksmpy.KsmpyError) as error:
                os.write(tell, str(error).encode())
            maps.seek(0)
            if "memfd:ksmpy" in maps.read():
                os.write(tell, b" MERGED")
        assert one.tobytes() == wanted and two.tobytes() == plain
        status = 0
    except SystemExit as left:
        status = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
os.close(tell)
said = os.read(told, 4096).decode()
print(said)
assert one.tobytes() == two.tobytes() == plain
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
engine.close()
sys.exit(status)
"""


def _without_proc(work: str, *arguments: str) -> str:
    done = python("-c", HIDDEN + work, *arguments)
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_doctor_answers() -> None:
    """Every check is there, and one that names what is missing."""
    told = _without_proc(DOCTOR)
    usual = {check.name for check in ksmpy.doctor()} - {"faults in system calls"}
    assert usual <= {line.split(":")[0] for line in told.splitlines()}
    assert "/proc: /proc is not mounted here mount -t proc" in told


def test_no_engine_is_made() -> None:
    """One line, with what is missing and the way out."""
    told = _without_proc(ENGINE).splitlines()
    assert len(told) == 2
    for line in told:
        assert "/proc is not mounted here" in line and "mount -t proc" in line


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_what_is_merged_is_given_back(chosen: Mode) -> None:
    """With written pages and other threads, and with no descriptor left."""
    if reason := chosen.missing():
        pytest.skip(reason)
    _without_proc(MERGED + ALIVE, *chosen)


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_a_forked_child_loses_nothing(chosen: Mode) -> None:
    """What it inherited is given back there as well, or stays merged and says why."""
    if reason := chosen.missing():
        pytest.skip(reason)
    told = _without_proc(MERGED + CHILD, *chosen).strip()
    assert not told or "/proc" in told
