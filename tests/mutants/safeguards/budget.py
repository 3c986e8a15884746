"""csrc/merge/budget.c, and what heeds it."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "scattered pages leave a share of the mappings",
        file="csrc/merge/budget.c",
        old="n < LONG_RUN ? budget->limit / LONG_RUNS_SHARE : 0",
        new="0",
        tests=("test_budget.py::test_scattered_pages_leave_a_share_for_ever",),
    ),
    Mutant(
        "refused pages are not looked up before there is room",
        file="csrc/scan/ahead.c",
        old="(state == PAGE_REFUSED && budget->asks_again)",
        new="state == PAGE_REFUSED",
        tests=("test_stretches.py::test_refused_pages_wait_until_there_is_room",),
    ),
    Mutant(
        "memory that is no longer its owner's is found",
        file="csrc/pages/lost.c",
        old="if (!region->lost && !intact(pages, at, end, deadline))",
        new="if (false)",
        tests=("test_bad_input.py::test_protected_behind_our_back",),
    ),
    Mutant(
        "long runs get the mappings first",
        file="csrc/merge/budget.c",
        old="    return budget_has_room_recounted(budget, more + held_back(budget, n));",
        new="    return budget_has_room_recounted(budget, more);",
        tests=("test_budget.py::test_long_runs_come_first_when_mappings_are_scarce",),
    ),
]
