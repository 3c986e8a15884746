"""csrc/merge/merge.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "bytes are compared, not checksums",
        file="csrc/merge/merge.c",
        old="compare_live(frame, view + bytes_of(i)) == 0",
        new="ksmpy_checksum(frame, PAGE_SIZE) == ksmpy_checksum(view + bytes_of(i), PAGE_SIZE)",
        tests=("c/test_merging.c::pages_that_collide_stay_apart",),
        quick=True,
    ),
    Mutant(
        "the budget holds within a run",
        file="csrc/merge/merge.c",
        old="if (piece->equal[i] && budget_has_room(engine, more))",
        new="if (piece->equal[i])",
        tests=("c/test_merging.c::a_run_in_pieces_keeps_to_the_budget",),
    ),
    Mutant(
        "zero pages are looked at while frozen",
        file="csrc/merge/merge.c",
        old="piece.equal[i] = !engine->fz.hole[i] && is_zero(view + bytes_of(i));",
        new="piece.equal[i] = !engine->fz.hole[i];",
        tests=("c/test_merging.c::a_zero_page_is_zero_when_it_is_exchanged",),
        quick=True,
    ),
    Mutant(
        "a rule switched between finding and joining holds",
        file="csrc/merge/merge.c",
        old="if (engine->rule_changes == store->head->rule_changes)",
        new="if (true)",
        tests=("c/test_between.c::a_rule_holds_for_who_looked_before_it",),
    ),
    Mutant(
        "nothing is merged into locked memory",
        file="csrc/merge/merge.c",
        old="os_locks_new_memory() || !engine_has_files(engine) ||",
        new="!engine_has_files(engine) ||",
        tests=("c/test_merging.c::nothing_is_merged_into_locked_memory",),
    ),
    Mutant(
        "nothing is merged onto another file",
        file="csrc/merge/merge.c",
        old="os_locks_new_memory() || !engine_has_files(engine) ||",
        new="os_locks_new_memory() ||",
        tests=("c/test_merging.c::nothing_is_merged_onto_another_file",),
    ),
    Mutant(
        "nothing is merged beside devices that write unseen",
        file="csrc/merge/merge.c",
        old="os_locks_new_memory() || !engine_has_files(engine) || devices_may_write(engine);",
        new="os_locks_new_memory() || !engine_has_files(engine);",
        tests=("test_devices.py::test_devices_that_come_later_end_merging",),
    ),
]
