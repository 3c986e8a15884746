"""What the benchmarks need of the engine's sources is there; they themselves run for minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
