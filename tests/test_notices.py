"""The log: one line for what is worth knowing, and not a second one."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import ksmpy
from conftest import EACH_FREEZE, Mode
from ksmpy.engine import notices
from support import memory, oracle, procs
from support.inject import preloaded

MEBI = 1 << 20


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator:
    """A process that has said nothing yet, all of whose lines are kept."""
    monkeypatch.setattr(notices, "_said", {})
    with caplog.at_level(logging.DEBUG, "ksmpy"):
        yield


def lines(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    """The lines with a word in them, of ksmpy's logger."""
    return [r.getMessage() for r in caplog.records if r.name == "ksmpy" and word in r.getMessage()]


def merge_some(engine: Any, seed: int) -> list[Any]:
    """Two equal arrays, merged."""
    arrays = [memory.distinct(16, seed=seed) for _ in range(2)]
    for each in arrays:
        engine.register(each)
    engine.scan(eager=True)
    return arrays


@pytest.mark.parametrize("mode", EACH_FREEZE, indirect=True, ids=str)
def test_the_first_merge_is_told_once(
    mode: Mode, make_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At level INFO, with how many pages and where; not by later scans, engines and children."""
    engine = make_engine()
    engine.scan()
    assert not lines(caplog, "merged")
    kept = merge_some(engine, 1)
    (line,) = lines(caplog, "merged the first")
    assert line == f"merged the first {engine.stats().merging_pages} pages, in a private store"
    assert caplog.records[-1].levelno == logging.INFO
    kept += merge_some(engine, 2)
    kept += merge_some(make_engine(), 3)

    def child() -> None:
        with ksmpy.Engine(**mode.options) as own:
            mine = merge_some(own, 4)
            assert own.stats().pages_sharing == 16 and mine
        assert len(lines(caplog, "merged the first")) == 1

    procs.in_child(child)
    assert len(lines(caplog, "merged the first")) == 1


def test_each_store_has_its_first_merge(
    place: Any, make_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Two stores, two lines."""
    kept = [merge_some(make_engine(store=name), 5) for name in ("one", "two", "one")]
    assert len(kept) == 3
    assert [line.rpartition(", in ")[2] for line in lines(caplog, "merged the first")] == [
        "the store 'one'",
        "the store 'two'",
    ]


def test_scarce_mappings_are_told_once(auto: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A warning with the way out, though pages are refused in every pass."""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        limit = int(file.read())
    auto.knobs.smart_scan = False
    auto.knobs.vma_share_percent = 100 * len(oracle.mappings()) // limit + 1
    one, two = memory.distinct(8192, seed=1), memory.distinct(8192, seed=2)
    two.reshape(-1, 4096)[::2] = one.reshape(-1, 4096)[::2][::-1]
    auto.register(one), auto.register(two)
    refused = [auto.scan(eager=True).no_budget for _ in range(3)]
    assert refused[0] and auto.stats().pages_no_budget
    (line,) = lines(caplog, "mappings are scarce")
    assert "vm.max_map_count" in line and "vma_share_percent" in line
    (record,) = [r for r in caplog.records if "scarce" in r.getMessage()]
    assert record.levelno == logging.WARNING


STORE_FULL = f"""
import logging, resource, signal, ksmpy, numpy as np
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rng = np.random.default_rng(0)
data = rng.integers(0, 256, {8 * MEBI}, np.uint8)
arrays = [ksmpy.array(data) for _ in range(2)]
with ksmpy.Engine() as engine:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({MEBI}, {MEBI}))
    for each in arrays:
        engine.register(each)
    print([engine.scan(eager=True).no_memory > 0 for _ in range(3)])
    print(all((each == data).all() for each in arrays))
"""


def test_a_full_store_is_told_once() -> None:
    """A store that may not grow says so on stderr, where nobody has asked for the log, once."""
    told = subprocess.run(
        [sys.executable, "-c", STORE_FULL], capture_output=True, text=True, timeout=100
    )
    assert told.returncode == 0, told.stderr
    refused, right = told.stdout.splitlines()
    assert refused.startswith("[True") and right == "True"
    assert told.stderr.count("WARNING ksmpy a private store is full: ") == 1, told.stderr
    assert told.stderr.count("\n") == 1


def test_a_fallback_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """What "auto" had to take; what was asked for by name is no fallback."""
    for _ in range(2):
        notices.fell_back("signal", "checksum")
    assert len(lines(caplog, "frozen by signal")) == len(lines(caplog, "reads all pages")) == 1
    with ksmpy.Engine(freeze="signal", tracking="checksum"):
        assert len(caplog.records) == 2


NO_USERFAULTFD = """
import logging, ksmpy, ksmpy.engine.engine
from support.inject import Injector
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
with Injector().failing_kind("userfaultfd", 0):
    for _ in range(2):
        with ksmpy.Engine() as engine:
            assert (engine.freeze, engine.tracking) == ("signal", "checksum")
    for _ in range(2):
        ksmpy.enable(adopt="mappings")
        ksmpy.disable()
"""


def test_without_userfaultfd_each_consequence_is_told_once() -> None:
    """How pages are frozen, how writes are noticed, what is adopted: three lines for four
    engines.
    """
    told = subprocess.run(
        [sys.executable, "-c", NO_USERFAULTFD],
        env={**procs.environment(), **preloaded({})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stderr
    assert [line.split(":")[0] for line in told.stderr.splitlines()] == [
        "INFO pages are frozen by signal",
        "INFO each pass reads all pages",
        "INFO only what Python objects have is adopted",
    ]
