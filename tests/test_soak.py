"""The soaks in their short form: a few rounds for each way of freezing, and a few short lives.

``make soak SOAK_SECONDS=3600`` and ``make soak-store SOAK_SECONDS=1800`` are the long forms.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EACH_FREEZE, Mode
from support import swap
from support.patience import patience

ROOT = Path(__file__).parent.parent
SECONDS = 1
STORE_SECONDS = 8


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


@pytest.mark.timeout(patience(120))
def test_processes_come_and_go(above: Path) -> None:
    """On one store: forks, execs, SIGKILL; no byte is wrong, no frame is lost or left."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.soak.fleet", f"--seconds={STORE_SECONDS}"),
            *("--interval=2", "--look=0.3", "--generation=4", f"--folder={above}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as fleet:
        try:
            said, _ = fleet.communicate(timeout=patience(100))
        except BaseException:
            os.killpg(fleet.pid, signal.SIGKILL)
            raise
    assert fleet.returncode == 0, f"exit {fleet.returncode}\n{said}"
