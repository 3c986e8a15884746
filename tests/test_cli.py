"""The command line as its users meet it: a process of its own, its output, its exit code."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ksmpy import cli, native
from ksmpy.cli.command import CommandError, Parser, size
from ksmpy.cli.output import human_bytes
from ksmpy.watch import kernel

COMMANDS = (
    "demo",
    "doctor",
    "analyze",
    "run",
    "top",
    "stats",
    "report",
    "export",
    "store",
    "bench",
    "kernel",
)

needs_engine = pytest.mark.skipif(
    native.missing() is not None, reason=native.missing() or "an engine can be made"
)


def ksmpy(
    *arguments: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    redirected: str = "",
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, without the KSMPY_* of the tests' own environment; `redirected`:
    its streams, as a shell's words.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KSMPY_")}
    # The package may be that of this tree, and the command run elsewhere.
    clean["PYTHONPATH"] = str(Path(native.__file__).parents[1])
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "ksmpy", *arguments],
        env={**clean, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


def one_line(stderr: str) -> str:
    """The only line on stderr."""
    assert stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    return stderr


# ---- help and usage --------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    """--help lists all commands, and ends well."""
    told = ksmpy("--help")
    assert told.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command} ", told.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    """COMMAND --help tells what it does, and the variable behind each option."""
    told = ksmpy(command, "--help")
    assert told.returncode == 0
    assert command in ("kernel", "store") or "[KSMPY_" in " ".join(told.stdout.split())


def test_help_is_light() -> None:
    """What costs time to import is not imported for the list of commands."""
    code = (
        "import sys, ksmpy.cli\n"
        "try:\n    ksmpy.cli.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'psutil', 'mmh3', 'rich', 'ksmpy.native', 'ksmpy.engine.engine'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr == "set()\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("analyze",),
        ("analyze", "0"),
        ("analyze", "word"),
        ("stats", "1", "--store", "name"),
        ("top", "--interval", "0"),
        ("demo", "--workers", "1"),
        ("bench", "--size", "many"),
        ("run",),
        ("run", "-m"),
        ("run", "--no-such-option", "-c", "1"),
        ("run", "no-such-file.py"),
        ("kernel",),
        ("store",),
        ("store", "rm"),
        ("doctor", "--jso"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: tuple[str, ...]) -> None:
    """Whatever is wrong with the arguments: one line with a hint on stderr, nothing on stdout."""
    told = ksmpy(*arguments)
    assert told.returncode == 2
    assert "--help" in one_line(told.stderr)
    assert told.stdout == ""


def test_an_option_can_come_from_the_environment() -> None:
    """KSMPY_OPTION is the default of --option; a blank one counts as unset."""
    assert json.loads(ksmpy("doctor", env={"KSMPY_JSON": "1"}).stdout)
    told = ksmpy("top", env={"KSMPY_COUNT": "x"})
    assert told.returncode == 2
    assert "KSMPY_COUNT='x'" in one_line(told.stderr)
    assert not ksmpy("top", env={"KSMPY_JSON": "0", "KSMPY_COUNT": " "}).stdout.startswith("[")


def test_the_command_line_outweighs_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is given wins over its variable, which is checked like the option itself."""
    monkeypatch.setenv("KSMPY_WAY", "second")
    parser = Parser(prog="x")
    parser.option("--way", choices=("first", "second"))
    assert parser.parse_args([]).way == "second"
    assert parser.parse_args(["--way", "first"]).way == "first"
    monkeypatch.setenv("KSMPY_WAY", "third")
    with pytest.raises(SystemExit):
        Parser(prog="x").option("--way", choices=("first", "second"))


def test_sizes() -> None:
    """Sizes take the binary multiples; nonsense is refused."""
    assert (size("4096"), size("2k"), size("64M"), size("1GiB")) == (4096, 2048, 64 << 20, 1 << 30)
    for text in ("0", "-1", "M", "1.5M", "x"):
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            size(text)
    assert human_bytes(90_868_376) == "86.7 MiB"
    assert CommandError("text", "hint").hint == "hint"


