"""The soak in its short form: a few rounds for each way of freezing, in processes of their own.

``make soak SOAK_SECONDS=3600`` is the long form.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EACH_FREEZE, Mode
from support import swap

ROOT = Path(__file__).parent.parent
SECONDS = 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_switching_without_end(chosen: Mode, tmp_path: Path) -> None:
    """Writers, forks, swap, migration: no byte is lost, no frame is left, EBUSY is the worst."""
    reason = chosen.missing()
    if reason is not None:
        pytest.skip(reason)
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.soak"),
                *(f"--seconds={SECONDS}", f"--mode={chosen}", f"--folder={tmp_path}"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    finally:
        for path in tmp_path.glob("*/swap"):
            swap.stop(str(path))
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
