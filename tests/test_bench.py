"""What the benchmarks need of the engine's sources is there; they themselves run for minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
@pytest.mark.parametrize("library", ["_library", "_index_library"])
def test_the_c_parts_compile(library: str) -> None:
    """The loops in C, and the engine's own index with what it is compared with."""
    done = subprocess.run(
        [sys.executable, "-c", f"from bench import native; native.{library}()"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
