"""torch's tensors between processes: no byte is lost, and what workers have loaded is there once.

Skipped without torch, which `make test-torch` installs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from field.group import Group, fill
from field.programs import PROGRAMS
from ksmpy import native
from support import oracle
from support.patience import patience

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="torch is not installed: make test-torch"
    ),
    pytest.mark.skipif(
        native.missing() is not None, reason=native.missing() or "an engine can be made"
    ),
    pytest.mark.timeout(patience(400)),
]

MIB = 1 << 20
METHODS = ("fork", "spawn", "forkserver")
LONG = patience(180)
WORKERS = 4
MEBIBYTES = 32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["queues", "loader"])
def test_tensors_between_processes(what: str, method: str) -> None:
    """Merged tensors that go through a queue, by either of torch's ways to share a storage, and
    those that workers of a DataLoader read, while all of these processes merge at full speed.
    """
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "support.tensors", what, method],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=2 * LONG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("way", [*METHODS, "alone"])
def test_a_model_in_four_workers_is_there_once(way: str) -> None:
    """Under `ksmpy run`, whoever starts them: of four copies of a model's weights three are saved,
    but for 3 % of their pages; and all answer with the right bytes.
    """
    (program,) = (each for each in PROGRAMS if each.name == f"module {way}")
    wanted = 0.97 * (WORKERS - 1) * MEBIBYTES * MIB / oracle.PAGE
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        right = fill(here, MEBIBYTES)
        with Group(program, here, WORKERS, ()) as group:
            group.until_loaded(LONG)
            group.until(lambda: saved_pages(here) >= wanted, "not shared", LONG)
            group.until_answered(16 * WORKERS, LONG)
            assert {answer for _, answer in group.answers()} <= right
            assert saved_pages(here) >= wanted
            group.end(LONG)


def saved_pages(here: Path) -> int:
    """How many pages less the workers' weights take than without, as the kernel has it."""
    frames: Counter[oracle.Frame] = Counter()
    for told in here.glob("loaded.*"):
        lines = [line.split() for line in told.read_text().splitlines()]
        weights = [whole_pages(int(address), int(nbytes)) for address, nbytes in lines]
        frames += oracle.shared_pages(weights, int(told.suffix[1:]))
    return frames.total() - len(frames)


def whole_pages(address: int, nbytes: int) -> tuple[int, int]:
    """Of memory, as (address, bytes)."""
    first = -(-address // oracle.PAGE) * oracle.PAGE
    return first, (address + nbytes) // oracle.PAGE * oracle.PAGE - first
