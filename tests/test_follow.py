"""`ksmpy run` of whole programs: who is followed, and that the program sees nothing of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ksmpy
from ksmpy import KsmpyError, Store, native
from ksmpy.whole import follow
from ksmpy.whole.common import common_store
from ksmpy.whole.guardian import below, isolated
from support import build
from support.patience import patience, until

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=native.missing() or "an engine can be made"
)

MIB = 1 << 20
LIMIT = patience(50)
TREE = str(Path(native.__file__).parents[1])
# Small programs are followed too, soon.
SMALL = {"KSMPY_MIN_BYTES": "65536", "KSMPY_SLEEP_MILLISECS": "1"}

# Loads what all have, says so, and waits until it is told to check it.
LOAD = """
import hashlib, os, pathlib, sys, time
HERE = pathlib.Path(os.environ["HERE"])
HELD = {}

def digest(data):
    return hashlib.sha256(data).hexdigest()

def work(name):
    data = HELD["weights"] = bytearray((HERE / "weights").read_bytes())
    before = digest(data)
    (HERE / f"{name}.pid").write_text(str(os.getpid()))
    while not (HERE / "over").exists():
        time.sleep(0.02)
    assert digest(data) == before
    (HERE / f"{name}.ok").touch()
"""


# For programs: whether there is an engine, within so many seconds.
ENABLED = """
def enabled(seconds=40):
    import sys, time
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        enable = sys.modules.get("ksmpy.whole.enable")
        if getattr(enable, "enabled_engine", lambda: None)() is not None:
            return True
    return False
"""


def environment(**more: str) -> dict[str, str]:
    """Without what the tests' own environment says of ksmpy."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KSMPY_")}
    return {**clean, "PYTHONPATH": TREE, **more}


def command(*arguments: str) -> list[str]:
    """`ksmpy run` with these arguments."""
    return [sys.executable, "-m", "ksmpy", "run", *arguments]


def result(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    options.setdefault("env", environment())
    return subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, **options)


def same(tmp_path: Path, code: str, *arguments: str, **options: Any) -> tuple[int, str, str]:
    """The exit code and the output of a program, which are those of the plain interpreter."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    plain = result([sys.executable, str(script), *arguments], **options)
    told = result(command("--", sys.executable, str(script), *arguments), **options)
    seen = told.returncode, told.stdout, told.stderr
    assert seen == (plain.returncode, plain.stdout, plain.stderr)
    return seen


# ---- who is followed -------------------------------------------------------------------------

FAMILY = """
import multiprocessing, subprocess, sys
from load import HERE, work

def main():
    if os.fork() == 0:
        work("forked")
        os._exit(0)
    children = [
        multiprocessing.get_context(method).Process(target=work, args=(method,))
        for method in ("spawn", "forkserver")
    ]
    for child in children:
        child.start()
    shell = 'cd / && "$0" -c "import load; load.work(\\'shell\\')"'
    called = subprocess.Popen(["/bin/sh", "-c", shell, sys.executable])
    work("first")
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert called.wait() == 0
    assert os.wait()[1] == 0

import os
if __name__ == "__main__":
    main()
"""
NAMES = ("first", "forked", "spawn", "forkserver", "shell")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A program that starts others in every way; all of them load the same 4 MiB."""
    (tmp_path / "load.py").write_text(LOAD)
    (tmp_path / "family.py").write_text(FAMILY)
    (tmp_path / "weights").write_bytes(os.urandom(4 * MIB))
    return tmp_path


@pytest.fixture
def directory() -> Iterator[str]:
    """A folder for stores on tmpfs, of this test alone."""
    import tempfile

    path = tempfile.mkdtemp(dir="/dev/shm")
    yield path
    shutil.rmtree(path)


def start(family: Path, *options: str, **more: str) -> subprocess.Popen[str]:
    """The program, in the background."""
    path = f"{family}{os.pathsep}{TREE}"
    env = environment(**SMALL, HERE=str(family), **more) | {"PYTHONPATH": path}
    arguments = command(*options, str(family / "family.py"))
    return subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True)


@contextmanager
def ending(child: subprocess.Popen[str]) -> Iterator[None]:
    """Kill what is left of it and of those below it if the test fails."""
    try:
        yield
    except BaseException:
        for pid in list(below(child.pid)):
            os.kill(pid, signal.SIGKILL)
        raise


def pids(family: Path) -> set[int]:
    """Who has loaded the weights, and has said so to the end."""
    return {int(said) for path in family.glob("*.pid") if (said := path.read_text())}


def test_every_child_is_followed(family: Path, directory: str) -> None:
    """Forked, spawned, from a fork server or a shell: all merge on one store; no byte is lost."""
    with start(family, "--store", "all", KSMPY_STORE_DIR=directory) as child, ending(child):
        until(lambda: len(pids(family)) == len(NAMES), "not all have started", limit=LIMIT)
        with Store.open("all", create=False, directory=directory) as store:
            pages = 4 * MIB // 4096
            until(
                lambda: (
                    pids(family) <= set(store.processes())
                    and store.stats().pages_sharing > (len(NAMES) - 1) * pages - 64
                ),
                lambda: (store.processes(), store.stats(), pids(family)),
                limit=LIMIT,
            )
        (family / "over").touch()
        _, stderr = child.communicate(timeout=LIMIT)
    assert (child.returncode, stderr) == (0, "")
    assert {path.stem for path in family.glob("*.ok")} == set(NAMES)


def _embedded(name: str = "embedded") -> Path:
    """A program with this interpreter in it; skips where that is no library, or has no headers."""
    library = sysconfig.get_config_var("LDLIBRARY") or ""
    folder = sysconfig.get_config_var("LIBDIR")
    headers = sysconfig.get_path("include")
    if not library.endswith(".so") or not Path(headers, "Python.h").exists():
        pytest.skip("needs the interpreter as a library, and its headers")
    return build.program(
        name, f"-I{headers}", f"-L{folder}", f"-Wl,-rpath,{folder}", f"-l:{library}"
    )


