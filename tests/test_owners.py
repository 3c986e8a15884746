"""Owners that do to merged memory whatever they like, at random. The long form: ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Mode
from support.patience import patience

ROOT = Path(__file__).parent.parent
SECONDS = 2
#: The other ways lose what somebody maps in the microsecond before pages are taken away (see
#: docs/trust.md), seen in one of a hundred runs of this: they are tortured in the long form only.
MODES = [Mode("uffd-wp", "wp-async"), Mode("uffd-wp", "checksum")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES, ids=str, indirect=True)
def test_owners_do_what_they_like(mode: Mode) -> None:
    """Unmapped, mapped over, moved, grown, protected, locked, given back: no byte is wrong."""
    done = subprocess.run(
        [
            *(sys.executable, "-X", "faulthandler", "-m", "tests.soak.owners"),
            *(f"--freeze={mode.freeze}", f"--tracking={mode.tracking}", f"--seconds={SECONDS}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
