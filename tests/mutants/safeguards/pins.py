"""csrc/pages/pins.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "who came after the pins does not hold its parent's slot",
        file="csrc/pages/pins.c",
        old="        store_pins_are_gone(&pages->store);",
        new="        pages->store.pinned = false;",
        tests=(
            "test_shared_deaths.py"
            "::test_a_child_that_came_after_the_pins_keeps_no_frame_of_the_dead",
        ),
    ),
    Mutant(
        "who comes while frames are pinned holds its parent's slot",
        file="csrc/store/children.c",
        old="    if (store->memory && !store->taking && !store->pinned)\n        store_disinherit",
        new="    if (store->memory)\n        store_disinherit",
        tests=("c/test_slots.c::children_inherit_neither_the_index_nor_the_slot",),
    ),
    Mutant(
        "only a child without a slot holds its parent's",
        file="csrc/store/children.c",
        old="        store_disinherit(store);",
        new="        (void)store;",
        tests=("c/test_slots.c::a_fork_without_a_slot_loses_frames",),
    ),
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
        "a pin of a shared store goes with the last that needs it",
        file="csrc/pages/pins.c",
        old="        else if (!pages->store.shared || !is_marked(pages, pin.frame))",
        new="        else",
        tests=("c/test_merging.c::each_is_looked_for_in_a_shared_store",),
    ),
    Mutant(
        "a moved overlay is found wherever it is",
        file="csrc/pages/pins.c",
        old="shows_store(pages, &vma) && !vma.shared",
        new="is_overlay(pages, &vma)",
        tests=("test_exchanged.py::test_moved_overlays_keep_their_frames",),
    ),
    Mutant(
        "a child keeps what it could not note",
        file="csrc/engine/revive.c",
        old="    if (!scanner->pages->pins.unlisted)",
        new="    if (true)",
        tests=("c/test_store.c::a_child_keeps_what_it_could_not_note",),
    ),
    Mutant(
        "a frame with countless pins stays pinned",
        file="csrc/store/sharers.c",
        old="    if (record->pins && record->pins < UINT16_MAX)",
        new="    if (record->pins)",
        tests=("c/test_slots.c::a_frame_with_countless_pins_stays_pinned",),
    ),
]
