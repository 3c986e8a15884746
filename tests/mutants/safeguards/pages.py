"""csrc/pages.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what was abandoned is pinned",
        file="csrc/pages.c",
        old="        store_pin(&engine->store, page_record(engine, id)->link);",
        new="        (void)0;",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
]
