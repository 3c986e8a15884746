"""csrc/engine/knobs.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a rule is not switched over frames",
        file="csrc/engine/knobs.c",
        old="    if (store->head->live_frames || store->head->shared_frames) {",
        new="    if (false) {",
        tests=("c/test_engine.c::full_frames_form_chains",),
    ),
]
