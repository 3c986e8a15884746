"""csrc/pages/candidates.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "few pages of one checksum are compared",
        file="csrc/pages/candidates.c",
        old=" && tries < COMPARED;",
        new=";",
        tests=("test_collisions.py::test_many_pages_of_one_checksum_keep_nobody_waiting",),
    ),
]
