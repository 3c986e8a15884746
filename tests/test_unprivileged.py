"""The same life of buffers for an ordinary user, without any capability.

A user-mode-only userfaultfd is all that nobody can have; a system call that touches a frozen page
fails with EFAULT then, everything else works as for root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from conftest import MODES, Mode
from support.procs import environment
from support.torture import library

pytestmark = pytest.mark.timeout(120)

NOBODY = 65534

# Everything is imported before the privileges go: the interpreter may lie where nobody can look.
# A process that changes its user is not dumpable, which hides its own /proc files from it.
_AS_NOBODY = """
import ctypes, os, sys, time
import numpy.random, pytest, ksmpy
import ksmpy.engine, ksmpy.doctor, ksmpy.dedup
from support import memory, oracle, scenarios
from support.torture import Torture, library
library()
freeze, tracking, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert libc.prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE
assert os.geteuid() == uid and not oracle.sees_pfns()
with open("/proc/self/status") as status:
    assert "CapEff:\\t0000000000000000" in status.read()
for make in scenarios.SCENARIOS.values():
    life = make(freeze, tracking)
    life.disturbed()
    assert not life.refusals, life.refusals
    life.recover()
merged = 0
with ksmpy.Engine(freeze=freeze, tracking=tracking) as engine:
    with Torture(count=64, buffers=2, efault_ok=True) as torture:
        regions = [engine.register(buffer) for buffer in torture.buffers]
        end = time.monotonic() + 0.5
        while time.monotonic() < end or merged <= 64:
            merged += engine.scan(2, eager=True).merged
        torture.assert_alive()
        engine.unmerge()
assert merged > 64
print("fine", torture.totals)
"""


def _can_start_as_nobody() -> bool:
    if shutil.which("setpriv") is None:
        return False
    probe = subprocess.run(
        [*_setpriv(), sys.executable, "-c", "import numpy, pytest, ksmpy, support"],
        env=environment(), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    return probe.returncode == 0


def _setpriv() -> list[str]:
    drop = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
    return ["setpriv", *drop]


@pytest.mark.parametrize("chosen", MODES, ids=str)
def test_an_ordinary_user_merges(chosen: Mode) -> None:
    """Every mode works for nobody: merging, forking, giving back, writers all the while."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody; as another user every test is this one")
    reason = chosen.missing()
    if reason is not None:
        pytest.skip(reason)
    library()  # built before the privileges go
    prefix = _setpriv() if _can_start_as_nobody() else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _AS_NOBODY, chosen.freeze, chosen.tracking, str(NOBODY)],
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and "fine" in done.stdout, f"{done.stdout}\n{done.stderr}"
