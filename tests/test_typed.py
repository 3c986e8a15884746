"""The program that type checkers read does what it says."""

from __future__ import annotations

from pathlib import Path

import ksmpy
from support.procs import python_ok

PROGRAM = Path(__file__).parent / "typed" / "every_name.py"


def test_the_typed_program_runs(place: Path) -> None:
    """It ends well, where mypy --strict has found nothing wrong with it (make lint)."""
    python_ok(str(PROGRAM))


def test_it_leaves_out_no_public_name() -> None:
    """A name that is added has to be used there, and so is checked."""
    text = PROGRAM.read_text()
    assert not [name for name in ksmpy.__all__ if f"ksmpy.{name}" not in text]
