"""Limits that leave no room: errors name them, and doctor() always answers."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ksmpy
from conftest import EACH_FREEZE, Mode
from ksmpy import proc
from ksmpy.memory import maps
from support import inject, memory
from support.patience import until
from support.procs import python

pytestmark = pytest.mark.timeout(120)

LIMITED = """
import os, resource, sys
import ksmpy
from ksmpy.watch import doctor
from ksmpy.engine import engine

work, kind, limit = sys.argv[1:]
number = getattr(resource, kind)
resource.setrlimit(number, (int(limit), resource.getrlimit(number)[1]))
held = []
if kind == "RLIMIT_NOFILE":
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
exec(work)
"""

DOCTOR = """
checks = ksmpy.doctor()
os.closerange(min(held, default=900), 1000)
for check in checks:
    assert len(str(check.detail).splitlines()) <= 1, check
print(*(f"{check.name}: {check.detail} {check.hint}" for check in checks), sep="\\n")
"""

ENGINE = """
try:
    ksmpy.Engine()
except (OSError, ksmpy.KsmpyError) as error:
    os.closerange(min(held, default=900), 1000)
    print(error)
"""

GIVE_BACK = """
import os, resource, sys, threading
from contextlib import contextmanager
import ksmpy
from ksmpy.watch import doctor
from support import memory
from support.inject import Injector

engine = ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2])
injector = Injector()
one = memory.distinct(1024)
two = memory.twin(one)
for array in (one, two):
    engine.register(array)
engine.scan(eager=True)
assert engine.stats().pages_sharing == 1024
one[:: 2 * 4096] ^= 1
wanted = one.tobytes(), two.tobytes()
threading.Thread(target=threading.Event().wait, daemon=True).start()

@contextmanager
def no_number():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

full = no_number() if sys.argv[3] == "RLIMIT_NOFILE" else injector.failing_kind("open", 1)
with full:
    for give_back in (engine.unmerge, engine.close):
        try:
            give_back()
        except OSError as error:
            print(error.errno, error)
    assert {check.name for check in ksmpy.doctor()} >= {"engine", "mappings", "swap"}
assert (one.tobytes(), two.tobytes()) == wanted
engine.close()
with open("/proc/self/maps") as maps:
    assert "memfd:ksmpy" not in maps.read()
assert (one.tobytes(), two.tobytes()) == wanted
"""

FILE_SIZE = """
import resource, signal, sys
import ksmpy
from support import memory

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
one = memory.distinct(1024)
two = memory.twin(one)
wanted = one.tobytes()
with ksmpy.Engine() as engine:
    for array in (one, two):
        engine.register(array)
    limit = int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    print(engine.scan(eager=True).no_memory > 0)
for store in (None, "limited"):
    try:
        ksmpy.Engine(store=store)
    except (OSError, ksmpy.KsmpyError) as error:
        print(*(word for word in str(error).split() if word.startswith("RLIMIT")))
