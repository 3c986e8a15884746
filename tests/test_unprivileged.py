"""The same life of buffers for an ordinary user, without any capability.

A user-mode-only userfaultfd is all that nobody can have; a system call that touches a frozen page
fails with EFAULT then, so nothing is frozen beside one. Everything else works as for root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from conftest import Mode
from support import cgroup, oracle, swap
from support.patience import patience
from support.procs import environment
from support.torture import library

pytestmark = pytest.mark.timeout(patience(120))

NOBODY = 65534
#: What the kernel says of pages that are not there depends on tracking only.
SWAPPED = [Mode("uffd-move", "wp-async"), Mode("signal", "checksum")]

_BECOME = """
import ctypes, os, sys, time
import numpy.random, pytest, ksmpy
import ksmpy.engine.engine, ksmpy.watch.doctor, ksmpy.whole.dedup
from support import memory, oracle, scenarios, swap
from support.nobody import become
from support.torture import Torture, library
library()
freeze, tracking, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
become(uid)
assert os.geteuid() == uid and oracle.sees_pfns() == (uid == 0)
with open("/proc/self/status") as status:
    assert uid == 0 or "CapEff:\\t0000000000000000" in status.read()
"""

_AS_NOBODY = """
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

# The kernel hides from it by which swap entries are none, but marks of write tracking.
_ABSENT = """
one = memory.distinct(1024)
two = memory.twin(one)
spans = [memory.span(one), memory.span(two)]
with ksmpy.Engine(freeze=freeze, tracking=tracking) as engine:
    engine.register(one)
    engine.register(two)
    engine.scan(3, eager=True)
    assert engine.stats().pages_sharing == 1024
    two[7 * 4096] ^= 1
    assert swap.make_absent(spans) == 2047
    for _ in range(3):
        engine.scan()
        assert engine.stats().pages_sharing == oracle.true_saved_pages(spans) == 1023
    two[7 * 4096] ^= 1
    assert (one == two).all()
print("fine")
"""

_IN_SWAP = """
one = memory.distinct(2048)
two = memory.twin(one)
wanted = one.copy()
spans = [memory.span(one), memory.span(two)]
with ksmpy.Engine(freeze=freeze, tracking=tracking) as engine:
    engine.register(one)
    engine.register(two)
    engine.scan(3, eager=True)
    assert engine.stats().pages_sharing == 2048
    two[::8 * 4096] ^= 1
    swap.frames_to_swap(spans)
    swap.evict(*spans[1])
    print(*spans[1], flush=True)
    sys.stdin.readline()
    frames = swap.swapped_frames()
    engine.scan(2)
    assert engine.stats().pages_sharing == oracle.true_saved_pages(spans) == 2048 - 256
    two[::8 * 4096] ^= 1
    assert (one == wanted).all() and (two == wanted).all()
    engine.unmerge()
    assert (one == wanted).all() and (two == wanted).all()
print("fine", frames)
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


@pytest.mark.parametrize("code", [_AS_NOBODY, _ABSENT], ids=["life", "absent"])
def test_an_ordinary_user_merges(mode: Mode, code: str) -> None:
    """Every mode works for nobody: merging, forking, giving back, writers all the while.

    What no page table shows is told from private copies.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody; as another user every test is this one")
    library()  # built before the privileges go
    prefix = _setpriv() if _can_start_as_nobody() else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _BECOME + code, *mode, str(NOBODY)],
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and "fine" in done.stdout, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
@pytest.mark.parametrize("mode", SWAPPED, ids=str, indirect=True)
def test_what_a_cgroup_swaps_out_is_what_it_was(mode: Mode, uid: int, swap_area: str) -> None:
    """Driven into swap by a memory cgroup, merged pages stay merged and copies are told."""
    if reason := cgroup.refusal():
        pytest.skip(reason)
    library()
    with swap.swapping(swap_area), cgroup.made() as group, subprocess.Popen(
        [sys.executable, "-c", _BECOME + _IN_SWAP, *mode, str(uid)],
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}), preexec_fn=group.enter,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        span = process.stdout.readline().split()
        if len(span) == 2:
            group.squeeze(3 << 20)
            start, nbytes = map(int, span)
            entries = oracle.pagemap(start, nbytes, process.pid)[::8]
        said, errors = process.communicate("go\n", timeout=patience(60))
    assert process.returncode == 0 and "fine" in said, f"{said}\n{errors}"
    out = [entry for entry in entries if not entry >> 63 and entry >> 62 & 1]
    assert len(out) > 64, f"only {len(out)} copies were swapped out"
    assert int(said.split()[1]) > 64, f"frames swapped out: {said}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_who_has_changed_its_user_is_told_the_way_out() -> None:
    """Such a process may not read its own files in /proc: one error that says why."""
    begin = _BECOME.partition("become(uid)")[0] + "become(uid, dumpable=False)"
    refused = """
with pytest.raises(PermissionError, match=r"changed its user: .*PR_SET_DUMPABLE, 1"):
    ksmpy.Engine(freeze=freeze, tracking=tracking)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", begin + refused, "auto", "auto", str(NOBODY)],
        env=environment(), capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
