"""csrc/freeze.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a move that fails halfway is made good",
        file="csrc/freeze.c",
        old="if (!error || os_claim(address, n) != 0)",
        new="if (true)",
        tests=("c/test_freeze.c::a_move_that_fails_halfway_is_made_good",),
        quick=True,
    ),
]
