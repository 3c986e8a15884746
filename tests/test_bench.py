"""What the benchmarks need of the engine's sources is there; they themselves run for minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INDEXES = "assert [n.measure_index(kind, 1000, 10).wrong for kind in n.INDEXES] == [0] * 4"

HOLDS = "assert len(n.measure_holds('auto', 'auto', 64 << 20, 4 << 20)) == 14"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
@pytest.mark.parametrize(
    "what",
    [
        pytest.param("n._library()", id="loops"),
        pytest.param(INDEXES, id="indexes"),
        pytest.param(HOLDS, id="holds", marks=pytest.mark.rest),
    ],
)
def test_the_c_parts_work(what: str) -> None:
    """The loops in C compile; the engine's own index finds its keys, as those beside it do."""
    done = subprocess.run(
        [sys.executable, "-c", f"from bench import native as n; {what}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.rest
def test_a_program_is_measured_with_and_without() -> None:
    """It prints the same both times, and each of its figures has a row."""
    command = [sys.executable, "-m", "bench.programs", "--rounds", "1", "temporaries"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| temporaries |")]
    assert len(rows) == 3, done.stdout
