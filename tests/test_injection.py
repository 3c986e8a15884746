"""Every single call to the operating system fails once; no byte may be lost by it.

The calls of an undisturbed life of some buffers are counted, then the life is repeated as often,
with one more call failing each time: bytes stay, errors are of the promised kinds, and afterwards
everything works. A library that is preloaded makes the calls of the extension fail, and of nobody
else. Calls from the same place of the code are tried twice; KSMPY_INJECT_ALL=1 tries each of them,
with every errno that it can have, and calls that keep failing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from conftest import Mode, capabilities
from support.inject import preloaded
from support.procs import environment, python, python_ok

THOROUGH = os.environ.get("KSMPY_INJECT_ALL") == "1"
SAMPLES = 0 if THOROUGH else 2
pytestmark = pytest.mark.timeout(3000 if THOROUGH else 300)

#: So many deaths of the child are tolerated before giving up on the rest.
MAX_DEATHS = 8


def _run(arguments: list[str]) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    module = ["-X", "faulthandler", "-m", "support.injection_run"]
    done = python(*module, *arguments, env=preloaded({}), seconds=1200)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def _each_call_fails(scenario: str, mode: Mode, variant: int, persistent: bool) -> list[str]:
    """The problems of one round: wrong bytes, wrong errors, deaths of the process."""
    problems: list[str] = []
    first, total, deaths = 1, 0, 0
    while deaths < MAX_DEATHS:
        lines, done = _run(
            [scenario, mode.freeze, mode.tracking]
            + [str(number) for number in (first, variant, int(persistent), SAMPLES)]
        )
        assert lines, f"not even the undisturbed run worked:\n{done.stderr}"
        total = lines[0]["calls"]
        begun = [line for line in lines if "begins" in line]
        ended = {line["ends"]: line["problem"] for line in lines if "ends" in line}
        for line in begun:
            label = f"call {line['begins']} of {total}, {line['kind']} at {line['site']}"
            if line["begins"] not in ended:
                problems.append(f"{label}: died ({done.returncode})\n{done.stderr[-3000:]}")
            elif ended[line["begins"]]:
                problems.append(f"{label}: {ended[line['begins']]}")
        if done.returncode == 0:
            break
        deaths += 1
        first = begun[-1]["begins"] + 1 if begun else total + 1
    assert total > 20, f"only {total} calls were seen: this proves nothing"
    return problems


@pytest.mark.parametrize("scenario", ["life", "forking"])
def test_each_call_fails_once(mode: Mode, scenario: str) -> None:
    """One failing call costs no byte, raises nothing unheard of, and leaves nothing broken."""
    rounds = [(0, False)]
    if THOROUGH:
        rounds += [(1, False), (2, False), (0, True)]
    for variant, persistent in rounds:
        problems = _each_call_fails(scenario, mode, variant, persistent)
        assert not problems, f"variant {variant}, {len(problems)} problems:\n" + "\n".join(
            problems[:10]
        )


@pytest.mark.parametrize("error", [0, 1, 2], ids=["EPERM", "EMFILE", "ENOSYS"])
def test_auto_falls_back_to_signal(error: int) -> None:
    """Where userfaultfd is refused (containers do that), "auto" freezes by signal and merges."""
    code = f"""
import ksmpy
from support import memory, oracle
from support.inject import Injector
one = memory.distinct(16); two = memory.twin(one); wanted = one.tobytes()
import ksmpy.engine.engine
with Injector().failing_kind("userfaultfd", {error}):
    with ksmpy.Engine() as engine:
        assert (engine.freeze, engine.tracking) == ("signal", "checksum"), engine
        engine.register(one); engine.register(two)
        engine.scan(3)
        assert oracle.true_saved_pages([memory.span(one), memory.span(two)]) == 16
        assert one.tobytes() == wanted == two.tobytes()
    choices = {{"uffd-move": "freeze", "uffd-remap": "freeze", "wp-async": "tracking"}}
    for value, option in choices.items():
        try:
            ksmpy.Engine(**{{option: value}})
        except ksmpy.Unsupported:
            continue
        except OSError:
            assert {error} == 1
            continue
        raise AssertionError(value)