@pytest.mark.parametrize("arguments", [("doctor", "--json"), ("--version",), ("--help",)])
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...]) -> None:
    """`ksmpy ... | head -0` ends quietly."""
    command = [sys.executable, "-m", "ksmpy", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        "--version", "no-such-command", "stats", "store list",
        *(
            pytest.param(words, marks=pytest.mark.rest)
            for words in (
                "--help", "doctor", "stats 999999999", "top --count 1", "kernel status",
                "analyze {pid} --top 1",
            )
        ),
        pytest.param("bench --size 1M", marks=[needs_engine, pytest.mark.rest]),
        pytest.param("report {pid} -o -", marks=[needs_engine, pytest.mark.rest]),
    ],
)  # fmt: skip
def test_a_closed_stream_gets_nothing_and_changes_nothing(words: str, merged: int) -> None:
    """The exit code is the same, and nothing that was for it goes to the other one."""
    arguments = words.format(pid=merged).split()
    usual = ksmpy(*arguments)
    for closed, redirected in {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}.items():
        done = ksmpy(*arguments, redirected=redirected)
        assert done.returncode == usual.returncode, done.stderr
        assert bool(done.stdout) == (bool(usual.stdout) and closed != "stdout"), closed
        assert bool(done.stderr) == (bool(usual.stderr) and closed != "stderr"), done.stderr
        assert "Traceback" not in done.stderr


