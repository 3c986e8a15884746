"""Magics in a real IPython, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from test_cli import needs_engine

pytest.importorskip("IPython")
pytestmark = needs_engine

# Cells are run one after the other; of each what it shows as HTML and as text, or its error.
_DRIVER = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "ksmpy")
shown = []
for cell in json.loads(sys.argv[1]):
    with capture_output() as captured:
        done = shell.run_cell(cell)
    shows = [each.data for each in captured.outputs]
    if done.result is not None:
        shows.append(shell.display_formatter.format(done.result)[0])
    html = "".join(each.get("text/html", "") for each in shows)
    text = "".join(each.get("text/plain", "") for each in shows)
    error = done.error_in_exec or done.error_before_exec
    shown.append({"html": html, "text": text, "error": repr(error) if error else ""})
print("SHOWN" + json.dumps(shown))
"""

TWO = "import numpy as np\na = np.random.default_rng(0).random((8 << 20) // 8)\nb = a.copy()"


def cells(place: Path, *texts: str) -> list[dict[str, Any]]:
    """What each cell shows."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, json.dumps(texts)],
        capture_output=True, text=True, timeout=100,
        env={"IPYTHONDIR": str(place), "HOME": str(place), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown: list[dict[str, Any]] = json.loads(done.stdout.rpartition("SHOWN")[2])
    return shown


def test_a_cell_says_what_it_saved(tmp_path: Path) -> None:
    """Its variables are merged, and stay so; the next cell has nothing more to save."""
    first, second, status, again = cells(
        tmp_path, f"%%ksmpy\n{TWO}", "%%ksmpy\nc = 1", "%ksmpy", "(a == b).all()"
    )
    assert not any(each["error"] for each in (first, second, status, again))
    assert "<table>" in first["html"] and "saved" in first["html"] and "MiB" in first["html"]
    assert "saved 0 B" in second["html"]
    assert "merged" in status["html"] and ">0 of" not in status["html"]
    assert "True" in again["text"]


def test_status_and_the_engine_of_the_process(tmp_path: Path) -> None:
    """None at first; then the engine's table, until it is off."""
    none, on, off, wrong, unclosed, reloaded = cells(
        tmp_path,
        "%ksmpy",
        "%ksmpy on",
        "%ksmpy off",
        "%ksmpy sideways",
        '%ksmpy on "x',
        "%unload_ext ksmpy\n%ksmpy",
    )
    assert "none in this process" in none["html"] and "none in this process" in none["text"]
    assert "scans in the background" in on["html"] and "scans in the background" in on["text"]
    assert "none in this process" in off["html"]
    assert "sideways" in wrong["error"] and "No closing quotation" in unclosed["error"]
    for each in (wrong, unclosed):  # these IPython shows as one line
        assert each["error"].startswith("UsageError") and "%ksmpy on [STORE]" in each["error"]
    assert reloaded["html"] == ""


def test_a_cell_that_fails_merges_nothing(tmp_path: Path) -> None:
    """Its error is the cell's, and nothing is shown below it; arguments are refused."""
    failed, status, arguments = cells(
        tmp_path, f"%%ksmpy\n{TWO}\n1 / 0", "%ksmpy", "%%ksmpy loud\n1"
    )
    assert failed["html"] == "" and "none in this process" in status["html"]
    assert "takes no arguments" in arguments["error"]
