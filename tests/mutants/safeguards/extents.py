"""csrc/store/extents.c, spare.c and what maps extents as huge pages."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "no more than a share is spare",
        file="csrc/store/frames.c",
        old="    if (!in_hand && (all || too_many_spare(store)))",
        new="    if (!in_hand && all)",
        tests=("c/test_extents.c::an_eighth_is_spare_at_most",),
        quick=True,
    ),
    Mutant(
        "the last frame of an extent takes its memory along",
        file="csrc/store/spare.c",
        old="    bool over = extent_spare(store, extent) && is_over(store, extent);\n",
        new="    bool over = false;\n",
        tests=("c/test_extents.c::the_last_frame_of_an_extent_takes_its_memory_along",),
    ),
    Mutant(
        "a part of a larger folio is not punched by itself",
        file="csrc/store/spare.c",
        old="        if (!is_on_large_folio(store, dead[at])) {",
        new="        if (true) {",
        tests=(
            "c/test_extents.c::a_freed_frame_is_not_taken_again",
            "test_references.py::test_what_is_held_stays[uffd-wp+wp-async-small-_exchange]",
        ),
        quick=True,
    ),
    Mutant(
        "what somebody refers to is not cleared",
        file="csrc/store/references.c",
        old="split(store, frames, n) && os_file_is_huge(store->memfd, offset, page) == 0;",
        new="split(store, frames, n);",
        tests=("c/test_extents.c::what_somebody_refers_to_is_not_let_go",),
    ),
    Mutant(
        "what somebody refers to is not cleared where it is torn",
        file="csrc/store/references.c",
        old="    return extent_collapse(store, extent_of(frames[0])) == 0 &&",
        new="    return extent_collapse(store, extent_of(frames[0])) <= 0 ||",
        tests=("c/test_extents.c::what_somebody_refers_to_is_not_let_go",),
    ),
    Mutant(
        "only a byte that is zero is cleared",
        file="csrc/store/references.c",
        old="        const uint8_t *zero = memchr(page, 0, PAGE_SIZE);",
        new="        const uint8_t *zero = page;",
        tests=("c/test_extents.c::where_no_byte_is_zero_nothing_is_let_go",),
    ),
    Mutant(
        "folios of unknown sizes are taken for large",
        file="csrc/store/extents.c",
        old="    if (!store->large_folios)",
        new="    if (true)",
        tests=("c/test_extents.c::where_folios_may_be_large_all_frames_wait",),
    ),
    Mutant(
        "who cannot tell has no proof",
        file="csrc/os/folios.c",
        old="    if (!is && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) != 0)",
        new="    if (false)",
        tests=("c/test_extents.c::who_cannot_tell_has_no_proof",),
    ),
    Mutant(
        "what cannot be let go is passed over",
        file="csrc/store/spare.c",
        old="store->letting_go_at++ % count",
        new="i % count",
        tests=("c/test_extents.c::what_cannot_be_let_go_is_passed_over",),
    ),
    Mutant(
        "holes that are filled for a proof are punched again",
        file="csrc/store/spare.c",
        old="    take(store, extent, whole, &taken);",
        new="    take(store, extent, over, &taken);",
        tests=("c/test_extents.c::an_eighth_is_spare_at_most",),
    ),
    Mutant(
        "records without memory are not looked at",
        file="csrc/store/spare.c",
        old="    uint32_t end = records_end(store, extent);",
        new="    uint32_t end = extent + EXTENT;",
        tests=("c/test_extents.c::an_extent_without_memory_for_all_records_is_not_let_go",),
    ),
    Mutant(
        "what is freed during a proof takes the extent along",
        file="csrc/store/spare.c",
        old="    return (keep(store, extent, NULL, 0, &ended) && ended) || done;",
        new="    ended = false;\n    return ended || done;",
        tests=("c/test_extents.c::what_is_freed_during_a_proof_takes_the_extent_along",),
    ),
    Mutant(
        "marks above the high mark do not count",
        file="csrc/os/arena.c",
        old="            *word_of(ids, id) &= kept;",
        new="            (void)kept;",
        tests=("c/test_extents.c::marks_above_the_high_mark_do_not_count",),
    ),
    Mutant(
        "spare frames outlast who made them",
        file="csrc/store/rebuild.c",
        old="    extents_recount(store);",
        new="",
        tests=("c/test_rebuild.c::extents_outlast_those_who_made_them",),
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
        old="        ask(scanner, os_arm_written_there,",
        new="        ask(scanner, os_arm_written,",
        tests=("test_huge_frames.py::test_processes_share_huge_pages[uffd-wp+wp-async]",),
    ),
    Mutant(
        "what one entry maps is not faulted in",
        file="csrc/merge/onto_frames.c",
        old="bool at_once = part == HUGE_PAGES && is_mapped_at_once(merger->pages, id);",
        new="bool at_once = false;",
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
