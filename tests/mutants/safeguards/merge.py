"""csrc/merge/merge.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "bytes are compared, not checksums",
        file="csrc/merge/piece.c",
        old="compare_live(frame, view + bytes_of(i)) == 0",
        new="checksum_of(frame, PAGE_SIZE) == checksum_of(view + bytes_of(i), PAGE_SIZE)",
        tests=("c/test_merging.c::pages_that_collide_stay_apart",),
        quick=True,
    ),
    Mutant(
        "the budget holds within a run",
        file="csrc/merge/piece.c",
        old="if (piece->equal[i] && budget_has_room(&merger->budget, more))",
        new="if (piece->equal[i])",
        tests=("c/test_merging.c::a_run_in_pieces_keeps_to_the_budget",),
    ),
    Mutant(
        "zero pages are looked at while frozen",
        file="csrc/merge/zeros.c",
        old="piece.equal[i] = !merger->fz.hole[i] && is_zero(view + bytes_of(i));",
        new="piece.equal[i] = !merger->fz.hole[i];",
        tests=("c/test_merging.c::a_zero_page_is_zero_when_it_is_exchanged",),
        quick=True,
    ),
    Mutant(
        "a rule switched between finding and joining holds",
        file="csrc/merge/piece.c",
        old="if (pages->rules_followed == store->head->rule_changes)",
        new="if (true)",
        tests=("c/test_between.c::a_rule_holds_for_who_looked_before_it",),
    ),
    Mutant(
        "who comes second takes the frames of the first",
        file="csrc/merge/publish.c",
        old="store->shared ? join_older(pages, batch, i, tree) : NO_FRAME;",
        new="NO_FRAME;",
        tests=(
            "c/test_between.c::who_comes_second_takes_the_frames_of_the_first",
            "c/test_between.c::a_claim_that_comes_late_ends_on_the_frames_there_are",
        ),
    ),
    Mutant(
        "the frames of one stretch are not taken for older ones",
        file="csrc/merge/publish.c",
        old="bool ours = older >= batch->taken && older < batch->taken_end;",
        new="bool ours = false;",
        tests=("c/test_between.c::a_block_of_equal_frames_stays_a_row",),
    ),
    Mutant(
        "a page that is refused leaves the frame that was joined for it",
        file="csrc/merge/piece.c",
        old="(joined ? done : (uint64_t)held) - frozen);",
        new="joined ? 0 : (uint64_t)held - frozen);",
        tests=("c/test_merging.c::pages_that_cannot_be_frozen_leave_their_frames",),
    ),
    Mutant(
        "an entry that is void leaves its frame",
        file="csrc/merge/plan.c",
        old="        store_leave(&merger->pages->store, planned_at(plan, plan->done)->frame);",
        new="        ;",
        tests=("c/test_planned.c::a_region_that_goes_leaves_what_it_has_joined",),
    ),
    Mutant(
        "a call that is interrupted leaves the frames of what it planned",
        file="csrc/engine/pass.c",
        old="    scan_drop(&engine->scanner);",
        new="",
        tests=("c/test_planned.c::an_interrupted_call_leaves_no_frame_behind",),
    ),
    Mutant(
        "a child has nothing planned",
        file="csrc/engine/fork.c",
        old="    plan_forget(&engine->merger);",
        new="",
        tests=("c/test_planned.c::a_child_has_nothing_planned",),
    ),
    Mutant(
        "what is planned is no saving yet",
        file="csrc/engine/stats.c",
        old="head->shared_frames + plan_joined(&engine->merger.plan);",
        new="head->shared_frames;",
        tests=("c/test_planned.c::no_saving_is_claimed_that_is_not_there",),
    ),
    Mutant(
        "nothing is merged into locked memory",
        file="csrc/merge/bar.c",
        old="os_locks_new_memory() || !merger_has_files(merger) ||",
        new="!merger_has_files(merger) ||",
        tests=("c/test_merging.c::nothing_is_merged_into_locked_memory",),
    ),
    Mutant(
        "nothing is merged onto another file",
        file="csrc/merge/bar.c",
        old="os_locks_new_memory() || !merger_has_files(merger) ||",
        new="os_locks_new_memory() ||",
        tests=("c/test_merging.c::nothing_is_merged_onto_another_file",),
    ),
    Mutant(
        "nothing is merged beside devices that write unseen",
        file="csrc/merge/bar.c",
        old="os_locks_new_memory() || !merger_has_files(merger) || devices_may_write(merger);",
        new="os_locks_new_memory() || !merger_has_files(merger);",
        tests=("test_devices.py::test_devices_that_come_later_end_merging",),
    ),
]
