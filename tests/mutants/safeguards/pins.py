"""csrc/pins.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a moved overlay is found wherever it is",
        file="csrc/pins.c",
        old="shows_store(engine, &vma) && !vma.shared",
        new="is_overlay(engine, &vma)",
        tests=("test_exchanged.py::test_moved_overlays_keep_their_frames",),
    ),
]
