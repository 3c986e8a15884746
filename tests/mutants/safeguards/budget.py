"""csrc/budget.c, and what heeds it."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "scattered pages leave a share of the mappings",
        file="csrc/budget.c",
        old="n < LONG_RUN ? engine->vma_limit / LONG_RUNS_SHARE : 0",
        new="0",
        tests=("test_budget.py::test_scattered_pages_leave_a_share_for_ever",),
    ),
    Mutant(
        "refused pages are not looked up before there is room",
        file="csrc/scan.c",
        old="(state == PAGE_REFUSED && engine->asks_again)",
        new="state == PAGE_REFUSED",
        tests=("test_stretches.py::test_refused_pages_wait_until_there_is_room",),
    ),
]
