"""Programs from PyPI under `ksmpy run`, unchanged: the same answers from far less memory.

Skipped without them, which `make test-field` installs; `make field` measures these and others.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from field.group import Group, fill
from field.measure import LOADING, SETTLING, run_once
from field.programs import PROGRAMS, Program
from ksmpy import native
from support.patience import patience

pytestmark = [
    pytest.mark.skipif(
        native.missing() is not None, reason=native.missing() or "an engine can be made"
    ),
    pytest.mark.timeout(patience(LOADING + 2 * SETTLING)),
]

MEBIBYTES = 64
WORKERS = 3
#: What an engine may cost a process that has loaded, and all others together, in MiB.
EACH, OTHERS = 6, 8
SMALL = ("gunicorn", "uvicorn uvloop", "joblib")


@pytest.mark.parametrize("name", SMALL)
def test_a_group_has_one_copy(name: str, tmp_path: Path) -> None:
    """All workers have one copy of what each has loaded, also after one was killed."""
    (program,) = (each for each in PROGRAMS if each.name == name)
    _need(program)
    right = fill(tmp_path, MEBIBYTES)
    without, _ = run_once(Group(program, tmp_path, WORKERS), disturbed=False)
    goal = without.pss - 0.95 * (WORKERS - 1) * MEBIBYTES + WORKERS * EACH + OTHERS
    group = Group(program, tmp_path, WORKERS, ())
    sizes, answers = run_once(group, disturbed=True, goal=goal)
    assert answers <= right
    assert sizes.pss <= goal, (without, sizes)


def _need(program: Program) -> None:
    for name in program.needs:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: make test-field")
