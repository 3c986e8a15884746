"""csrc/engine/check.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a newcomer checks what others wait with",
        file="csrc/store/check.c",
        old="return report.error ? report.error : announcements_check(store);",
        new="return report.error;",
        tests=("c/test_store.c::a_head_that_says_too_much_is_refused",),
    ),
]