@pytest.mark.parametrize(
    ("first", "then"),
    [("import gc, uwsgi; gc.collect()", ""), ("", "import gc; gc.collect()")],
    ids=["told", "collects"],
)
def test_workers_forked_by_c_code_are_followed(
    family: Path, directory: str, first: str, then: str
) -> None:
    """As uWSGI's are, whose interpreter is not told of the fork: by a hook of uWSGI's, or once they
    collect garbage. What forks them has no thread: a worker would not get the interpreter's lock if
    that had been taken then.
    """
    code = f"""{then}
import os
from load import work
assert len(os.listdir(f"/proc/{{os.getppid()}}/task")) == 1
work(str(os.getpid()))
"""
    env = environment(**SMALL, HERE=str(family), KSMPY_STORE_DIR=directory) | {
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join([str(family), TREE, *sys.path[1:]]),
    }
    arguments = command("--store", "all", "--", str(_embedded()), first, code, "3")
    with subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True) as child:
        with ending(child), Store.open("all", directory=directory) as store:
            pages = 4 * MIB // 4096
            until(
                lambda: len(pids(family)) == 3 and store.stats().pages_sharing > 2 * pages - 64,
                lambda: (store.processes(), store.stats(), pids(family)),
                limit=LIMIT,
            )
            assert pids(family) <= set(store.processes())
            (family / "over").touch()
            _, stderr = child.communicate(timeout=LIMIT)
    assert (child.returncode, stderr) == (0, "")
    assert len(list(family.glob("*.ok"))) == 3


