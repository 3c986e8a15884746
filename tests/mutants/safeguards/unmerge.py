"""csrc/merge/unmerge.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what could not be discarded keeps its frames",
        file="csrc/merge/unmerge.c",
        old="            forget_lost(engine, region, span, PAGE_NEW);\n        at = span.end;",
        new="            forget_sharing(engine, region, span, PAGE_NEW);\n        at = span.end;",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "pages that no page table knows are unmerged",
        file="csrc/merge/unmerge.c",
        old="        uintptr_t blank = in_shadow(engine, region, span.start);\n",
        new="""\
        uint8_t kinds[FREEZE_MAX];
        uint64_t absent = 0;
        os_pages(engine->fz.pagemap_fd, span.start, n, kinds);
        while (absent < n && kinds[absent] == OS_PAGE_NONE)
            absent++;
        uintptr_t blank = in_shadow(engine, region, span.start);
        if (absent == n) {
            span.start += bytes_of(n);
            continue;
        }
""",
        tests=("c/test_merging.c::absent_pages_leave_their_frames",),
    ),
    Mutant(
        "an overlay is known by its place in the file",
        file="csrc/merge/unmerge.c",
        old="            page_keep_frame(engine, id);",
        new="            (void)engine;",
        tests=("test_exchanged.py::test_exchanged_overlays_keep_each_others_frames",),
    ),
    Mutant(
        "overlays that are out of sight keep their frames",
        file="csrc/merge/unmerge.c",
        old="    forget(engine, region, span, state, page_abandon);",
        new="    forget(engine, region, span, state, page_unshare);",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "protected overlays end their region",
        file="csrc/merge/unmerge.c",
        old="""\
            lose_region(engine, region);
""",
        new="""\
            (void)0;
""",
        tests=("test_bad_input.py::test_merged_memory_is_protected_for_a_moment",),
    ),
    Mutant(
        "writes into runs keep to the budget",
        file="csrc/merge/unmerge.c",
        old="    if (!budget_make_room(engine, 2)) {",
        new="    if (false) {",
        tests=("test_budget.py::test_writes_into_long_runs_keep_the_budget",),
    ),
    Mutant(
        "what could not be unmerged keeps its frames",
        file="csrc/merge/unmerge.c",
        old="""\
            failure = failure ? failure : error;
        } else {
""",
        new="""\
            failure = failure ? failure : error;
        }
        {
""",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_unmerged",),
    ),
]