@contextmanager
def waiting(code: str) -> Iterator[tuple[int, bytes]]:
    """A program that prints a line and then waits for one: its pid, and that line."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, "it has ended"
            yield child.pid, line
        finally:
            child.kill()


@pytest.fixture(scope="module")
def merged() -> Iterator[int]:
    """A process that has merged something, where one can."""
    code = (
        "import numpy as np, ksmpy\n"
        "try:\n"
        "    engine = ksmpy.Engine()\n"
        "    arrays = [ksmpy.zeros(1 << 20, np.uint8) + 1 for _ in range(2)]\n"
        "    regions = [engine.register(each) for each in arrays]\n"
        "    engine.scan(2, eager=True)\n"
        "except ksmpy.Unsupported:\n    pass\n"
        "print(flush=True); input()\n"
    )
    with waiting(code) as (pid, _):
        yield pid


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("doctor",)])
def test_a_full_device_is_one_line_and_exit_1(arguments: tuple[str, ...]) -> None:
    """And the interpreter does not try again when it ends."""
    done = ksmpy(*arguments, redirected=">/dev/full")
    assert done.returncode == 1 and "No space left on device" in one_line(done.stderr)


def test_ctrl_c_while_arguments_are_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As later on: the exit code of a shell's."""

    def interrupted(_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", interrupted)
    assert cli.main(["doctor"]) == 130


# ---- the reading commands --------------------------------------------------------------------


def test_doctor_reports_checks() -> None:
    """Each check has a name, a verdict, a detail and a hint; the exit code follows the engine."""
    told = ksmpy("doctor", "--json")
    checks = json.loads(told.stdout)
    assert {"name", "ok", "detail", "hint"} == set(checks[0])
    works = any(check["name"] == "engine" and check["ok"] for check in checks)
    assert told.returncode == (0 if works else 1)
    plain = ksmpy("doctor")
    assert all(check["name"] in plain.stdout for check in checks)


def test_analyze_finds_duplicates() -> None:
    """A process with twice the same megabyte: at least that much is found, in JSON and in words."""
    pytest.importorskip("mmh3")
    code = (
        "import mmap, os\n"
        "a, b = (mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE) for _ in range(2))\n"
        "a[:] = b[:] = os.urandom(1 << 20)\n"
        "print(1, flush=True); input()\n"
    )
    with waiting(code) as (pid, _):
        told = ksmpy("analyze", str(pid), "--json")
        plain = ksmpy("analyze", str(pid), "--top", "3")
    estimate = json.loads(told.stdout)
    assert estimate["duplicate_pages"] >= 256
    assert {"start", "end", "name", "pages", "swapped_pages"} <= set(estimate["buffers"][0])
    assert told.stderr == ""
    assert "duplicates" in plain.stdout
    assert "\x1b" not in plain.stdout + plain.stderr
    assert len(re.findall(r"^[0-9a-f]+-[0-9a-f]+ ", plain.stdout, re.MULTILINE)) <= 3


@pytest.mark.parametrize("command", ["analyze", "stats", "top"])
def test_no_such_process_is_one_line_and_exit_1(command: str) -> None:
    """A pid that nobody has is an error of one line."""
    told = ksmpy(command, "999999999")
    assert told.returncode == 1
    assert "no process 999999999" in one_line(told.stderr)


def test_stats_without_any_user_of_ksmpy() -> None:
    """A process without a store has nothing merged, and that is no error."""
    idle = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE) as child:
        told = ksmpy("stats", str(child.pid), "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["saved_bytes"] == 0


@needs_engine
def test_a_store_that_is_not_there_is_one_line_and_exit_1(tmp_path: Path) -> None:
    """--store names what is missing, and does not make it."""
    folder = tmp_path / "stores"
    told = ksmpy("stats", "--store", "name", env={"KSMPY_STORE_DIR": str(folder)})
    assert told.returncode == 1
    assert f"there is no store 'name' in {folder}" in one_line(told.stderr)
    assert not folder.exists()


@needs_engine
def test_stats_and_top_see_what_another_process_merged() -> None:
    """Two equal arrays merged elsewhere: their size is seen as saved, from outside."""
    code = textwrap.dedent(
        """
        import sys, numpy as np, ksmpy
        a = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8); b = a.copy()
        engine = ksmpy.Engine(); engine.register(a); engine.register(b)
        engine.scan(eager=True)
        print(engine.stats().pages_sharing, flush=True)
        input()
        """
    )
    with waiting(code) as (pid, line):
        sharing = int(line)
        seen = json.loads(ksmpy("stats", str(pid), "--json").stdout)
        every = json.loads(ksmpy("stats", "--json").stdout)
        top = ksmpy("top", str(pid), "--count", "2", "--interval", "0.1")
    assert seen["merged_bytes"] == 2 * sharing * 4096
    assert abs(seen["saved_bytes"] - sharing * 4096) <= 1 << 20  # the store grows in larger steps
    assert pid in [each["pid"] for each in every]
    assert top.stdout.count("python") == 2


# ---- run -------------------------------------------------------------------------------------

TELL = "import sys; print(__name__, sys.argv, sys.path[0])\n"


NAMED = """
import ctypes, numpy as np, ksmpy
ctypes.CDLL(None).prctl(15, b"\\xd0\\xbf\\x1b[31m\\n\\xd1", 0, 0, 0)  # PR_SET_NAME
array = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
other = array.copy()
engine = ksmpy.Engine(store="gew\\xe4hr")
for each in (array, other):
    engine.register(each, name="gew\\xe4hr")
engine.scan(2)
print(flush=True)
input()
"""


@needs_engine
def test_names_are_shown_whatever_they_are_made_of(place: Path) -> None:
    """The kernel cuts a program's name in the middle of a letter; a terminal may know ASCII only,
    and is not to obey what stands in a name.
    """
    env = {"KSMPY_STORE_DIR": str(place), "PYTHONIOENCODING": "ascii"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", NAMED], **pipes) as child:
        assert child.stdout and child.stdout.readline()
        for arguments in (
            ("stats",), ("stats", "--json"), ("stats", "--store", "gewähr"), ("store", "list"),
            ("store", "show", "gewähr"), ("top", "--count", "1"), ("report", "--json"),
            ("analyze", str(child.pid)), ("doctor",),
        ):  # fmt: skip
            done = ksmpy(*arguments, env=env)
            assert done.returncode == 0, done.stderr
            assert done.stdout.isascii() and "\x1b" not in done.stdout
        child.kill()


@needs_engine
def test_run_code_is_like_the_interpreter(tmp_path: Path) -> None:
    """-c: the same name, arguments and path as `python -c`; its options are left to it."""
    told = ksmpy("run", "--report", "-c", TELL, "--json", "-m", cwd=tmp_path)
    assert told.stdout == "__main__ ['-c', '--json', '-m'] \n"
    # On a busy machine it is looked at before it is over.
    assert re.fullmatch(r"ksmpy: (over in .*|saved 0 B .*\nksmpy: PSS .*)\n", told.stderr)
    assert told.returncode == 0


@needs_engine
def test_run_file_is_like_the_interpreter(tmp_path: Path) -> None:
    """FILE: its folder comes first in sys.path, its name first in sys.argv."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside.py").write_text("VALUE = 7\n")
    script = tmp_path / "folder" / "script.py"
    script.write_text(TELL + "import beside; print(beside.VALUE, __file__)\n")
    told = ksmpy("run", "folder/script.py", "a", "--freeze", cwd=tmp_path)
    assert told.stderr == ""
    assert told.stdout.splitlines() == [
        f"__main__ ['folder/script.py', 'a', '--freeze'] {tmp_path / 'folder'}",
        f"7 {tmp_path / 'folder' / 'script.py'}",
    ]


@needs_engine
def test_run_module_is_like_the_interpreter(tmp_path: Path) -> None:
    """-m: the current folder comes first in sys.path, the module's file in sys.argv."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(TELL)
    told = ksmpy("run", "-m", "package", "x", cwd=tmp_path)
    assert told.stderr == ""
    assert told.stdout == f"__main__ ['{package / '__main__.py'}', 'x'] {tmp_path}\n"


@needs_engine
@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import sys; sys.exit('no')", 1), ("1 / 0", 1), ("pass", 0)],
)
def test_run_ends_as_its_program_does(code: str, expected: int) -> None:
    """The exit code is the program's."""
    assert ksmpy("run", "-c", code).returncode == expected


@needs_engine
def test_run_shows_the_programs_own_traceback(tmp_path: Path) -> None:
    """An exception of the program is shown with its own frames only, an OSError too."""
    script = tmp_path / "script.py"
    script.write_text("def inner():\n    open('/no/such/file')\ninner()\n")
    told = ksmpy("run", str(script))
    assert told.returncode == 1
    assert told.stderr.startswith("Traceback (most recent call last):\n")
    assert re.findall(r'File "(.*?)", line (\d+)', told.stderr) == [
        (str(script), "3"),
        (str(script), "2"),
    ]
    assert told.stderr.endswith(
        "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'\n"
    )


@needs_engine
def test_run_has_the_engine_on() -> None:
    """In the program the process's engine is there, with the options that were given."""
    code = "import ksmpy; e = ksmpy.enable(); print(e.knobs.run, e.knobs.sleep_millisecs, e.freeze)"
    told = ksmpy("run", "--sleep-millisecs", "7", "--freeze", "signal", "-c", code)
    assert told.stdout == "1 7 signal\n", told.stderr
    told = ksmpy("run", "-c", code, env={"KSMPY_SLEEP_MILLISECS": "9", "KSMPY_FREEZE": "signal"})
    assert told.stdout == "1 9 signal\n", told.stderr


@needs_engine
def test_run_passes_bad_knobs_on_as_one_line() -> None:
    """A value that the kernel would refuse is refused before the program starts."""
    told = ksmpy("run", "--max-page-sharing", "1", "-c", "print('started')")
    assert told.returncode == 1
    assert "max_page_sharing" in one_line(told.stderr)
    assert told.stdout == ""


OFFSETS = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(30 << 20))  # from now on malloc() takes smaller ones from its heap
libc.malloc(int(sys.argv[1]))
print([libc.malloc(size << 20) % 4096 for size in (1, 2, 5)])
"""


@needs_engine
def test_run_lays_big_blocks_on_pages_alike(tmp_path: Path) -> None:
    """With --mmap-threshold, a block's place in its page does not depend on what was there."""
    script = tmp_path / "offsets.py"
    script.write_text(OFFSETS)
    said = {
        ksmpy("run", *options, str(script), size).stdout
        for options in ((), ("--mmap-threshold", "1M"))
        for size in ("300000", "301000")
    }
    alike = f"{[16] * 3}\n"
    assert alike in said and len(said) == 3, said
    told = ksmpy("run", "--mmap-threshold", "33M", "-c", "print('started')")
    assert told.returncode == 1 and told.stdout == ""
    assert "32M at most" in one_line(told.stderr)