def test_an_interpreter_that_is_started_anew(directory: str) -> None:
    """In each of the interpreters that a process has one after the other there is an engine. In
    Python 3.12 there is one in the first only: what ksmpy imports would end the second by SIGABRT.
    """
    again = sys.version_info[:2] != (3, 12)
    code = f"""{ENABLED}
import os
lives = int(os.environ.get("LIVES", "0")) + 1
os.environ["LIVES"] = str(lives)
held = bytearray(os.urandom(2 << 20))
assert enabled(40 if lives == 1 or {again} else 2) == (lives == 1 or {again})
"""
    told = result(
        command("--", str(_embedded("anew")), code, "3"),
        env=environment(**SMALL, KSMPY_STORE_DIR=directory)
        | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join([TREE, *sys.path[1:]])},
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_an_engine_goes_on_where_c_code_forks(directory: str) -> None:
    """enable() in a worker that was forked past Python's hooks goes on with the engine, and starts
    the thread that the worker does not have.
    """
    first = """
import os, time, ksmpy
data = ksmpy.empty(1 << 20, "u1")
data[:] = memoryview(os.urandom(1 << 12) * 256)
engine = ksmpy.enable(store="all", adopt=False, sleep_millisecs=20000)
engine.register(data)
engine.scan(eager=True)
while not engine.stats().full_scans:
    time.sleep(0.01)
"""
    then = """
before = data.tobytes()
assert ksmpy.enable() is engine
engine.knobs.sleep_millisecs = 1
passes = engine.stats().full_scans
while engine.stats().full_scans == passes:
    time.sleep(0.01)
assert data.tobytes() == before
"""
    told = result(
        [str(_embedded()), first, then, "2"],
        env=environment(KSMPY_STORE_DIR=directory)
        | {
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join([TREE, *sys.path[1:]]),
        },
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_own_store_and_report(family: Path, directory: str) -> None:
    """Without a name they get a store that nobody else sees, and that goes with them; the report
    tells what all of them saved, and how that was measured.
    """
    (family / "weights").write_bytes(os.urandom(32 * MIB))
    with start(family, "--report", KSMPY_STORE_DIR=directory) as child, ending(child):
        until(lambda: len(pids(family)) == len(NAMES), "not all have started", limit=LIMIT)
        until(lambda: all(_merged(pid) > 31 * MIB for pid in pids(family)), "none", limit=LIMIT)
        _await_looks(child.pid)
        (family / "over").touch()
        _, stderr = child.communicate(timeout=LIMIT)
    assert child.returncode == 0
    told = re.fullmatch(
        r"ksmpy: saved ([\d.]+) MiB at the most, [\d.]+ [KM]iB in the mean of [\d.]+ s,"
        r" in (\d+) of (\d+) processes, in which ksmpy itself took ([\d.]+) MiB\n"
        r"ksmpy: PSS of all of them [\d.]+ MiB at the most, [\d.]+ MiB when most was saved,"
        r" [\d.]+ MiB in the mean; looked \d+ times, in \d+ ms of processor time\n",
        stderr,
    )
    assert told, stderr
    assert len(NAMES) <= int(told[2]) <= int(told[3])
    itself = float(told[4])
    assert 1 < itself < 16 * int(told[2])
    # The forked one may have its own from the first, or not.
    assert 88 - itself < float(told[1]) < 192
    assert os.listdir(directory) == []


COST = (
    ENABLED
    + """
import mmap, os, sys, threading, time

def told(seconds=40):
    from ksmpy.watch.savings import observe
    end = time.monotonic() + seconds
    while time.monotonic() < end and not observe(os.getpid()).package_bytes:
        time.sleep(0.02)
    seen = observe(os.getpid())
    print(seen.package_bytes, seen.saved_bytes, flush=True)

def take():
    while len(taken) < 400 and not over:
        taken.append(mmap.mmap(-1, 1 << 20))
        taken[-1].write(os.urandom(1 << 20))
        time.sleep(0)

held = [bytearray(b"held" * (1 << 18)) for _ in range(6)]
taken, over = [], []
thread = threading.Thread(target=take)
thread.start()
assert enabled()
over.append(1)
thread.join()
told()
if os.fork() == 0:
    assert enabled()
    time.sleep(0.5)
    engine = sys.modules["ksmpy.whole.enable"].enabled_engine()
    from ksmpy.engine.engine import core_of
    print(core_of(engine).package_bytes, flush=True)
    os._exit(0)
os.wait()
"""
)


def test_what_ksmpy_itself_takes_is_off_what_is_saved(directory: str) -> None:
    """The engine tells of what importing it took, and of nothing that the program's threads take
    meanwhile; in a forked child next to nothing was imported.
    """
    told = result(
        command("--", sys.executable, "-c", COST),
        env=environment(KSMPY_STORE_DIR=directory, **SMALL),
    )
    assert told.returncode == 0, told.stderr
    (package, saved), (of_child,) = (map(int, line.split()) for line in told.stdout.splitlines())
    assert MIB < package < 30 * MIB
    assert saved <= 6 * MIB - package or saved == 0  # of what is held
    assert of_child < MIB / 2


def _await_looks(pid: int) -> None:
    """The supervisor looks again: it reads nothing in between, which is for a quarter of a second
    at least.
    """
    looks, reads, since = 0, _reads(pid), time.monotonic()
    deadline = since + LIMIT
    while looks < 2:
        assert time.monotonic() < deadline, "nobody looks"
        time.sleep(0.02)
        now = _reads(pid)
        if now != reads:
            looks += time.monotonic() - since > 0.2
            reads, since = now, time.monotonic()


def _reads(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().partition("syscr:")[2].split()[0])


def _merged(pid: int) -> int:
    maps = Path(f"/proc/{pid}/maps").read_text()
    ranges = re.findall(r"^(\w+)-(\w+) \S+p .*/memfd:ksmpy", maps, re.MULTILINE)
    return sum(int(end, 16) - int(first, 16) for first, end in ranges)


def test_short_lived_processes_pay_nothing(tmp_path: Path) -> None:
    """Nothing of ksmpy is imported before there is memory that is worth it, after forks neither."""
    told = same(
        tmp_path,
        """
        import os, subprocess, sys
        look = "import sys; print([name for name in sys.modules if name.startswith('ksmpy')])"
        exec(look)
        subprocess.run([sys.executable, "-c", look], check=True)
        sys.stdout.flush()
        if os.fork() == 0:
            exec(look)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        """,
    )
    assert told == (0, "[]\n" * 3, "")


def test_a_followed_process_imports_little() -> None:
    """Modules that are large, and that ksmpy can do without, are not imported for an engine."""
    code = (
        f"import sys; sys.path = {[TREE, *sys.path]!r}; from ksmpy.whole import follow;"
        " print({'pathlib', 'ipaddress', 'numpy', 'asyncio'} & set(sys.modules))"
    )
    # Without site, as what installs ksmpy editable imports more.
    told = result([sys.executable, "-I", "-S", "-c", code])
    assert told.stdout == "set()\n", told.stderr


@pytest.mark.parametrize(("flags", "threads"), [("", 2), ("t", 1)], ids=["usual", "free-threaded"])
def test_a_free_threaded_interpreter_is_left_alone(flags: str, threads: int) -> None:
    """It cannot have an engine, and nobody may count its objects beside its threads."""
    site = Path(follow.__file__).parent / "site" / "sitecustomize.py"
    code = (
        f"import contextlib, os, runpy, sys; sys.abiflags = {flags!r}\n"
        f"with contextlib.suppress(ImportError):  # no other sitecustomize\n"
        f"    runpy.run_path({str(site)!r})\n"
        f"print(len(os.listdir('/proc/self/task')))"
    )
    told = result([sys.executable, "-S", "-c", code], env=environment(KSMPY_FOLLOW="1"))
    assert (told.stdout, told.stderr) == (f"{threads}\n", "")


def test_who_runs_under_valgrind_is_left_alone(tmp_path: Path) -> None:
    """It has no userfaultfd, and says so on stderr again and again. It is known by what it
    preloads, which is not there here, so that the linker goes on without it.
    """
    code = """
    import os, subprocess, sys
    preload = {"valgrind": "/nowhere/vgpreload_core-amd64-linux.so", "other": "/nowhere/other.so"}
    for name, path in preload.items():
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/task')))"],
            env={**os.environ, "LD_PRELOAD": path}, capture_output=True, text=True,
        )
        print(name, told.stdout.strip(), "nowhere" in told.stderr)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    told = result(command(str(tmp_path / "program.py")))
    assert told.stdout == "valgrind 1 True\nother 2 True\n"


@pytest.mark.parametrize(("name", "threads"), [("qemu-x86_64", 1), ("python-x86_64", 2)])
def test_who_runs_on_an_emulated_processor_is_left_alone(
    name: str, threads: int, tmp_path: Path
) -> None:
    """QEMU is known by the name of its program: here that is a copy of the interpreter."""
    interpreter = tmp_path / name
    shutil.copy(Path(sys.executable).resolve(), interpreter)
    code = "import os; print(len(os.listdir('/proc/self/task')))"
    site = str(Path(follow.__file__).parent / "site")
    variables = environment(KSMPY_FOLLOW="1", PYTHONPATH=site)
    told = result([sys.executable, "-c", code], executable=str(interpreter), env=variables)
    assert (told.stdout, told.stderr) == (f"{threads}\n", "")


def test_who_runs_with_a_sanitizer_is_left_alone() -> None:
    """It ends a program for what ksmpy reads before a block, to see whose malloc that is."""
    asked = ["cc", "-print-file-name=libasan.so"]
    library = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no libasan")
    code = """
    import os, sys, time
    held = [bytearray(b"abcdefg" * (1 << 20)) for _ in range(4)]
    time.sleep(3)
    tasks = len(os.listdir("/proc/self/task"))
    print(held[0] == held[3], "ksmpy.whole.follow" in sys.modules, tasks)
    """
    variables = environment(LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")
    told = result(command("-c", textwrap.dedent(code)), env=variables)
    assert (told.returncode, told.stdout, told.stderr) == (0, "True True 2\n", "")


@pytest.mark.parametrize("isolated", [False, True])
def test_a_subinterpreter_is_left_alone(isolated: bool, tmp_path: Path) -> None:
    """It gets no thread and nothing of ksmpy, also one that is there when the process ends."""
    inside = """
    import os, sys, time
    held = [bytearray(b"abcdefg" * (1 << 18)) for _ in range(8)]
    time.sleep(1)
    print(len(os.listdir("/proc/self/task")), "ksmpy" in sys.modules)
    sys.stdout.flush()
    """
    code = """
    import os, sys
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    sys.modules["ksmpy"] = None  # none of its threads here either, as they would be counted
    old = sys.version_info < (3, 13)
    how = {"isolated": ISOLATED} if old else {"config": "isolated" if ISOLATED else "legacy"}
    ids = [interpreters.create(**how) for _ in range(2)]
    print(len(os.listdir("/proc/self/task")))
    sys.stdout.flush()
    interpreters.run_string(ids[0], INSIDE)
    interpreters.run_string(ids[0], INSIDE)
    interpreters.destroy(ids[0])
    """
    script = tmp_path / "program.py"
    given = f"INSIDE = {textwrap.dedent(inside)!r}\nISOLATED = {isolated}\n"
    script.write_text(given + textwrap.dedent(code))
    # Python 3.14 and later warn of the one that is there at the end.
    env = environment(**SMALL, PYTHONWARNINGS="ignore:remaining subinterpreters:RuntimeWarning")
    told = result(command(str(script)), env=env)
    assert (told.returncode, told.stdout, told.stderr) == (0, "2\n2 False\n2 False\n", "")


@pytest.mark.parametrize("others", [False, True])
def test_objects_of_other_interpreters_are_not_counted(others: bool, tmp_path: Path) -> None:
    """They change while they are counted. There may be some once the module is there."""
    code = """
    import os, sys, time
    if OTHERS:
        try:
            import _interpreters
        except ImportError:
            import _xxsubinterpreters
    count, asked = sys.getallocatedblocks, []
    def counted():
        asked.append(os.path.basename(sys._getframe(1).f_code.co_filename))
        return count()
    sys.getallocatedblocks = counted
    held = bytearray(os.urandom(2 << 20))
    end = time.monotonic() + 60
    while "ksmpy.whole.enable" not in sys.modules and time.monotonic() < end:
        time.sleep(0.05)
    print("ksmpy.whole.enable" in sys.modules, "sitecustomize.py" in asked)
    """
    script = tmp_path / "program.py"
    script.write_text(f"OTHERS = {others}\n" + textwrap.dedent(code))
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stdout) == (0, f"True {not others}\n"), told.stderr


def test_forks_while_the_engine_starts(tmp_path: Path) -> None:
    """A child that is forked at any moment of it finds no module locked, and ends as ever."""
    code = """
    import os, sys, time
    held = bytearray(os.urandom(2 << 20))
    begin, started = time.monotonic(), False
    while time.monotonic() < begin + 1.5 or (not started and time.monotonic() < begin + 20):
        started = "ksmpy.whole.enable" in sys.modules
        pid = os.fork()
        if pid == 0:
            import ctypes, dataclasses, logging, mmap, pickle, typing
            logging.getLogger("x").debug("x")
            os._exit(7)
        assert os.waitpid(pid, 0)[1] == 7 << 8
    print(started)
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


def test_a_fork_waits_while_logging_is_imported(tmp_path: Path) -> None:
    """Its lock is taken before that fork as it is released after it, and is nobody's then."""
    code = """
    import os, sys, threading, time

    class Slow:
        waiting = threading.Event()

        def find_spec(self, name, path=None, target=None):
            if name == "logging" and not Slow.waiting.is_set():
                Slow.waiting.set()
                time.sleep(0.5)

    sys.meta_path.insert(0, Slow())
    assert "logging" not in sys.modules
    held = bytearray(os.urandom(1 << 22))
    assert Slow.waiting.wait(30)
    if os.fork() == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    import logging
    free = threading.Thread(target=logging.getLogger, args=("other",), daemon=True)
    free.start()
    free.join(10)
    assert not free.is_alive()
    for _ in range(3):
        if os.fork() == 0:
            logging.getLogger("child")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    print("done")
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(code))
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# The interpreter itself lets no fork happen within find_spec(): so the module's code waits.
_SLOW = """
import importlib.machinery, os, sys, threading, time

class Slow:
    reached = threading.Event()

    def find_spec(self, name, path=None, target=None):
        if name != "ksmpy.whole.enable":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (Slow.reached.set(), wait(), run(module))
        return spec

sys.meta_path.insert(0, Slow())
held = bytearray(os.urandom(1 << 22))
"""


@pytest.mark.rest
def test_a_fork_waits_as_long_as_an_import_gets_on(tmp_path: Path) -> None:
    """However long that may be: its child finds ksmpy's modules finished."""
    code = """
    def wait():
        for _ in range(320):
            time.sleep(0.02)

    assert Slow.reached.wait(30)
    if os.fork() == 0:
        os._exit(not hasattr(sys.modules["ksmpy.whole.enable"], "enabled_engine"))
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    program = tmp_path / "program.py"
    program.write_text(_SLOW + textwrap.dedent(code))
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.rest
def test_a_fork_that_an_import_waits_for(tmp_path: Path) -> None:
    """It goes on after a while, and its child imports anew what nobody would finish there."""
    code = """
    forked = threading.Event()
    wait = forked.wait

    assert Slow.reached.wait(30)
    if os.fork() == 0:
        forked.set()
        from ksmpy.whole.enable import enabled_engine
        while enabled_engine() is None:
            time.sleep(0.01)
        os._exit(0)
    forked.set()
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    program = tmp_path / "program.py"
    program.write_text(_SLOW + textwrap.dedent(code))
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


_MONO = """
import sys, types
sys.modules["clr_loader.mono"] = types.ModuleType("clr_loader.mono")  # which loads Mono
"""


def test_who_has_mono_is_left_alone(tmp_path: Path) -> None:
    """It waits for each thread that has run its code to take a signal, and ours block them."""
    code = f"""{_MONO}
import os, time
held = bytearray(os.urandom(2 << 20))
end = time.monotonic() + 40
while len(sys._current_frames()) > 1 and time.monotonic() < end:
    time.sleep(0.01)
print(len(sys._current_frames()), "ksmpy.native" in sys.modules)
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 False\n", "")


def test_who_loads_mono_gets_all_back(tmp_path: Path) -> None:
    """No thread of ours runs Python code beside it, and nothing is said to be saved any more."""
    code = f"""{ENABLED}
import os, time, numpy
page = numpy.frombuffer(os.urandom(4096), "u1")
held = [numpy.tile(page, 1024) for _ in range(2)]
assert enabled()
import ksmpy
engine = ksmpy.enable()
def until(what):
    end = time.monotonic() + 40
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    assert what(), engine.stats()
until(lambda: engine.stats().pages_sharing > 500)
{_MONO}
until(lambda: len(sys._current_frames()) == 1)
stats = engine.stats()
assert (engine.knobs.run, stats.pages_shared, stats.pages_sharing) == (2, 0, 0)
assert all((array.reshape(-1, 4096) == page).all() for array in held)
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_ASLEEP = "import sys, time\ntime.sleep(0.1)"
_AT_WORK = """
import os, sys, time
from ksmpy.whole.enable import enabled_engine
held = bytearray(os.urandom(2 << 20))
while enabled_engine() is None:
    time.sleep(0.01)
"""
# The engine is made while exit handlers run already: theirs are not called.
_LATE = (
    _SLOW
    + """
ends = threading.Event()
wait = ends.wait
assert Slow.reached.wait(30)
threading.Timer(0.5, ends.set).start()
"""
)


@pytest.mark.parametrize("start", [_ASLEEP, _AT_WORK, _LATE], ids=["asleep", "at-work", "late"])
def test_no_thread_outlives_the_interpreter(start: str, tmp_path: Path) -> None:
    """A program that embeds Python and starts it anew would meet them there."""
    end = "import atexit\natexit._run_exitfuncs()\nprint(len(sys._current_frames()))\n"
    program = tmp_path / "program.py"
    program.write_text(f"{start}\n{end}")
    done = result(command(str(program)), env=environment(**SMALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_program_may_ask_for_its_own_engine(tmp_path: Path) -> None:
    """enable() with other options replaces the engine that the program does not know of."""
    code = """
    import os, time, ksmpy
    from ksmpy.whole.enable import enabled_engine
    held = bytearray(os.urandom(2 << 20))
    while enabled_engine() is None:
        time.sleep(0.01)
    first = enabled_engine()
    assert ksmpy.enable() is first and ksmpy.enable(sleep_millisecs=5) is first
    second = ksmpy.enable(store=ksmpy.Store.anonymous())
    assert second is not first and first._core.closed
    try:
        ksmpy.enable(freeze="signal", tracking="checksum")
    except ksmpy.KsmpyError:
        print("refused")
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "refused\n", "")


def test_a_half_imported_numpy_is_no_hindrance(tmp_path: Path) -> None:
    """An engine starts while another thread imports numpy."""
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, time\nheld = bytearray(os.urandom(2 << 20))\n"
        "from ksmpy.whole.enable import enabled_engine\nend = time.monotonic() + 20\n"
        "while enabled_engine() is None and time.monotonic() < end:\n    time.sleep(0.01)\n"
        "print(enabled_engine() is not None)\n"
    )
    env = environment(**SMALL) | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TREE}"}
    told = result(command("-c", "import numpy"), env=env)
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


def test_a_folder_named_ksmpy_is_no_hindrance(tmp_path: Path) -> None:
    """Such as the source that it was installed from, without the extension."""
    (tmp_path / "ksmpy").mkdir()
    (tmp_path / "ksmpy" / "__init__.py").write_text("1 / 0")
    script = tmp_path / "program.py"
    script.write_text(
        f"{ENABLED}\nimport os\nheld = bytearray(os.urandom(2 << 20))\nprint(enabled())"
    )
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(
    "name",
    [
        "logging",
        pytest.param("dataclasses", marks=pytest.mark.rest),
        pytest.param("weakref", marks=pytest.mark.rest),
    ],
)
def test_a_programs_own_modules_are_its_to_import(tmp_path: Path, name: str) -> None:
    """One whose name the standard library has too: nobody else runs it, or takes its place."""
    (tmp_path / f"{name}.py").write_text("print('imported')\nMINE = 1")
    code = f"""
        import os, time
        held = bytearray(os.urandom(2 << 20))
        time.sleep(1.5)  # an engine would be there
        print("before")
        import {name}
        print({name}.MINE)
    """
    same(tmp_path, code, env=environment(**SMALL))


@pytest.mark.parametrize("moving", ["a while", pytest.param("for ever", marks=pytest.mark.rest)])
def test_nothing_is_imported_among_objects_that_come_and_go(moving: str, tmp_path: Path) -> None:
    """Python could not give their memory back: an engine waits, but not for ever."""
    code = """
        import os, sys, time
        held = bytearray(os.urandom(2 << 20))
        objects, more = 0, 20000
        def count():  # exact, on a busy machine too
            global objects
            objects += more
            return objects
        sys.getallocatedblocks = count
        begin = time.monotonic()
        while time.monotonic() < begin + 3:
            time.sleep(0.01)
            assert "ksmpy" not in sys.modules
        assert objects > 0
        if sys.argv[1] == "a while":
            more = 0
        print(enabled())
    """
    script = tmp_path / "program.py"
    script.write_text(ENABLED + textwrap.dedent(code))
    told = result(command(str(script), moving), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


def test_a_program_without_memory_is_followed_once_it_has_some(tmp_path: Path) -> None:
    """Nothing is printed where the thread that is to make the engine gets no memory."""
    code = """
        import os, sys, time
        held = bytearray(os.urandom(2 << 20))
        refused = 0
        def count():
            global refused
            refused += 1
            raise MemoryError
        usual, sys.getallocatedblocks = sys.getallocatedblocks, count
        until = time.monotonic() + 60
        while not refused and time.monotonic() < until:
            time.sleep(0.01)
        sys.getallocatedblocks = usual
        assert refused
        print(enabled())
    """
    script = tmp_path / "program.py"
    script.write_text(ENABLED + textwrap.dedent(code))
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("free", [pytest.param("later", marks=pytest.mark.rest), "at times"])
def test_a_program_without_descriptors_is_followed_once_it_has_some(
    free: str, tmp_path: Path
) -> None:
    """It hears of nothing while what ksmpy would read and import cannot be opened."""
    code = """
        import os, resource, sys, time
        held = bytearray(os.urandom(2 << 20))
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        for turn in range(300):
            free = sys.argv[1] == "at times" and turn % 2
            resource.setrlimit(resource.RLIMIT_NOFILE, usual if free else (3, usual[1]))
            time.sleep(0.005)
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        print(enabled())
    """
    script = tmp_path / "program.py"
    script.write_text(ENABLED + textwrap.dedent(code))
    told = result(command(str(script), free), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("more", [(), ("--report",)], ids=str)
def test_standard_files_that_are_closed(closed: tuple[int, ...], more: tuple[str, ...]) -> None:
    """A program that is started without some of them runs to its end, and its code is handed on."""

    def close() -> None:
        for fd in closed:
            os.close(fd)

    told = subprocess.run(
        command(*more, "-c", "import sys; sys.exit(7)"),
        env=environment(),
        preexec_fn=close,
        timeout=LIMIT,
    )
    assert told.returncode == 7


# ---- the program sees nothing of it ------------------------------------------------------------


def test_what_a_program_finds(tmp_path: Path) -> None:
    """The same arguments, path, modules, standard input and traceback as without."""
    code, _, stderr = same(
        tmp_path,
        """
        import os, sys
        import threading
        print(sys.argv, sys.path, sys.flags, sys.stdin.read())
        print([thread.name for thread in threading.enumerate()])
        print(sorted(set(sys.modules) - {"atexit", "time", "_signal"}), os.getcwd(), __file__)
        try:
            import sitecustomize
        except ImportError as error:
            print(error)
        1 / 0
        """,
        "-c",
        "--",
        "a b",
        input="from stdin",
    )
    assert code == 1 and "ZeroDivisionError" in stderr and "ksmpy" not in stderr


def test_what_warnings_are_filtered_by(tmp_path: Path) -> None:
    """Programs read the filters, and send them to their workers, as scikit-learn and joblib do."""
    same(
        tmp_path,
        """
        import pickle, re, warnings
        filters = warnings.filters
        assert pickle.loads(pickle.dumps(filters)) == filters
        assert {type(item[1]) for item in filters} <= {type(None), str, re.Pattern}
        """,
    )


STANDING_IN = """
import builtins, gc, json, os, sys, time
from ksmpy.whole import enable

sleep = time.sleep
asked = []

def stand_in(module, name):
    real = getattr(module, name)

    def ask(*arguments, **options):
        asked.append((name, sys._getframe(1).f_code.co_filename))
        return real(*arguments, **options)

    setattr(module, name, ask)

def block():
    return bytearray(range(256)) * 4096

held = [block() for _ in range(4)]
assert enabled()
engine, adopter = enable.enabled_engine(), enable._state.adopter
for name in ("time", "monotonic", "thread_time", "perf_counter"):
    stand_in(time, name)
for name in ("getpid", "listdir"):
    stand_in(os, name)
stand_in(builtins, "open")
stand_in(json, "dumps")
seen, merged = adopter.coverage, engine.stats().pages_sharing
for _ in range(4000):
    gc.collect()
    sleep(0.01)
    if len(held) < 40:
        held.append(block())
    elif adopter.coverage is not seen and engine.stats().pages_sharing > merged:
        break
else:
    sys.exit("nothing was merged")
print(sorted(set(asked)))
"""


def test_nobody_asks_what_stands_in_for_the_interpreters_own(tmp_path: Path) -> None:
    """A program's tests count the calls of what they put in the place of clocks and files, or say
    what each is to be answered.
    """
    (tmp_path / "program.py").write_text(ENABLED + STANDING_IN)
    arguments = command("--", sys.executable, str(tmp_path / "program.py"))
    told = result(arguments, env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "[]\n", "")


def test_a_hook_of_the_programs_that_raises_in_all_threads(tmp_path: Path) -> None:
    """As one that forbids to open files may. Nothing is printed of it."""
    same(
        tmp_path,
        """
        import os, sys, threading, time

        main, refused = threading.get_ident(), []

        def hook(event, arguments):
            if threading.get_ident() != main:
                refused.append(event)
                raise RuntimeError(event)

        sys.addaudithook(hook)
        data = bytearray(os.urandom(1 << 20)) * 20
        if "KSMPY_FOLLOW" in os.environ:
            while not refused or len(os.listdir("/proc/self/task")) > 1:
                time.sleep(0.01)
        """,
        env=environment(**SMALL),
    )


TAKEN_OUT = """
import os, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("ksmpy"):
            os.write(2, f"imported again: {name}\\n".encode())

held = [bytearray(range(256)) * 4096 for _ in range(4)]
assert enabled()
enable = sys.modules["ksmpy.whole.enable"]
for name in [name for name in sys.modules if name.startswith("ksmpy")]:
    del sys.modules[name]
sys.meta_path.insert(0, Finder())
child = os.fork()
if child == 0:
    for _ in range(4000):
        time.sleep(0.01)
        if enable._state.pid == os.getpid() and enable.enabled_engine() is not None:
            os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


def test_modules_that_are_taken_out_of_sys_modules(tmp_path: Path) -> None:
    """As by mock.patch.dict, when it ends. Children and the end of the process need them, and a
    second engine would know nothing of the first one.
    """
    (tmp_path / "program.py").write_text(ENABLED + TAKEN_OUT)
    arguments = command("--", sys.executable, str(tmp_path / "program.py"))
    told = result(arguments, env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.9"])
def test_an_old_interpreter_is_left_alone(version: str, tmp_path: Path) -> None:
    """It says nothing, and its own sitecustomize comes to its turn."""
    name = f"python{version}"
    places = [*Path(sys.base_prefix).parent.glob(f"{version}*/bin/{name}"), shutil.which(name)]
    usable = [str(at) for at in places if at and not result([str(at), "-c", ""]).returncode]
    if not usable:
        pytest.skip(f"there is no {name} here")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.stdout.write('mine\\n' * (sys.version_info < (3, 10)))"
    )
    for folder in (f"{tmp_path}{os.pathsep}{TREE}", TREE):
        env = environment() | {"PYTHONPATH": folder}
        arguments = [usable[0], "-c", "print('done')"]
        plain, told = result(arguments, env=env), result(command("--", *arguments), env=env)
        assert (told.stdout, told.stderr) == (plain.stdout, plain.stderr)
        assert plain.stdout == ("mine\ndone\n" if folder != TREE else "done\n")


SLOW_THREADS = """
import _thread, time
start = _thread.start_new_thread
begun = []

def slowly(function, arguments, *more):
    def run(*given):
        time.sleep(0.3)
        begun.append(function)
        function(*given)
    return start(run, arguments, *more)

_thread.start_new_thread = slowly
"""


def test_the_thread_has_begun_before_the_program(tmp_path: Path) -> None:
    """The interpreter exchanges its allocators before it runs the program, and a thread that begins
    frees memory without its lock.
    """
    (tmp_path / "sitecustomize.py").write_text(SLOW_THREADS)
    env = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TREE}"}
    code = "import os, sitecustomize; print(len(sitecustomize.begun)); os._exit(0)"
    told = result(command("--", sys.executable, "-c", code), env=env)
    assert (told.returncode, told.stdout, told.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("error", [KsmpyError(), OSError(), RuntimeError(), MemoryError()], ids=str)
def test_a_program_hears_of_no_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that cannot be made for it leaves it alone, whatever the reason."""

    def fail(package_bytes: int) -> bool:
        raise error

    monkeypatch.setattr(follow, "enable_unasked", fail)
    assert follow.begin() is False
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


@pytest.mark.parametrize("body", ["print('mine')", "import no_such_module", "1 / 0"])
def test_its_own_sitecustomize(tmp_path: Path, body: str) -> None:
    """It is run as ever, and is the module of that name; its errors are reported as ever."""
    (tmp_path / "sitecustomize.py").write_text(
        # Not in the interpreter that supervises.
        f"import sys\nif 'ksmpy' not in sys.orig_argv:\n    {body}\n"
    )
    env = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TREE}"}
    code = "import sys; print(getattr(sys.modules.get('sitecustomize'), '__file__', None))"
    same(tmp_path, code, env=env)


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(7)",
        "import sys; sys.exit('no')",
        "import os; os._exit(3)",
        "import os; os.kill(os.getpid(), 9)",
        "import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)",
        "raise KeyboardInterrupt",
    ],
)
def test_it_ends_as_ever(tmp_path: Path, code: str) -> None:
    """The exit code, or the signal."""
    same(tmp_path, code)


WAITING = """
import os, signal, sys, time
signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN]
def got(number, frame):
    print(number, flush=True)
for each in signals:
    signal.signal(each, got)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("more", [(), pytest.param(("--report",), marks=pytest.mark.rest)], ids=str)
def test_it_ends_as_ever_where_nobody_reads_stderr(more: tuple[str, ...], tmp_path: Path) -> None:
    """What ksmpy has to say, of a process that it cannot follow, is not worth the program."""
    code = "sleep 1; $0 -I -c 'import time; time.sleep(2)'; touch over; exit 7"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        arguments = command(*more, "--", "sh", "-c", code, sys.executable)
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "stderr": writing}
        assert subprocess.run(arguments, timeout=LIMIT, **options).returncode == 7
        assert (tmp_path / "over").exists()
    finally:
        os.close(writing)


def test_a_program_may_wait_for_all_threads() -> None:
    """For those that the module threading knows: none of ours, also after one has logged."""
    code = """
        import os, sys, threading
        held = bytearray(os.urandom(2 << 20))
        assert enabled()
        from ksmpy import threads
        import logging
        log = logging.getLogger("ksmpy")
        threads.start(log.warning, ("noted",), "logs").join()
        print(len(os.listdir("/proc/self/task")) > 2)
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
        print("end")
    """
    told = result(command("-c", ENABLED + textwrap.dedent(code)), env=environment(**SMALL))
    assert (told.returncode, told.stdout, told.stderr) == (0, "True\nend\n", "")


def test_a_programs_log_is_its_own() -> None:
    """Who prints whatever is logged, as pip does, prints nothing of ksmpy's, until it has called
    enable(); who listens to ksmpy's own logger hears it.
    """
    code = """
        import logging, os, sys
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
        log, own = logging.getLogger("ksmpy"), logging.StreamHandler(sys.stderr)
        held = bytearray(os.urandom(2 << 20))
        logging.info("loaded")
        assert enabled()
        log.warning("unasked")
        log.addHandler(own)
        log.warning("heard")
        log.removeHandler(own)
        if sys.argv[1] == "asks":
            import ksmpy
            ksmpy.enable()
            log.warning("asked")
    """
    for told, more in (("is unaware", ""), ("asks", "asked\n")):
        arguments = command("-c", ENABLED + textwrap.dedent(code), told)
        seen = result(arguments, env=environment(**SMALL))
        assert seen.returncode == 0, seen.stderr
        assert (seen.stdout, seen.stderr) == ("loaded\n" + more, "heard\n")


@pytest.mark.parametrize("what", ["engine", "thread"])
def test_a_child_that_c_code_forks_ends_at_once(what: str) -> None:
    """Python's hooks are not called for it, and it has no thread of ksmpy's: neither those of an
    engine, nor the one that waits until there is something for one.
    """
    code = """
        import ctypes, os, sys, time
        if sys.argv[1] == "engine":
            held = bytearray(os.urandom(2 << 20))
            assert enabled()
        begin = time.monotonic()
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            sys.exit(0)
        os.waitpid(pid, 0)
        print(time.monotonic() - begin)
    """
    told = result(command("-c", ENABLED + textwrap.dedent(code), what), env=environment(**SMALL))
    assert told.returncode == 0 and float(told.stdout) < 4, told


def test_a_file_in_the_stores_place_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor is over, and another process has its number, and a file in that place."""
    fd = os.memfd_create("other")
    os.write(fd, bytes(5000) + b"not a store")
    info = os.fstat(fd)
    place = f"/proc/{os.getpid()}/fd/{fd}"
    for told in (place, f"{place}:{info.st_dev}:{info.st_ino + 1}"):
        monkeypatch.setenv("KSMPY_FOLLOW", told)
        assert common_store() is None
    monkeypatch.setenv("KSMPY_FOLLOW", f"{place}:{info.st_dev}:{info.st_ino}")
    store = common_store()
    assert store is not None
    with pytest.raises(ksmpy.StoreError, match="not a store|another"):
        ksmpy.Engine(store=store)
    assert os.fstat(fd).st_size == 5011 and os.pread(fd, 11, 5000) == b"not a store"
    os.close(fd)


@pytest.mark.parametrize("more", [(), ("--report",)], ids=str)
def test_sockets_that_systemd_hands_over(more: tuple[str, ...]) -> None:
    """They are the program's, as sd_listen_fds(3) tells by the process's number. What is meant for
    others stays as it is.
    """
    program = """
import os, socket
print([os.environ[name] == str(os.getpid()) for name in ("LISTEN_PID", "SYSTEMD_EXEC_PID")])
print(os.environ["WATCHDOG_PID"], socket.socket(fileno=3).getsockname()[0])
"""
    hand_over = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
own = dict.fromkeys(("LISTEN_PID", "SYSTEMD_EXEC_PID"), str(os.getpid()))
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, **own, "WATCHDOG_PID": "1"})
"""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        arguments = command(*more, "--", sys.executable, "-c", program)
        arguments = [sys.executable, "-c", hand_over, str(number), *arguments]
        told = result(arguments, pass_fds=(number,))
    assert told.stdout.splitlines() == ["[True, True]", "1 127.0.0.1"]


def test_signals_are_handed_on() -> None:
    """Each once. Who kills the command kills the program."""
    with subprocess.Popen(
        command("-c", WAITING), env=environment(), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for number in (2, 15, 1, 10, 21, 15):
            child.send_signal(number)
            assert child.stdout.readline() == f"{number}\n"
        child.kill()
        assert child.stdout.read() == ""  # closed: the program is gone too
    assert child.returncode == -signal.SIGKILL


def test_a_program_that_waits_for_signals(tmp_path: Path) -> None:
    """None of ksmpy's threads takes a signal that the program has blocked, to wait for it."""
    code = """
    import os, signal, time
    from ksmpy.whole.enable import enabled_engine
    held = bytearray(os.urandom(2 << 20))
    while enabled_engine() is None:
        time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    print(signal.sigwait([signal.SIGTERM]))
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    told = result(command(str(script)), env=environment(**SMALL))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("15\n") or "SIGTERM" in told.stdout


def test_any_command(tmp_path: Path) -> None:
    """With or without --, with its own options and its own --; one that is none is told."""
    assert result(command("--", "echo", "-c", "--", "x")).stdout == "-c -- x\n"
    assert result(command("echo", "--report", "-m")).stdout == "--report -m\n"
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $1; exit 5\n")
    script.chmod(0o755)
    told = result(command(str(script), "one"))
    assert (told.returncode, told.stdout) == (5, "one\n")
    told = result(command("--", "no-such-command"))
    assert told.returncode == 2 and "no-such-command" in told.stderr
    script.write_bytes(b"\0not a program")
    told = result(command(str(script)))
    assert told.returncode == 126 and told.stderr.count("\n") == 1


def test_disabled(tmp_path: Path) -> None:
    """KSMPY_DISABLE=1: the command takes this process's place, or nobody follows."""
    code = "import os, sys; print(os.getpid(), 'ksmpy' in os.environ.get('PYTHONPATH', ''))"
    env = environment(KSMPY_DISABLE="1") | {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "ksmpy").symlink_to(Path(TREE) / "ksmpy")
    with subprocess.Popen(command("-c", code), env=env, stdout=subprocess.PIPE, text=True) as child:
        told, _ = child.communicate(timeout=LIMIT)
    assert told == f"{child.pid} False\n"
    # By its path: posix_spawn(), which Python takes then, ignores two signals of the C library's.
    ignored = [shutil.which("grep") or "grep", "SigIgn", "/proc/self/status"]
    assert result(command("--", *ignored), env=env).stdout == result(ignored).stdout
    load = "import os, time; held = bytearray(os.urandom(2 << 20)); time.sleep(1.5);"
    look = "import sys; print('ksmpy' in sys.modules)"
    shell = f'KSMPY_DISABLE=1 {sys.executable} -c "{load} {look}"'
    assert result(command("--", "sh", "-c", shell), env=environment(**SMALL)).stdout == "False\n"


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_isolated_interpreters(option: str, tmp_path: Path) -> None:
    """They are left alone, and that is said once."""
    code = "import sys; print('ksmpy' in sys.modules)"
    told = result(command("--", sys.executable, option, "-c", code))
    assert told.stdout == "False\n"
    assert told.stderr.count("\n") == 1 and "left alone" in told.stderr
    waits = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)"
    shell = f"{sys.executable} {option} -c '{waits}' {tmp_path}/seen"
    again = f"{sys.executable} {option} -c 'import time; time.sleep(1)'"
    with subprocess.Popen(
        command("--", "sh", "-c", f"{shell}; {again}"), stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        assert "left alone" in child.stderr.readline()
        (tmp_path / "seen").touch()
        assert child.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("python3 -I x.py", True),
        ("/usr/bin/python3.11 -bE", True),
        ("python -W error -S x", True),
        ("python -Werror -Xdev -s x -I", False),
        ("python -c print(1) -I", False),
        ("python -m module -E", False),
        ("python", False),
        ("grep -E python", False),
    ],
)
def test_which_are_isolated(arguments: str, expected: bool) -> None:
    """By the interpreter's own options, not by those of the program."""
    assert isolated(arguments.split()) is expected
