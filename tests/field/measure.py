"""One program without and with `ksmpy run`: sizes, answers, and what a killed worker changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .group import Group, Sizes, fill
from .programs import Program

__all__ = ["HEAD", "Measured", "measure", "run_once"]

#: Seconds that loading, coming to rest, and being replaced may take.
LOADING = 240.0
SETTLING = 120.0

HEAD = (
    "| program | one copy | PSS without | PSS with | copies with | saved | RSS without | RSS with"
    " | processes | seconds |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Measured:
    """What a program took, in MiB."""

    program: Program
    workers: int
    copy: float
    """One copy of what all load, by its size, or by what one process more takes."""
    without: Sizes
    with_ksmpy: Sizes

    @property
    def copies(self) -> float:
        """How many copies there are with ksmpy; everything it costs counts as a part of one."""
        if not self.copy:
            return math.nan
        loaded = self.program.copies or self.workers
        rest = self.without.pss - loaded * self.copy
        return (self.with_ksmpy.pss - rest) / self.copy

    def row(self) -> str:
        """A line of the table."""
        cells = (
            f"{self.copy:.0f}", f"{self.without.pss:.0f}", f"{self.with_ksmpy.pss:.0f}",
            f"{self.copies:.2f}", f"{self.without.pss - self.with_ksmpy.pss:.0f}",
            f"{self.without.rss:.0f}", f"{self.with_ksmpy.rss:.0f}",
            f"{self.without.processes}", f"{self.with_ksmpy.seconds:.0f}",
        )  # fmt: skip
        return f"| {self.program.name} | {' | '.join(cells)} |"


def run_once(group: Group, *, disturbed: bool, goal: float = 0.0) -> tuple[Sizes, set[str]]:
    """Start it, let it come to rest, kill one of its workers, let it come to rest again."""
    with group:
        group.until_loaded(LOADING)
        group.until_answered(group.workers, LOADING)
        sizes = _at_rest(group, goal)
        if disturbed and not group.program.together:
            group.kill_one(LOADING)
            if group.program.reloads:
                group.reload(LOADING)
            group.until_answered(4 * group.workers, LOADING)
            if group.program.loads == "numpy":  # others are not replaced
                sizes = _at_rest(group, goal)
        answers = {answer for _, answer in group.answers()}
        code = group.end(60)
        assert code in (0, 143, -15), f"{group.program.name} ended with {code}"
    return sizes, answers


def _at_rest(group: Group, goal: float) -> Sizes:
    """With all workers there: on a loaded machine gunicorn ends those that are slow."""
    sizes = group.settled(SETTLING, goal)
    while not group.all_loaded():
        group.until_loaded(LOADING)
        sizes = group.settled(SETTLING, goal)
    return sizes


def measure(
    program: Program,
    here: Path,
    mebibytes: int,
    workers: int,
    options: Sequence[str] = (),
    nobody: bool = False,
) -> Measured:
    """Both ways. AssertionError when it fails, or answers differently."""
    right = fill(here, mebibytes)
    without, expected = run_once(Group(program, here, workers, nobody=nobody), disturbed=False)
    group = Group(program, here, workers, tuple(options), nobody=nobody)
    sizes, answers = run_once(group, disturbed=True)
    if program.loads == "numpy":
        assert expected <= right, f"{program.name} answers {expected - right} without ksmpy"
        expected = right
    assert answers <= expected, f"{program.name} answers {answers - expected}"
    copy = float(mebibytes)
    if program.loads != "numpy":
        single, _ = run_once(Group(program, here, 1, nobody=nobody), disturbed=False)
        copy = (without.pss - single.pss) / max(workers - 1, 1)
    return Measured(program, workers, copy, without, sizes)
