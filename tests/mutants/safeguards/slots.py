"""csrc/slots.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "nobody is buried alive",
        file="csrc/slots.c",
        old="""\
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE && !slot_is_held(store, i))
            bury(store, i);
""",
        new="""\
        bury(store, i);
""",
        tests=("c/test_between.c::nobody_is_buried_alive",),
        quick=True,
    ),
    Mutant(
        "who lost its files buries nobody",
        file="csrc/slots.c",
        old="""\
        return; /* everybody would look dead */
""",
        new="""\
        atomic_signal_fence(memory_order_seq_cst);
""",
        tests=("c/test_between.c::who_lost_its_files_buries_nobody",),
    ),
    Mutant(
        "an orphaned frame that somebody maps is kept",
        file="csrc/slots.c",
        old="record->state == FRAME_DEAD || (!record->sharers && !store_leased(store, record))",
        new="record->state != FRAME_LIVE",
        tests=(
            "test_stopped_members.py::test_frames_that_could_not_be_told_of_outlive_their_maker",
        ),
    ),
    Mutant(
        "the lock of a stopped process is not waited for",
        file="csrc/slots.c",
        old="error == EBUSY && *waited < limit_ns;",
        new="error == EBUSY;",
        tests=("test_stopped_members.py::test_close_does_not_wait",),
    ),
]
