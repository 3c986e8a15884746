"""csrc/merge/unmerge.c and csrc/merge/written.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what could not be discarded keeps its frames",
        file="csrc/merge/unmerge.c",
        old="            forget_lost(pages, region, span, PAGE_NEW);\n        else",
        new="            forget_sharing(pages, region, span, PAGE_NEW);\n        else",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "pages that no page table knows are unmerged",
        file="csrc/merge/unmerge.c",
        old="    uintptr_t blank = in_shadow(merger->pages, region, at);\n    int error",
        new="""\
    uint8_t kinds[FREEZE_MAX];
    uint64_t absent = 0;
    os_pages(merger->fz.pagemap_fd, at, n, kinds);
    while (absent < n && kinds[absent] == 0)
        absent++;
    uintptr_t blank = in_shadow(merger->pages, region, at);
    if (absent == n)
        return 0;
    int error""",
        tests=("c/test_merging.c::absent_pages_leave_their_frames",),
    ),
    Mutant(
        "an overlay is known by its place in the file",
        file="csrc/merge/unmerge.c",
        old="            page_keep_frame(pages, id);",
        new="            (void)pages;",
        tests=("test_exchanged.py::test_exchanged_overlays_keep_each_others_frames",),
    ),
    Mutant(
        "an overlay is known by its place when it comes back",
        file="csrc/merge/unmerge.c",
        old="    if (at > stretch.start)\n        look_again(",
        new="    if (false)\n        look_again(",
        tests=("c/test_slices.c::overlays_are_exchanged_while_their_region_is_unmerged",),
    ),
    Mutant(
        "overlays that are out of sight keep their frames",
        file="csrc/merge/unmerge.c",
        old="    forget(pages, region, span, state, page_abandon);",
        new="    forget(pages, region, span, state, page_unshare);",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "protected overlays end their region",
        file="csrc/merge/unmerge.c",
        old="""\
            lose_region(pages, region);
""",
        new="""\
            (void)0;
""",
        tests=("test_bad_input.py::test_merged_memory_is_protected_for_a_moment",),
    ),
    Mutant(
        "writes into runs keep to the budget",
        file="csrc/merge/unmerge.c",
        old="    if (!budget_has_room_recounted(&merger->budget, UNMERGE_MAPPINGS))",
        new="    if (false)",
        tests=("test_budget.py::test_writes_into_long_runs_keep_the_budget",),
    ),
    Mutant(
        "what could not be unmerged keeps its frames",
        file="csrc/merge/unmerge.c",
        old="""\
        stay_merged(merger->pages, region, piece.start, piece.end);
    else
""",
        new="""\
        stay_merged(merger->pages, region, piece.start, piece.end);
""",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_unmerged",),
    ),
    Mutant(
        "what has come back is no other page's equal",
        file="csrc/merge/unmerge.c",
        old="""\
    forget_pages(merger->pages, work, first, end);
    if (work->discard)""",
        new="    if (work->discard)",
        tests=("c/test_slices.c::what_has_come_back_is_no_other_pages_equal",),
    ),
    Mutant(
        "a region with an old number is another one",
        file="csrc/pages/regions.c",
        old="           region_at(pages, id)->serial == serial;",
        new="           serial;",
        tests=("c/test_slices.c::a_region_with_an_old_number_is_left_alone",),
    ),
    Mutant(
        "what is given back may be another's at once",
        file="csrc/engine/api.c",
        old="        error = region_is(&engine->pages, id, work.serial) ? 0 : -ENOENT;",
        new="",
        tests=("c/test_slices.c::what_is_given_back_may_be_anothers_at_once",),
    ),
    Mutant(
        "a pass merges nothing of what comes back",
        file="csrc/pages/pages.h",
        old="    return region->lost || region->leaving || ",
        new="    return region->lost || ",
        tests=("c/test_slices.c::a_pass_merges_nothing_of_what_comes_back",),
    ),
    Mutant(
        "nobody gives pages back in a child",
        file="csrc/engine/fork.c",
        old="    forget_callers(&engine->pages);\n",
        new="    (void)forget_callers;\n",
        tests=("c/test_slices.c::a_fork_between_two_slices_of_an_unmerge",),
    ),
    Mutant(
        "memory that goes while its region is released is no failure",
        file="csrc/merge/unmerge.c",
        old="    bool given_up = !work->failure || ++work->looks == LOOKS;",
        new="    bool given_up = true;",
        tests=(
            "test_vanished.py::test_a_region_without_its_memory_is_released[signal+checksum-gone]",
            "test_vanished.py::test_memory_goes_while_its_region_is_released[signal+checksum-gone]",
        ),
    ),
    Mutant(
        "what arrives is nobody's in a child",
        file="csrc/engine/fork.c",
        old="    region_forget_arriving(&engine->pages);\n",
        new="",
        tests=("c/test_slices.c::a_fork_between_two_slices_of_a_registration",),
    ),
    Mutant(
        "a registration that fails gives its pages back",
        file="csrc/engine/api.c",
        old="    if (error) {\n        region_forget_arriving(&engine->pages);",
        new="    if (error) {\n        engine->pages.arriving = NO_REGION;",
        tests=("c/test_slices.c::a_registration_that_fails_leaves_nothing",),
    ),
    Mutant(
        "what waits is found while its table grows",
        file="csrc/pages/candidates.c",
        old="        if (old >= candidates->moved)",
        new="        if (old > candidates->old_buckets)",
        tests=("c/test_slices.c::a_pass_finds_what_waits_while_there_is_more_room",),
    ),
    Mutant(
        "pages of which nobody can tell are not saved",
        file="csrc/merge/written.c",
        old="        count_copies(merger->pages, id, from, end - first);\n",
        new="",
        tests=(
            "test_sandboxes.py::test_what_cannot_be_asked_or_given_back_any_more"
            "[uffd-wp+wp-async-pread64]",
        ),
    ),
    Mutant(
        "what never is what it was a moment before is given up",
        file="csrc/merge/unmerge.c",
        old="error == -ESTALE && work->vain_tries++ < TRIES)",
        new="error == -ESTALE)",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_unmerged",),
    ),
]
