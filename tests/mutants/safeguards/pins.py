"""csrc/pages/pins.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what was abandoned is pinned",
        file="csrc/pages/pins.c",
        old="        store_pin(&engine->store, frame);\n    if (!engine->pins.base",
        new="        (void)0;\n    if (!engine->pins.base",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "a moved overlay is found wherever it is",
        file="csrc/pages/pins.c",
        old="shows_store(engine, &vma) && !vma.shared",
        new="is_overlay(engine, &vma)",
        tests=("test_exchanged.py::test_moved_overlays_keep_their_frames",),
    ),
]
