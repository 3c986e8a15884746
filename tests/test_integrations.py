"""The programs in examples/, with the real thing; each is skipped where that is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.patience import patience, until
from test_cli import ksmpy as command
from test_cli import needs_engine

pytestmark = needs_engine

EXAMPLES = Path(__file__).parents[1] / "examples"
MIB = 1 << 20


def needed(package: str) -> None:
    """Skip where it is not installed; not imported, which starts processes for some."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def environment(place: Path, **more: str) -> dict[str, str]:
    """Of a program that finds the examples, and keeps its stores here."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KSMPY_")}
    tree = str(EXAMPLES.parent)
    path = os.pathsep.join([str(EXAMPLES), tree])
    return {**clean, "PYTHONPATH": path, "KSMPY_STORE_DIR": str(place), **more}


@contextmanager
def running(argv: list[str], place: Path, log: Path, **more: str) -> Iterator[int]:
    """A program with processes below it, ended by SIGTERM; its pid."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *argv],
            env=environment(place, **more), cwd=log.parent, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(patience(30))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def saved_below(pid: int, place: Path) -> tuple[int, int]:
    """(bytes, processes) of those below a process, as a report has them."""
    done = command("report", "--json", str(pid), env={"KSMPY_STORE_DIR": str(place)})
    if done.returncode:
        return 0, 0
    told = json.loads(done.stdout)
    return told["totals"]["saved_bytes"], len(told["processes"])


def wait_until_saved(pid: int, place: Path, nbytes: int, processes: int, log: Path) -> None:
    """AssertionError with the program's log when it does not come to that."""
    until(
        lambda: saved_below(pid, place) >= (nbytes, 0) and saved_below(pid, place)[1] >= processes,
        lambda: f"{saved_below(pid, place)}: {log.read_text()[-3000:]}",
        limit=patience(60),
    )


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn_workers_share(place: Path, tmp_path: Path, preload: bool) -> None:
    """`-c python:ksmpy.integrations.gunicorn` is all; with --preload they have what the master
    loaded, and the store serves what comes later.
    """
    needed("gunicorn")
    argv = ["gunicorn", "-c", "python:ksmpy.integrations.gunicorn", "-w", "3", "--preload"]
    argv += ["-b", f"unix:{tmp_path / 'socket'}", "gunicorn_app:app"]
    if not preload:
        argv.remove("--preload")
    log = tmp_path / "log"
    with running(argv, place, log) as pid:
        wait_until_saved(pid, place, (1 if preload else 56) * MIB, 4 if preload else 3, log)


def test_celery_pool_processes_share(place: Path, tmp_path: Path) -> None:
    """`setup()` where the tasks are is all."""
    needed("celery")
    argv = ["celery", "-A", "celery_tasks", "worker", "-c", "2", "--pool", "prefork"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    log = tmp_path / "log"
    with running(argv, place, log, BROKER="memory://") as pid:
        wait_until_saved(pid, place, 28 * MIB, 2, log)


@pytest.mark.parametrize(
    ("program", "needs"),
    [
        ("dask_workers.py", "distributed"),
        ("joblib_jobs.py", "joblib"),
        ("process_pool.py", "concurrent"),
    ],
)
def test_an_example_says_what_it_saved(
    place: Path, tmp_path: Path, program: str, needs: str
) -> None:
    """One model less in memory than there are workers, by the store's own count."""
    needed(needs)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program)],
        env=environment(place), cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (saved,) = re.findall(r"^saved (\d+) MiB$", done.stdout, re.MULTILINE)
    assert 28 <= int(saved) <= 32


def test_pytest_says_what_fixtures_hold_twice(place: Path, tmp_path: Path) -> None:
    """Named, with the test that had them; nothing is looked at unless it is asked for."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "ksmpy.integrations.pytest"]
    argv += ["-c", os.devnull, "--rootdir", str(EXAMPLES), str(EXAMPLES / "test_fixtures.py")]
    argv += ["-p", "no:cacheprovider"]
    for option, words in (["--ksmpy"], True), ([], False):
        done = subprocess.run(
            [*argv, *option],
            env=environment(place), cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        told = re.search(r"8\.0 MiB  deployed, trained  \(at .*test_they_are_equal\)", done.stdout)
        assert bool(told) == words, done.stdout
