"""What an owner does between two steps: csrc/freeze."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "overlays are not registered for missing pages",
        file="csrc/freeze/registration.c",
        old="os_uffd_register(fd, address, n, OS_UFFD_WP) == -ENOMEM;",
        new="os_uffd_register(fd, address, n, OS_UFFD_MISSING) == -ENOMEM;",
        tests=("c/test_owner.c::what_is_mapped_over_a_new_overlay_can_be_read",),
    ),
    Mutant(
        "what is no overlay is let go when a region ends",
        file="csrc/freeze/registration.c",
        old="return error == -EINVAL ? os_uffd_unregister(",
        new="return error == -EAGAIN ? os_uffd_unregister(",
        tests=("c/test_owner.c::what_is_no_overlay_is_let_go_when_a_region_ends",),
    ),
    Mutant(
        "overlays stay watched when a region ends",
        file="csrc/freeze/registration.c",
        old="if (start >= stop || os_vma_shows(&vma, removals->inode, removals->dev))",
        new="if (start >= stop)",
        tests=("c/test_owner.c::what_is_no_overlay_is_let_go_when_a_region_ends",),
    ),
    Mutant(
        "what is missing at the gate for ever becomes zero",
        file="csrc/freeze/removal_thread.c",
        old="if (!is_all_overlay(fz, page, 1) && os_uffd_zero(",
        new="if (false && os_uffd_zero(",
        tests=("c/test_owner.c::what_stays_at_the_gate_can_be_read",),
    ),
    Mutant(
        "nobody writes while what was given back is replaced late",
        file="csrc/freeze/removal_thread.c",
        old="        if (freezer_take_overlays(fz, removed.start, n) == 0)",
        new="        if (n > 0)",
        tests=("c/test_owner.c::what_is_written_after_giving_back_stays",),
    ),
    Mutant(
        "what comes where a frozen page was is noticed",
        file="csrc/freeze/owner.c",
        old="return !fz->in_place || owner_check_protected(fz, address, n) == 0;",
        new="return true;",
        tests=(
            "c/test_owner.c::what_is_written_where_a_frozen_page_was_stays",
            "c/test_owner.c::what_is_written_where_a_page_of_zeros_was_stays",
        ),
    ),
    Mutant(
        "what comes where an overlay was is noticed",
        file="csrc/freeze/replace.c",
        old="? owner_check_protected(fz, address, n) : -ESTALE;",
        new="? 0 : -ESTALE;",
        tests=("c/test_owner.c::what_is_written_where_an_overlay_was_stays",),
    ),
    Mutant(
        "who got the place gets its pages back",
        file="csrc/freeze/uffd_away.c",
        old="    if (got <= 0 || owner_kept_registered(",
        new="    if (true || owner_kept_registered(",
        tests=("c/test_owner.c::who_got_the_place_gets_its_pages_back",),
    ),
    Mutant(
        "only overlays are replaced by their copies",
        file="csrc/freeze/replace.c",
        old="    int error = check_overlays(fz, address, n);",
        new="    int error = check_overlays(fz, address, n) & 0;",
        tests=("c/test_owner.c::what_is_mapped_over_overlays_on_their_way_back_stays",),
    ),
    Mutant(
        "who gives back what is to become holes waits",
        file="csrc/freeze/gate.c",
        old="    return fz->removals.gate_fd;",
        new="    return gate_is_in_place(fz) ? fz->wp_fd : fz->removals.gate_fd;",
        tests=("c/test_owner.c::what_is_written_to_zeros_after_giving_them_back_stays",),
    ),
    Mutant(
        "overlays that are registered as memory come back",
        file="csrc/freeze/protection.c",
        old="    return error == -EINVAL ? os_uffd_unregister(",
        new="    return false ? os_uffd_unregister(",
        tests=("c/test_owner.c::overlays_that_were_taken_for_memory_come_back",),
    ),
]
