"""What is saved: the same figure in everything that shows one, and none that is not there."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy  # noqa: F401 -- its BLAS starts threads, which no test is to have left behind
import pytest

from ksmpy import proc
from ksmpy.cli.output import human_bytes
from ksmpy.watch.pages import Kind
from ksmpy.watch.past import pasts
from ksmpy.watch.stores import look_at, saved_bytes
from ksmpy.watch.subjects import Subject, examine
from support.patience import until
from test_cli import ksmpy, needs_engine

pytestmark = needs_engine

MIB = 1 << 20
LOADED = 8 * MIB
ZEROS = 2 * MIB

# A parent merges, and forks a child that goes on with its engine and has more zeros; a stranger has
# loaded the same. On SIGUSR1 each scans once more. Every scan is noted.
FAMILY = """
import os, signal, subprocess, sys, numpy as np, ksmpy
from ksmpy.engine import history
history._COST_FACTOR = history._MIN_SECONDS = 0

def zeros():
    made = ksmpy.empty(2 << 20, np.uint8)
    made[:] = 0
    return made

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
if len(sys.argv) == 1:
    subprocess.Popen([*sys.orig_argv, "stranger"])
kept = [ksmpy.array(np.random.default_rng(3).integers(0, 256, 8 << 20, np.uint8)), zeros()]
engine = ksmpy.Engine(store="app")
for each in kept:
    engine.register(each)
engine.scan(3, eager=True)
if len(sys.argv) == 1 and os.fork() == 0:
    kept.append(zeros())
    engine.register(kept[-1])
while True:
    engine.scan(3, eager=True)
    os.write(1, b"%d\\n" % os.getpid())
    signal.sigwait({signal.SIGUSR1})
"""


@contextmanager
def family() -> Iterator[set[int]]:
    """The processes, when they have merged."""
    command = [sys.executable, "-c", FAMILY]
    with Popen(command, stdout=PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        try:
            pids = {int(child.stdout.readline()) for _ in range(3)}
            for pid in [*pids, *pids]:
                os.kill(pid, signal.SIGUSR1)
                assert int(child.stdout.readline()) == pid
            yield pids
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def samples() -> dict[str, dict[str, float]]:
    """What `ksmpy export` answers, by name and by pid or store."""
    pytest.importorskip("prometheus_client")
    from ksmpy.watch.metrics import Collector

    found: dict[str, dict[str, float]] = {}
    for metric in Collector().collect():
        for sample in metric.samples:
            key = sample.labels.get("pid") or sample.labels.get("store") or ""
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def told(*arguments: str) -> Any:
    """What a command says as JSON."""
    where = {"KSMPY_STORE_DIR": os.environ["KSMPY_STORE_DIR"]}
    done = ksmpy(*arguments, "--json", env=where)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_view_says_the_same_of_a_family_and_a_stranger(place: Path) -> None:
    """In all and of each process: report, top, stats, export, store list and store show."""
    with family() as pids:
        report = told("report", "--store", "app")
        each = {process["pid"]: process["saved_bytes"] for process in report["processes"]}
        together = report["totals"]["saved_bytes"]
        assert set(each) == pids
        for name in ("top", "stats"):
            seen = {one["pid"]: one["saved_bytes"] for one in told(name) if one["pid"] in pids}
            assert seen == each
        for pid in pids:
            assert told("stats", str(pid))["saved_bytes"] == each[pid]
        (listed,) = told("store", "list")
        assert listed["saved_bytes"] == together
        assert told("store", "show", "app")["stats"]["saved_bytes"] == together
        exported = samples()
        assert exported["ksmpy_store_saved_bytes"] == {"app": together}
        of_processes = exported["ksmpy_process_saved_bytes"]
        assert {pid: of_processes[str(pid)] for pid in pids} == each
        # Others may come and go, such as those of tests at the same time.
        if set(of_processes) == set(map(str, pids)):
            assert exported["ksmpy_saved_bytes"][""] == together
        for name in ("stats", "top"):
            said = ksmpy(name).stdout
            if {int(word) for word in re.findall(r"^ *(\d+) ", said, re.MULTILINE)} == pids:
                assert f"saved by all of them together: {human_bytes(together)}" in said
    totals = report["totals"]
    # The stranger's model, and the zeros of all; the child has a model and zeros by the fork.
    assert totals["by_fork_bytes"] >= 0.9 * (LOADED + ZEROS)
    assert together <= LOADED + 3 * ZEROS - totals["overhead_bytes"]
    assert together >= 0.8 * LOADED


def test_a_look_in_brief_sees_what_one_in_detail_sees(place: Path) -> None:
    """Without smaps: `top`, `stats` and `export` see what a report sees, of stopped processes."""
    with family() as pids:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: {proc.stat(pid)[0] for pid in pids} == {b"T"}, "a process goes on")
        for pid in pids:
            brief, detailed = (examine(pid, {}, detailed=each) for each in (False, True))
            # How much of libraries is its own depends on who else comes and goes.
            ours = replace(brief.seen, pss_bytes=0, uss_bytes=0)
            assert ours == replace(detailed.seen, pss_bytes=0, uss_bytes=0)
            assert brief.stores == detailed.stores
            assert detailed.seen.zero_bytes >= ZEROS and detailed.seen.merged_bytes >= LOADED
            for name in ("start", "pages", "kind", "store", "frame"):
                assert _on_frames(brief, name) == _on_frames(detailed, name)


def _on_frames(subject: Subject, name: str) -> list[int]:
    on = subject.look.kind == Kind.SHARED
    return list(getattr(subject.look, name)[on])


def test_what_engines_note_is_what_is_seen(place: Path) -> None:
    """Forks, zeros and tables are reckoned in over time as they are at the end, and by the
    counters of a store whose processes nobody looks at.
    """
    with family() as pids:
        totals = told("report", "--store", "app")["totals"]
        noted = sum(past.samples[-1].saved for pid in pids for past in pasts(pid))
        store = look_at("app")
        assert store.stats is not None
        counted = saved_bytes(store.stats, store.processes)
    assert noted == pytest.approx(totals["saved_bytes"], abs=MIB)
    assert counted == pytest.approx(totals["saved_bytes"], abs=MIB)


def test_the_store_that_only_the_environment_names_may_be_missing(place: Path) -> None:
    """The command says so on one line of stderr, and shows the rest; --store is an error still."""
    where = {"KSMPY_STORE_DIR": os.environ["KSMPY_STORE_DIR"], "KSMPY_STORE": "nowhere"}
    done = ksmpy("stats", "--json", env=where)
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), list)
    assert done.stderr.count("\n") == 1 and "no store 'nowhere'" in done.stderr
    refused = ksmpy("stats", "--store", "nowhere", env=where)
    assert refused.returncode == 1
