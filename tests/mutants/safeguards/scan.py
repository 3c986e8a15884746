"""csrc/scan/scan.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "the frame that a row goes on with is seen without the lock",
        file="csrc/scan/lookup.c",
        old="!store_is_away(&pages->store) && stable_seems(",
        new="false && stable_seems(",
        tests=("c/test_between.c::a_row_of_frames_takes_few_locks",),
    ),
    Mutant(
        "pages that wait are looked up again in groups",
        file="csrc/pages/peers.c",
        old="end = least(i + LOOKED_FOR_AT_ONCE, region->n);",
        new="end = i + 1;",
        tests=("c/test_between.c::pages_that_wait_take_few_locks",),
    ),
    Mutant(
        "a lock that was not had is not given back",
        file="csrc/scan/migrate.c",
        old="    if (!store_lock(store))\n        return false;",
        new="    bool locked = store_lock(store);\n    (void)locked;",
        tests=("c/test_between.c::a_lock_that_was_not_had_is_not_given_back",),
    ),
    Mutant(
        "what is at rest but for a write is visited",
        file="csrc/scan/scan.c",
        old="return any_changed(window, i, end) ? 0 : end - i;",
        new="return end - i;",
        tests=("c/test_engine.c::slices_end_by_time",),
    ),
    Mutant(
        "a chunk knows what there is to do in it",
        file="csrc/pages/records.c",
        old="chunk_of(pages, id)->unsettled += "
        "(uint16_t)(is_unsettled(state) - is_unsettled(old));",
        new="",
        tests=("c/test_planned.c::all_of_them_are_merged",),
    ),
    Mutant(
        "a pass begins when it has heard of what others did, though they keep the lock",
        file="csrc/scan/scan.c",
        old="window->heard = window->heard || follow_events(scanner->pages);",
        new="window->heard = window->heard || follow_events(scanner->pages) || true;",
        tests=("c/test_between.c::a_pass_waits_for_what_others_have_said",),
    ),
    Mutant(
        "what was left alone is looked up in an eager call",
        file="csrc/scan/window.c",
        old="    window->left_alone = window->put_off = 0;\n    window->eager = true;\n",
        new="    window->eager = true;\n",
        tests=("c/test_back_off.c::an_eager_call_goes_on_where_another_one_stopped",),
    ),
    Mutant(
        "what was put off is asked about in an eager call",
        file="csrc/scan/window.c",
        old="        if (first >= window->at && window->put_off",
        new="        if (first > window->n && window->put_off",
        tests=("c/test_back_off.c::an_eager_call_asks_about_what_was_put_off",),
    ),
    Mutant(
        "what is partly written all the time is put off",
        file="csrc/scan/chunk_plan.c",
        old="rested(scanner, chunk) < put_off_for(scanner, chunk))",
        new="rested(scanner, chunk) < 0 * put_off_for(scanner, chunk))",
        tests=("c/test_back_off.c::a_part_that_is_written_all_the_time_takes_few_faults",),
    ),
    Mutant(
        "what a pass was told and did not get to is not put off",
        file="csrc/scan/chunk_plan.c",
        old=" && !region->unsure;",
        new=";",
        tests=("c/test_back_off.c::what_is_put_off_then_was_not_told_in_vain",),
    ),
    Mutant(
        "what leaves its frames again and again is put off",
        file="csrc/scan/chunk_plan.c",
        old="uint64_t rest = rest_wanted(chunk->churn);",
        new="uint64_t rest = 0 * rest_wanted(chunk->churn);",
        tests=("c/test_back_off.c::a_part_that_leaves_its_frames_again_and_again_stays",),
    ),
    Mutant(
        "what is partly written once is not put off",
        file="csrc/scan/chunk_plan.c",
        old="chunk->partly_hot == WRITE_HOT ? answer.again : 0;",
        new="answer.again;",
        tests=("c/test_back_off.c::who_rested_long_is_trusted_again",),
    ),
    Mutant(
        "what is written anew now and then has to rest",
        file="csrc/scan/chunk_plan.c",
        old="rested(scanner, chunk) >= rest_wanted(chunk->distrust);",
        new="rested(scanner, chunk) >= 0;",
        tests=("c/test_back_off.c::what_is_written_anew_takes_no_faults",),
    ),
    Mutant(
        "who rests for long is trusted again",
        file="csrc/scan/chunk_plan.c",
        old="chunk->distrust = chunk->churn = 0;",
        new="chunk->distrust = MOST_DISTRUST;",
        tests=("c/test_back_off.c::who_rested_long_is_trusted_again",),
    ),
    Mutant(
        "what the owner has mapped instead counts as written",
        file="csrc/scan/window.c",
        old="            set_bits(window->written, i, i + 1);\n            found++;",
        new="            found++;",
        tests=("c/test_merging.c::what_the_owner_has_mapped_instead_is_not_frozen",),
    ),
    Mutant(
        "what the owner has mapped instead counts as written though samples do not change",
        file="csrc/scan/window.c",
        old="!has_bit(window->zero, at + i) && !has_bit(window->untracked, at + i))",
        new="!has_bit(window->zero, at + i))",
        tests=("c/test_merging.c::what_the_owner_has_mapped_instead_is_not_frozen",),
    ),
    Mutant(
        "a slice ends by time",
        file="csrc/scan/scan.c",
        old="takes_long(merger->slice_began_ns, visited, place) ||\n",
        new="false ||\n",
        tests=("c/test_engine.c::slices_end_by_time",),
    ),
    Mutant(
        "a slice ends with a huge page",
        file="csrc/scan/scan.c",
        old="(!huge && visited % CLOCK_EVERY != CLOCK_EVERY - 1))",
        new="visited % CLOCK_EVERY != CLOCK_EVERY - 1)",
        tests=("c/test_engine.c::slices_end_by_time",),
    ),
    Mutant(
        "what may be made longer is never one overlay",
        file="csrc/scan/lookup.c",
        old="    return region->growing && (i + 1 == region->n || allocators_block_size(bytes));",
        new="    return region->growing && i < region->n && allocators_block_size(bytes);",
        tests=("test_growth.py::test_a_merged_mapping_grows_with_zeros",),
    ),
    Mutant(
        "what malloc may make longer is never one overlay",
        file="csrc/scan/lookup.c",
        old="    return region->growing && (i + 1 == region->n || allocators_block_size(bytes));",
        new="    return region->growing && i + 1 == region->n && bytes;",
        tests=("test_growth.py::test_blocks_of_malloc_that_are_one_mapping",),
    ),
]
