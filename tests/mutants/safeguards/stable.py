"""csrc/store/stable.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a long chain is searched bit by bit",
        file="csrc/store/stable.c",
        old="for (int step = 0; step < STEPS && *at != NO_FRAME;",
        new="for (int step = 0; *at != NO_FRAME;",
        tests=("c/test_engine.c::long_chains_are_searched_bit_by_bit",),
    ),
    Mutant(
        "rows in a long chain are searched bit by bit",
        file="csrc/store/stable.c",
        old="for (int step = 0; step < STEPS && *at != NO_FRAME && row->n < max;",
        new="for (int step = 0; *at != NO_FRAME && row->n < max;",
        tests=("c/test_engine.c::rows_in_long_chains_are_searched_bit_by_bit",),
    ),
    Mutant(
        "a full frame of a chain is passed over",
        file="csrc/store/stable.c",
        old="""\
        if (has_room(store, frame_at(store, *at)) &&
            (best""",
        new="        if ((best",
        tests=("c/test_engine.c::full_frames_are_passed_over",),
    ),
    Mutant(
        "a full frame in a run is passed over",
        file="csrc/store/stable.c",
        old="record->tree == tree && has_room(store, record);",
        new="record->tree == tree;",
        tests=("c/test_engine.c::a_run_passes_over_a_full_frame",),
    ),
]
