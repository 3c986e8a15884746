"""csrc/engine/api.c and csrc/engine/knobs.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "flags are told of the region that was asked about",
        file="csrc/engine/api.c",
        old="region_at(&engine->pages, region)->address == address;",
        new="true;",
        tests=("test_registration.py::test_flags_are_told_of_the_region_that_was_asked_about",),
    ),
    Mutant(
        "a rule is not switched over frames",
        file="csrc/engine/knobs.c",
        old="    if (store->head->live_frames || store->head->shared_frames) {",
        new="    if (false) {",
        tests=("c/test_engine.c::full_frames_form_chains",),
    ),
]