print(one.tobytes() == two.tobytes() == wanted)
"""

#: What leaves no room for an engine, and the name that an error has to give.
LIMITS = [("RLIMIT_NOFILE", 60), ("RLIMIT_AS", 1 << 30), ("RLIMIT_FSIZE", 1 << 20)]


@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_doctor_always_answers(kind: str, limit: int) -> None:
    """Every check is there, whatever could not be looked at."""
    done = python("-c", LIMITED, DOCTOR, kind, str(limit))
    assert done.returncode == 0, done.stderr
    usual = {check.name for check in ksmpy.doctor()}
    usual -= {"numpy", "mmh3", "psutil", "faults in system calls"}
    told = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert usual <= told
    assert kind in done.stdout


@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_an_engine_that_a_limit_forbids_names_it(kind: str, limit: int) -> None:
    """One line, with the limit and the way out."""
    done = python("-c", LIMITED, ENGINE, kind, str(limit))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert kind in done.stdout and "ulimit" in done.stdout


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_no_limit_of_files_ends_who_does_not_ignore_its_signal(limit: int) -> None:
    """Python ignores SIGXFSZ, but the program may ask for it, as one that embeds Python may."""
    done = python("-c", FILE_SIZE, str(limit))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True", "RLIMIT_FSIZE", "RLIMIT_FSIZE", "True"]


@pytest.mark.parametrize(("kind", "limit"), [*LIMITS[1:], ("RLIMIT_NOFILE", 16)])
@pytest.mark.parametrize("more", [(), ("--report",)], ids=str)
def test_a_program_runs_where_no_engine_can_be_made(
    kind: str, limit: int, more: tuple[str, ...]
) -> None:
    """`ksmpy run` says in one line that a limit keeps it from merging; the program is as ever."""
    number = getattr(resource, kind)

    def limited() -> None:
        resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))

    code = "import os, sys; print('KSMPY_FOLLOW' in os.environ); sys.exit(7)"
    command = [sys.executable, "-m", "ksmpy", "run", *more, "-c", code]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, "False\n"), done.stderr
    assert done.stderr.count("\n") == 1 and kind in done.stderr, done.stderr


def test_a_program_runs_where_its_store_cannot_be_used(tmp_path: Path) -> None:
    """Others may write to the store's directory: nothing is merged there, and a line says so."""
    tmp_path.chmod(0o777)
    options = ("run", "--store", "app", "-c", "print('started')")
    done = python("-m", "ksmpy", *options, env={"KSMPY_STORE_DIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert done.stderr.count("\n") == 1 and str(tmp_path) in done.stderr
    done = python("-m", "ksmpy", "run", "--store", "a/b", "-c", "print('started')")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
@pytest.mark.parametrize(
    ("limit", "number"), [("RLIMIT_NOFILE", errno.EMFILE), ("fs.file-max", errno.ENFILE)]
)
def test_without_any_descriptor_memory_stays_merged(chosen: Mode, limit: str, number: int) -> None:
    """A limit of none, or a full system: what cannot be given back names it, and can be later."""
    if reason := chosen.missing():
        pytest.skip(reason)
    done = python("-c", GIVE_BACK, *chosen, limit, env=inject.preloaded({}))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith(f"{number} ") and limit in line


@pytest.mark.parametrize("passing", ["descriptors", "memory"])
def test_ksmd_goes_on_once_there_is_what_it_lacked(
    passing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may have all in use for a while: the pass waits, and says so once."""
    monkeypatch.setattr(maps.Allowance, "_CREDIT", -1.0)  # what mappings are like is asked later
    one = memory.distinct(64)
    two = memory.twin(one)
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ksmpy.Engine() as engine:
        for array in (one, two):
            engine.register(array)
        if passing == "descriptors":
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, usual[1]))
        else:
            monkeypatch.setattr(maps.proc, "read_smaps", _no_memory)
        try:
            engine.knobs.run, engine.knobs.sleep_millisecs = 1, 1
            until(lambda: "ksmd waits" in caplog.text, "the pass did not miss anything")
            time.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, usual)
            monkeypatch.undo()
        until(lambda: engine.stats().pages_sharing == 64, engine.stats)
        assert engine.knobs.run == 1
    told = [record.message for record in caplog.records if "ksmd" in record.message]
    assert len(told) == 1
    assert passing == "memory" or "RLIMIT_NOFILE are in use" in told[0]


def _no_memory(**_: object) -> list[proc.Mapping]:
    raise MemoryError("no memory")


def test_doctor_answers_when_its_first_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel offers could not be tried: the checks after that are there all the same."""

    def probe() -> dict[str, int]:
        raise MemoryError

    usual = {check.name for check in ksmpy.doctor()}
    monkeypatch.setattr("ksmpy.native.probe", probe)
    told = {check.name: check for check in ksmpy.doctor()}
    assert {"engine", "mappings", "swap", "kernel KSM"} <= usual & told.keys()
    assert told["what the kernel offers"].detail == "cannot be looked at: Cannot allocate memory"


NO_MEMORY = """
import ctypes, resource
import ksmpy
from support import memory
from support.patience import until

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
one = memory.distinct(64)
arrays = [one, memory.twin(one), memory.twin(one)]
with ksmpy.Engine(freeze="signal") as engine:
    for array in arrays:
        engine.register(array)
    engine.scan(2, eager=True)
    for array in arrays:
        array[::4096] += 1
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (0, limits[1]))
    for size in (1 << 20, 65536, 4096, 1024, 256):
        while libc.malloc(ctypes.c_size_t(size)):
            pass
    try:
        for _ in range(3):
            engine.scan(eager=True)
    except (MemoryError, OSError):
        pass
    resource.setrlimit(resource.RLIMIT_AS, limits)

    def is_merged():
        engine.scan(eager=True)
        return engine.stats().pages_sharing >= 126

    until(is_merged, "nothing is merged once there is memory again")
"""


def test_without_memory_nothing_is_merged() -> None:
    """The interpreter, which has none for one thread more, is not asked for its lock."""
    ended = python("-c", NO_MEMORY, env={"MALLOC_ARENA_MAX": "1"})
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