@needs_engine
def test_run_can_be_interrupted() -> None:
    """Ctrl-C reaches the program, and ends it as it ends the interpreter by itself."""
    code = "import time; print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "ksmpy", "run", "-c", code]
    # Shells let their background jobs ignore it, and whoever these start.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, heeded)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
    assert child.returncode == -signal.SIGINT


# ---- bench and kernel ------------------------------------------------------------------------


@needs_engine
def test_bench_measures_ksmpy_and_says_why_not_the_kernel() -> None:
    """Two rows of ksmpy's, and either two of the kernel's or the reason why not."""
    told = ksmpy("bench", "--size", "4M", "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    merged = [row["saved_pages"] for row in report["rows"] if row["what"] == "merge"]
    assert merged[0] == 1024
    assert all(pages >= 1024 for pages in merged)
    assert len(merged) == (1 if report["without_kernel"] else 2)
    assert kernel.available() or report["without_kernel"]


@pytest.mark.skipif(
    not kernel.available(writable=False), reason=str(kernel.available(writable=False))
)
def test_kernel_status() -> None:
    """The kernel's settings and counters by name, and those of a process."""
    told = json.loads(ksmpy("kernel", "status", "--json").stdout)
    assert set(told["ksm"]) == set(kernel.read())
    assert "pages_to_scan" in ksmpy("kernel", "status").stdout
    if Path("/proc/self/ksm_stat").exists():
        told = json.loads(ksmpy("kernel", "status", str(os.getpid()), "--json").stdout)
        assert "ksm_merging_pages" in told["process"]


@pytest.mark.skipif(not kernel.available(), reason=str(kernel.available()))
def test_kernel_enable_and_disable() -> None:
    """The switch does what it says, and a program started with it has its memory on offer."""
    with kernel.settings():
        assert ksmpy("kernel", "enable", "--sleep-millisecs", "33").returncode == 0
        assert kernel.read()["run"] == 1
        assert kernel.read()["sleep_millisecs"] == 33
        code = "from ksmpy.watch import kernel; print(kernel.process_merging())"
        told = ksmpy("kernel", "enable", sys.executable, "-c", code)
        assert told.stdout == "True\n" or "PR_SET" in told.stderr or "Linux 6.4" in told.stderr
        assert ksmpy("kernel", "disable").returncode == 0
        assert kernel.read()["run"] == 0
        told = ksmpy("kernel", "enable", "--max-page-sharing", "1")
        assert told.returncode == 1
        assert "max_page_sharing=1" in one_line(told.stderr)


@pytest.mark.skipif(os.geteuid() != 0 or not kernel.available(), reason="needs root to drop")
def test_kernel_enable_without_privileges() -> None:
    """An ordinary user is told to be root, in one line."""
    code = (
        "import os, sys, ksmpy.cli\n"
        "ksmpy.cli.main(['kernel', 'status', '--json'])  # imports all while it may\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(ksmpy.cli.main(['kernel', 'disable']))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 1
    assert "root" in one_line(told.stderr)


# ---- terminals -------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **env: str) -> str:
    """What a command shows on a terminal."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KSMPY_")}
    clean.pop("NO_COLOR", None)
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "ksmpy", *arguments],
        env={**clean, "TERM": "xterm", "COLUMNS": "120", **env},
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # how a terminal says that the other end is closed
        pass
    os.close(leader)
    assert child.wait(30) in (0, 1)
    return shown.decode()


def test_tables_are_drawn_on_a_terminal_only() -> None:
    """On a terminal rich draws; NO_COLOR keeps it plain there, too."""
    pytest.importorskip("rich")
    assert "\x1b[" in on_a_terminal("doctor")
    assert "\x1b[" not in on_a_terminal("doctor", NO_COLOR="1")
    assert "\x1b[" not in ksmpy("doctor").stdout
