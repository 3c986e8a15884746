"""csrc/store.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a frame that filled up is not joined",
        file="csrc/store.c",
        old="record->state == FRAME_LIVE && has_room(store, record);",
        new="record->state == FRAME_LIVE;",
        tests=("c/test_between.c::a_frame_has_no_sharer_too_many",),
    ),
    Mutant(
        "a frame that was freed is not joined",
        file="csrc/store.c",
        old="record->state == FRAME_LIVE && has_room(store, record);",
        new="has_room(store, record);",
        tests=("c/test_between.c::a_frame_that_was_freed_is_not_joined",),
        quick=True,
    ),
]
