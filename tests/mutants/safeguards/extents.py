"""csrc/store/extents.c, spare.c and what maps extents as huge pages."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "no more than a share is spare",
        file="csrc/store/frames.c",
        old="    bool too_many = too_many_spare(store);",
        new="    bool too_many = false;",
        tests=("c/test_extents.c::an_eighth_is_spare_at_most",),
        quick=True,
    ),
    Mutant(
        "the last frame of an extent takes its memory along",
        file="csrc/store/spare.c",
        old="    if (extent_used(store, extent) == n) {",
        new="    if (false) {",
        tests=("c/test_extents.c::the_last_frame_of_an_extent_takes_its_memory_along",),
    ),
    Mutant(
        "what is spare counts as memory that the store holds",
        file="csrc/store/pool.c",
        old="    return bytes_of(frames + store->head->spare_frames);",
        new="    return bytes_of(frames);",
        tests=("c/test_extents.c::a_freed_frame_keeps_its_memory_for_the_next",),
    ),
    Mutant(
        "the counts of extents are checked",
        file="csrc/store/check.c",
        old="    check_extents(store, report);",
        new="",
        tests=(
            "c/test_extents.c::counts_that_are_wrong_are_found",
            "c/test_slots.c::a_newcomer_believes_nothing",
        ),
    ),
    Mutant(
        "what is not mapped is not armed",
        file="csrc/scan/window.c",
        old="        ask(scanner, os_written_there,",
        new="        ask(scanner, os_written,",
        tests=("test_huge_frames.py::test_processes_share_huge_pages[uffd-wp+wp-async]",),
    ),
    Mutant(
        "what one entry maps is not faulted in",
        file="csrc/merge/onto.c",
        old="        if (part < HUGE_PAGES || !is_mapped_at_once(pages, id))",
        new="        if (1)",
        tests=("test_huge_frames.py::test_what_nobody_reads_is_not_resident[uffd-wp+wp-async]",),
    ),
    Mutant(
        "what comes back is a huge page again",
        file="csrc/freeze/freezer.c",
        old="           os_gives_huge_pages(vma_flags);",
        new="           false;",
        tests=("test_huge_frames.py::test_what_comes_back_lies_on_huge_pages[uffd-wp+wp-async]",),
    ),
]
