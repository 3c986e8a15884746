"""Limits that leave no room: errors name them, and doctor() always answers."""

from __future__ import annotations

import pytest

import ksmpy
from support.procs import python

pytestmark = pytest.mark.timeout(120)

LIMITED = """
import os, resource, sys
import ksmpy
from ksmpy.watch import doctor
from ksmpy.engine import engine

work, kind, limit = sys.argv[1:]
number = getattr(resource, kind)
resource.setrlimit(number, (int(limit), resource.getrlimit(number)[1]))
held = []
if kind == "RLIMIT_NOFILE":
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
exec(work)
"""

DOCTOR = """
checks = ksmpy.doctor()
os.closerange(min(held, default=900), 1000)
for check in checks:
    assert len(str(check.detail).splitlines()) <= 1, check
print(*(f"{check.name}: {check.detail} {check.hint}" for check in checks), sep="\\n")
"""

ENGINE = """
try:
    ksmpy.Engine()
except (OSError, ksmpy.KsmpyError) as error:
    os.closerange(min(held, default=900), 1000)
    print(error)
"""

#: What leaves no room for an engine, and the name that an error has to give.
LIMITS = [("RLIMIT_NOFILE", 60), ("RLIMIT_AS", 1 << 30), ("RLIMIT_FSIZE", 1 << 20)]


@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_doctor_always_answers(kind: str, limit: int) -> None:
    """Every check is there, whatever could not be looked at."""
    done = python("-c", LIMITED, DOCTOR, kind, str(limit))
    assert done.returncode == 0, done.stderr
    usual = {check.name for check in ksmpy.doctor()}
    usual -= {"numpy", "mmh3", "psutil", "faults in system calls"}
    told = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert usual <= told
    assert kind in done.stdout


@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_an_engine_that_a_limit_forbids_names_it(kind: str, limit: int) -> None:
    """One line, with the limit and the way out."""
    done = python("-c", LIMITED, ENGINE, kind, str(limit))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert kind in done.stdout and "ulimit" in done.stdout


def test_doctor_answers_when_its_first_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel offers could not be tried: the checks after that are there all the same."""

    def probe() -> dict[str, int]:
        raise MemoryError

    usual = {check.name for check in ksmpy.doctor()}
    monkeypatch.setattr("ksmpy.native.probe", probe)
    told = {check.name: check for check in ksmpy.doctor()}
    assert {"engine", "mappings", "swap", "kernel KSM"} <= usual & told.keys()
    assert told["what the kernel offers"].detail == "cannot be looked at: Cannot allocate memory"
