"""csrc/store/check.c, and what it checks trees with."""

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
    Mutant(
        "a tree that leads nowhere new is none",
        file="csrc/base/rbtree.c",
        old="    if (at->left == at->right && at->left != RB_NONE)",
        new="    if (at->left == at->right && node == RB_NONE)",
        tests=("c/test_rbtree.c::the_checker_finds_each_kind_of_damage",),
    ),
]