"""
    python_ok("-c", code, env=preloaded({}))


def test_no_userfaultfd_at_all() -> None:
    """The same with the system call and the device refused by the kernel's own side (strace)."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    code = (
        "import os, ksmpy\n"
        "from support import memory, oracle\n"
        "one = memory.distinct(16); two = memory.twin(one)\n"
        "engine = ksmpy.Engine()\n"
        "engine.register(one); engine.register(two); engine.scan(2, eager=True)\n"
        "saved = oracle.true_saved_pages([memory.span(one), memory.span(two)])\n"
        "print(engine.freeze, engine.tracking, saved)\n"
        "engine.close()\n"
    )
    refuse = ["-e", "trace=userfaultfd", "-e", "inject=userfaultfd:error=EPERM"]
    done = subprocess.run(
        [strace, "-f", "-qq", "-o", "/dev/null", *refuse, sys.executable, "-c", code],
        env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    freeze, _, saved = done.stdout.split()
    assert saved == "16"
    assert freeze == "signal" or os.access("/dev/userfaultfd", os.R_OK | os.W_OK)


def test_this_machine_offers_what_its_kernel_has() -> None:
    """On a new enough kernel, as root, every mode runs: a broken probe would skip them silently."""
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if os.geteuid() != 0 or version < (6, 8):
        pytest.skip("needs root and Linux 6.8")
    caps = capabilities()
    if not caps["uffd"]:
        pytest.skip(f"userfaultfd is refused here: {os.strerror(caps['uffd_errno'])}")
    wanted = {name: 1 for name in caps if name != "uffd_errno"}
    assert {name: caps[name] for name in wanted} == wanted


def test_a_killed_scan_costs_nothing() -> None:
    """SIGKILL in the middle of merging: the next process finds nothing left over."""
    code = (
        "import ksmpy, time\nfrom support import memory\n"
        "one = memory.distinct(2048); two = memory.twin(one)\n"
        "engine = ksmpy.Engine(); engine.register(one); engine.register(two)\n"
        "print('go', flush=True)\n"
        "while True:\n    engine.scan(eager=True); engine.unmerge()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL
    child.stdout.close()


UNDERSTATED = """
import sys
import ksmpy
from support import memory, oracle
from support.inject import Injector

engine = ksmpy.Engine(freeze="uffd-move", tracking=sys.argv[1])
engine.knobs.use_zero_pages = 1
one = memory.huge_pages(1100)
one[:] = memory.distinct(1100, seed=8)
two = memory.huge_pages(1100)
two[:] = one
one[:: 40 * 4096] ^= 1  # some pages of each piece differ, and go back
one[20 * 4096 : 24 * 4096] = 0
three = memory.twin(one)
arrays = [one, two, three]
wanted = [array.tobytes() for array in arrays]
injector = Injector()
with injector.understating():
    for array in arrays:
        engine.register(array)
    for _ in range(4):
        engine.scan(eager=True)
        assert [array.tobytes() for array in arrays] == wanted
    merged = engine.stats().pages_sharing
    engine.unmerge()
    assert [array.tobytes() for array in arrays] == wanted
assert merged > 2000 and injector.understated > 50, (merged, injector.understated)
engine._core.check()
engine.close()
"""


@pytest.mark.parametrize("tracking", ["wp-async", "checksum"])
def test_a_move_that_did_more_than_it_says(tracking: str) -> None:
    """Pages that were moved although the kernel says otherwise are not lost."""
    mode = Mode("uffd-move", tracking)
    if reason := mode.missing():
        pytest.skip(reason)
    python_ok("-c", UNDERSTATED, tracking, env=preloaded({}))


GAPS = """
import sys
import ksmpy.native
from support.inject import Injector
from support.scenarios import Life

kind, *options = sys.argv[1:]
injector = Injector()
fired = nth = 0
while nth == fired:
    nth += 1
    life = Life(*options)
    with injector.leaving_gap(kind, nth):
        life.disturbed()
    fired += injector.fired
    life.recover()
assert fired > 4, fired
"""


@pytest.mark.parametrize("kind", ["mmap(MAP_FIXED)", "mremap"])
def test_a_call_that_fails_and_leaves_a_gap(mode: Mode, kind: str) -> None:
    """Memory is back where the kernel took it away, and then had none for what replaces it."""
    python_ok("-X", "faulthandler", "-c", GAPS, kind, mode.freeze, mode.tracking, env=preloaded({}))


UNWRITTEN = """
import sys
import ksmpy
from support import memory, oracle
from support.inject import Injector

variant, expected = int(sys.argv[1]), sys.argv[2]
one = memory.distinct(64)
arrays = [one, memory.twin(one)]
wanted = one.tobytes()
with ksmpy.Engine() as engine:
    for array in arrays:
        engine.register(array)
    injector = Injector()
    with injector.failing_kind("pwrite", variant):
        result = engine.scan(eager=True)
    assert injector.fired
    refused = {"no_memory": result.no_memory, "differed": result.differed}
    assert refused.pop(expected) == 64, (expected, result)
    assert not any(refused.values()) and not result.merged, result
    engine.scan(2, eager=True)
    assert oracle.true_saved_pages([memory.span(array) for array in arrays]) == 64
    assert all(array.tobytes() == wanted for array in arrays)
"""


@pytest.mark.parametrize(
    ("variant", "counted"),
    [(0, "no_memory"), (1, "differed"), (2, "differed")],
    ids=["ENOSPC", "EFAULT", "EBADF"],
)
def test_a_frame_that_could_not_be_written(variant: int, counted: str) -> None:
    """Only a full store is called one; memory that went away, or a closed file, is not."""
    python_ok("-c", UNWRITTEN, str(variant), counted, env=preloaded({}))
