"""csrc/store/room.c, and what others do in a full store."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "frames leave the index its memory",
        file="csrc/store/room.c",
        old="return left > reserve ? left - reserve : 0;",
        new="return left;",
        tests=("test_damaged_stores.py::test_what_fits_is_shared_by_all",),
    ),
    Mutant(
        "nobody makes frames for others in a full store",
        file="csrc/store/board.c",
        old="if (found == ANNOUNCED_ELSEWHERE && atomic_load(&head->full))",
        new="if (false)",
        tests=("test_damaged_stores.py::test_what_fits_is_shared_by_all",),
    ),
    Mutant(
        "everybody can count sharers of new frames",
        file="csrc/store/pool.c",
        old="store_count_for_all(store, node, local + *n) < 0",
        new="false",
        tests=("test_damaged_stores.py::test_sharers_are_counted_where_nothing_is_left",),
    ),
    Mutant(
        "a newcomer can count sharers of the frames there are",
        file="csrc/store/attach.c",
        old="        store_count_for(store, slot);",
        new="        ;",
        tests=("test_damaged_stores.py::test_sharers_are_counted_where_nothing_is_left",),
    ),
    Mutant(
        "a newcomer believes in no more counts than there are frames",
        file="csrc/store/attach.c",
        old="        if (store->head->node[node].counted > store->ids[node].limit)\n",
        new="        if (false)\n",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "frames that nobody joins make room",
        file="csrc/merge/lonely.c",
        old="if (n && (!lonely ||",
        new="if (false && (!lonely ||",
        tests=("test_damaged_stores.py::test_frames_that_nobody_joins_make_room",),
    ),
]
