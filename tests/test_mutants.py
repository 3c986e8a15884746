"""The safeguards that `make mutants` takes out, one at a time: its list fits the sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_edit_applies() -> None:
    """Each text to be replaced stands in its file exactly once, and the tests to be run exist."""
    command = [sys.executable, "-m", "tests.mutants", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
