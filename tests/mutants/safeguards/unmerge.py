"""csrc/unmerge.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what could not be discarded keeps its frames",
        file="csrc/unmerge.c",
        old="            forget_lost(engine, region, span, PAGE_NEW);\n        at = span.end;",
        new="            forget_sharing(engine, region, span, PAGE_NEW);\n        at = span.end;",
        tests=("c/test_merging.c::frames_stay_under_what_could_not_be_discarded",),
    ),
    Mutant(
        "pages that no page table knows are unmerged",
        file="csrc/unmerge.c",
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
]
