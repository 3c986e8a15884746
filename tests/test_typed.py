"""The program that type checkers read does what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ksmpy
from support.procs import python_ok

PROGRAM = Path(__file__).parent / "typed" / "every_name.py"


def test_the_typed_program_runs(place: Path) -> None:
    """It ends well, where mypy --strict has found nothing wrong with it (make lint)."""
    python_ok(str(PROGRAM))


def test_pyright_finds_nothing_wrong(tmp_path: Path) -> None:
    """In its strict mode; skipped where it is not installed (`make lint` does)."""
    checker = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if checker is None:
        pytest.skip("basedpyright is not installed: make lint")
    tree = str(Path(__file__).parents[1])
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        json.dumps(
            {
                "include": [str(PROGRAM)],
                "extraPaths": [tree],
                "typeCheckingMode": "strict",
                "pythonVersion": "3.10",
                "reportMissingImports": False,
                "reportUnknownMemberType": "torch" in sys.modules,
                "reportUnknownVariableType": "torch" in sys.modules,
                "reportUnknownArgumentType": "torch" in sys.modules,
            }
        )
    )
    argv = [checker, "-p", str(config), "--pythonpath", sys.executable]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert told.returncode == 0, told.stdout


def test_it_leaves_out_no_public_name() -> None:
    """A name that is added has to be used there, and so is checked."""
    text = PROGRAM.read_text()
    assert not [name for name in ksmpy.__all__ if f"ksmpy.{name}" not in text]
