"""csrc/pages/pins.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what was abandoned is pinned",
        file="csrc/pages/pins.c",
        old="        store_pin(&pages->store, frame);\n    if (!pages->pins.list.base",
        new="        (void)0;\n    if (!pages->pins.list.base",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "what is in sight keeps no pins",
        file="csrc/pages/pins.c",
        old="frame_at(store, (uint32_t)frame)->pins &&",
        new="frame_at(store, (uint32_t)frame)->pins || false &&",
        tests=("c/test_merging.c::what_is_in_sight_keeps_no_pins",),
    ),
    Mutant(
        "a moved overlay is found wherever it is",
        file="csrc/pages/pins.c",
        old="shows_store(pages, &vma) && !vma.shared",
        new="is_overlay(pages, &vma)",
        tests=("test_exchanged.py::test_moved_overlays_keep_their_frames",),
    ),
]
