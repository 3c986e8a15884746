"""csrc/merge/equal_neighbours.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a guess about the rest of a stretch is bounded",
        file="csrc/merge/equal_neighbours.c",
        old="__builtin_clzll(least(most, n))",
        new="__builtin_clzll(n)",
        tests=("test_stretches.py::test_a_guess_about_the_rest_is_worth_a_few_frames",),
    ),
]
