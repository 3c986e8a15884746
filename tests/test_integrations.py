"""The programs in examples/, with the real thing; each is skipped where that is not installed."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import ksmpy
from ksmpy import proc
from ksmpy.integrations import pools
from ksmpy.integrations.common import enable_if_can, enable_on
from ksmpy.integrations.resident import Resident
from ksmpy.whole.enable import enabled_engine
from support.patience import patience, until
from test_cli import ksmpy as command
from test_cli import needs_engine

pytestmark = needs_engine

EXAMPLES = Path(__file__).parents[1] / "examples"
MIB = 1 << 20


def needed(package: str) -> None:
    """Skip where it is not installed; not imported, which starts processes for some."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test-field (torch: test-torch, ray: field)")


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
    loaded, in one copy already, and the store serves what comes later.
    """
    needed("gunicorn")
    argv = ["gunicorn", "-c", "python:ksmpy.integrations.gunicorn", "-w", "3", "--preload"]
    argv += ["-b", f"unix:{tmp_path / 'socket'}", "gunicorn_app:app"]
    if not preload:
        argv.remove("--preload")
    log = tmp_path / "log"
    with running(argv, place, log) as pid:
        wait_until_saved(pid, place, (0 if preload else 56) * MIB, 4 if preload else 3, log)


def test_celery_pool_processes_share(place: Path, tmp_path: Path) -> None:
    """`setup()` where the tasks are is all."""
    needed("celery")
    argv = ["celery", "-A", "celery_tasks", "worker", "-c", "2", "--pool", "prefork"]
    argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    log = tmp_path / "log"
    with running(argv, place, log, BROKER="memory://") as pid:
        wait_until_saved(pid, place, 28 * MIB, 2, log)


def test_uvicorn_workers_share(place: Path, tmp_path: Path) -> None:
    """The middleware in the application's module is all; the supervisor has no part in it."""
    needed("uvicorn")
    argv = ["uvicorn", "--workers", "2", "--uds", str(tmp_path / "socket"), "uvicorn_app:app"]
    log = tmp_path / "log"
    with running(argv, place, log) as pid:
        wait_until_saved(pid, place, 28 * MIB, 2, log)


def example(place: Path, tmp_path: Path, *argv: str) -> str:
    """What a program in examples/ prints; it writes nothing but there."""
    with TemporaryDirectory(dir="/tmp") as short:  # for paths of sockets
        more = {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path), "RAY_TMPDIR": short}
        program = [*argv[:-1], str(EXAMPLES / argv[-1])] if argv[0] == "-m" else [
            str(EXAMPLES / argv[0]), *argv[1:]
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *program],
            env=environment(place, RAY_USAGE_STATS_ENABLED="0", **more),
            cwd=tmp_path, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("program", "needs"),
    [
        (["dask_workers.py"], "distributed"),
        (["joblib_jobs.py"], "joblib"),
        (["process_pool.py"], "concurrent"),
        (["data_loader.py", "spawn"], "torch"),
        (["ray_workers.py"], "ray"),
        (["-m", "IPython", "ipython_session.ipy"], "IPython"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_an_example_says_what_it_saved(
    place: Path, tmp_path: Path, program: list[str], needs: str
) -> None:
    """One model less in memory than there are workers, by the store's own count; and what else is
    equal in the heaps of processes that have loaded the same modules.
    """
    needed(needs)
    (saved,) = re.findall(r"^saved (\d+) MiB$", example(place, tmp_path, *program), re.MULTILINE)
    assert 28 <= int(saved) <= 48


def test_dask_guards_count_what_is_paid_for(place: Path, tmp_path: Path) -> None:
    """RSS is above the limit; neither does the worker pause nor its nanny restart it."""
    needed("distributed")
    told = example(place, tmp_path, "dask_limits.py")
    found = re.search(r"RSS (\d+) MiB, limit (\d+) MiB, counted (\d+) MiB: running", told)
    assert found is not None, told
    rss, limit, counted = map(int, found.groups())
    assert "copies 6" in told and rss > 0.95 * limit and counted < 0.7 * limit


def test_resident_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    """RSS less what others share, by PSS; RSS itself of a process that is gone."""
    own = Resident(os.getpid())
    sizes = proc.rollup()
    assert 0 < own.of(sizes["Rss"]) <= sizes["Rss"]
    others = sizes["Rss"] - own.of(sizes["Rss"])
    assert abs(others - (sizes["Rss"] - sizes["Pss"])) < 4 * MIB
    assert own.of(0) == 0
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert Resident(ended.pid).of(5 * MIB) == 5 * MIB


# With as many workers as are started at once: says how many share a store before they end.
_POOL = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from ksmpy.integrations import pools

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

if __name__ == "__main__":
    start, seen = pools.share(), Path("seen")
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, context, initializer=start) as pool:
        workers = [pool.submit(wait_for, seen) for _ in range(2)]
        while len(start.keywords["store"].processes()) < 2:
            time.sleep(0.01)
        seen.touch()
        for worker in workers:
            worker.result()
    print("both")
"""


@pytest.mark.parametrize("way", multiprocessing.get_all_start_methods())
def test_a_pool_shares_one_store(place: Path, tmp_path: Path, way: str) -> None:
    """However its workers are started; and the store has no name that outlives them."""
    program = tmp_path / "pool.py"
    program.write_text(_POOL)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), way],
        env=environment(place), cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "both\n", "")
    assert not place.exists()


def test_a_store_that_somebody_has_chosen_is_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By KSMPY_STORE; by an argument before that."""
    monkeypatch.setenv("KSMPY_STORE", "chosen")
    found: Any = pools.share(run=0)
    assert found.keywords == {"run": 0}
    found = pools.share("mine")
    assert found.keywords == {"store": "mine"}
    enable_on("default", {"run": 0})
    ksmpy.disable()
    assert [each.name for each in place.iterdir()] == ["chosen.ksmpy"]


def test_a_worker_works_where_no_engine_can_be_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line says why. Options that cannot be are errors all the same."""
    place.mkdir()
    place.chmod(0o777)  # others could put a store of theirs there
    start: Any = pools.share("app")
    start()
    (record,) = caplog.records
    assert str(place) in record.message and "nothing is merged" in record.message
    for wrong in ({"freeze": "none"}, {"store": "a/b"}, {"min_bytes": "few"}):
        with pytest.raises((ValueError, ksmpy.StoreError, TypeError)):
            enable_if_can(**wrong)
    monkeypatch.setattr(ksmpy.Store, "anonymous", _no_descriptors)
    share: Any = pools.share()
    assert "store" not in share.keywords
    assert enabled_engine() is None


def _no_descriptors() -> ksmpy.Store:
    raise ksmpy.StoreError(errno.EMFILE, "all descriptors are in use")


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
