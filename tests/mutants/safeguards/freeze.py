"""csrc/freeze/freezer.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a move that fails halfway is made good",
        file="csrc/freeze/replace.c",
        old="if (!error || !os_claim_gap(address, n))",
        new="if (true)",
        tests=("c/test_freeze.c::a_move_that_fails_halfway_is_made_good",),
        quick=True,
    ),
    Mutant(
        "a gap where frames were to be moved is filled",
        file="csrc/os/map.c",
        old="return fill_gap(error, to, n, 0, memfd, offset, from);",
        new="return error;",
        tests=("c/test_freeze.c::a_gap_where_frames_were_to_be_moved_is_filled",),
    ),
    Mutant(
        "what comes back fills its gap where the program may map no more",
        file="csrc/os/map.c",
        old="    return has_left_gap(error, to) && moves_for_good(to, from, n) ?",
        new="    return false ?",
        tests=("c/test_freeze.c::overlays_come_back_where_nothing_can_be_mapped",),
    ),
    Mutant(
        "a stage with a hole is used no more",
        file="csrc/freeze/stage.c",
        old="    if (fz->moved_for_good)\n        lose_stage(fz, n);\n    else if (ahead",
        new="    if (ahead",
        tests=("c/test_freeze.c::overlays_come_back_where_nothing_can_be_mapped",),
    ),
    Mutant(
        "a window with a hole is used no more",
        file="csrc/freeze/uffd_away.c",
        old="        fz->window_lost |= moved == OS_MOVED_FOR_GOOD;\n",
        new="",
        tests=("c/test_freeze.c::frozen_pages_come_back_where_nothing_can_be_mapped",),
    ),
    Mutant(
        "a shadow with a hole in its first page is none",
        file="csrc/freeze/shadow.c",
        old="    return whole ? shadow : 0;",
        new="    return shadow;",
        tests=("c/test_freeze.c::a_page_that_was_lent_comes_back_where_nothing_can_be_mapped",),
    ),
    Mutant(
        "a shadow with a hole is used no more",
        file="csrc/merge/unmerge.c",
        old="    if (torn) /*",
        new="    if (false) /*",
        tests=("c/test_merging.c::a_shadow_with_a_hole_is_used_no_more",),
    ),
    Mutant(
        "a gap is filled where the program may map no more",
        file="csrc/os/map.c",
        old="error == -ENOMEM && moves_for_good(address, spare, n)",
        new="false",
        tests=("c/test_freeze.c::a_gap_is_filled_where_nothing_can_be_mapped",),
    ),
    Mutant(
        "nothing is made ready where memory is limited",
        file="csrc/freeze/ready.c",
        old=" || os_is_rationed())",
        new=")",
        tests=("c/test_freeze.c::nothing_is_made_ready_where_memory_is_limited",),
    ),
    Mutant(
        "what may not be moved is mapped",
        file="csrc/freeze/ready.c",
        old="return is_forbidden(error) ? -ENOENT : error;",
        new="return error;",
        tests=("c/test_freeze.c::what_may_not_be_moved_is_mapped",),
    ),
    Mutant(
        "what is ready for others is not used",
        file="csrc/freeze/ready.c",
        old="offset == fz->ready_offset + (address - fz->ready_for)",
        new="true",
        tests=("c/test_freeze.c::what_is_ready_for_others_is_not_used",),
    ),
    Mutant(
        "a gap that a failed call has left is filled",
        file="csrc/os/map.c",
        old="while (has_left_gap(error, address)) {",
        new="while (false) {",
        tests=(
            "test_injection.py::test_a_call_that_fails_and_leaves_a_gap[uffd-wp+wp-async-mmap(MAP_FIXED)]",
        ),
    ),
    Mutant(
        "what is frozen in signal takes no mapping to give back",
        file="csrc/freeze/signal.c",
        old="    (void)fz, (void)address, (void)first, (void)n;\n}\n\nstatic int64_t",
        new="    give_back(fz, address + bytes_of(first), n, false);\n}\n\nstatic int64_t",
        tests=(
            "test_no_mappings.py::test_a_freeze_ends_where_no_mapping_is_left[signal+checksum]",
        ),
    ),
    Mutant(
        "what others map there is not mapped over",
        file="csrc/freeze/freezer.c",
        old="    if (!owner_kept(fz, address, n))\n        return -ECANCELED; /*",
        new="    if (false)\n        return -ECANCELED; /*",
        tests=("c/test_freeze.c::what_others_map_there_stays",),
    ),
    Mutant(
        "what others map there does not become zero",
        file="csrc/freeze/freezer.c",
        old="    if (!owner_kept(fz, address, n))\n        return -ECANCELED;\n    return",
        new="    if (false)\n        return -ECANCELED;\n    return",
        tests=("c/test_freeze.c::what_others_map_there_stays",),
    ),
    Mutant(
        "a fault from before a thaw fills nothing",
        file="csrc/freeze/fault_thread.c",
        old="atomic_load(&fz->thaws) == thaws &&",
        new="",
        tests=("c/test_freeze.c::a_fault_from_before_a_thaw_fills_nothing",),
    ),
    Mutant(
        "what is registered no more is not frozen",
        file="csrc/freeze/uffd_wp.c",
        old="    if (fz->tracked && os_uffd_is_registered(fz->wp_fd, address, n) &&",
        new="    if (fz->tracked && os_uffd_is_registered(fz->wp_fd, address, 1) &&",
        tests=("c/test_freeze.c::what_is_registered_no_more_is_not_frozen",),
    ),
    Mutant(
        "the kernel is asked whether memory is locked, and no stand-in",
        file="csrc/os/map.c",
        old="return os_msync(",
        new="return msync(",
        tests=("c/test_freeze.c::locked_zeros_stay",),
    ),
    Mutant(
        "locked memory gets no holes",
        file="csrc/freeze/gate.c",
        old="    int error = os_is_locked(address, n) ? -EINVAL : move_to_trash(",
        new="    int error = false ? -EINVAL : move_to_trash(",
        tests=("c/test_freeze.c::locked_zeros_stay",),
    ),
    Mutant(
        "what can be written is not taken for protected",
        file="csrc/os/pagemap.c",
        old="""\
        .category_inverted = OS_IS_WRITTEN,
        .category_mask = OS_IS_WRITTEN,
""",
        new="",
        tests=("c/test_freeze.c::protected_pages_are_told",),
    ),
    Mutant(
        "all of an answer's ranges are read",
        file="csrc/os/pagemap.c",
        old="    for (; at < end; at = next) {",
        new="    for (; at < end; at = end) {",
        tests=("c/test_freeze.c::protected_pages_are_told",),
    ),
    Mutant(
        "a region's shadow takes no page away",
        file="csrc/freeze/uffd_wp.c",
        old="return shadow ? shadow : shadow_afresh(address, n, vma_flags);",
        new="return shadow ? shadow : shadow_by_displacing(fz->wp_fd, address, n);",
        tests=("c/test_owner.c::a_page_that_lends_its_identity_can_be_moved",),
    ),
    Mutant(
        "a page is lent by a mapping of other flags",
        file="csrc/freeze/borrow.c",
        old="how < WAYS",
        new="how < FLAGGED",
        tests=(
            "test_islands.py::test_other_mappings_become_one_again[signal+wp-async-False-_uncounted]",
        ),
    ),
    Mutant(
        "a page is not lent by a mapping below it",
        file="csrc/freeze/borrow.c",
        old="os_claim_as(page, 1, counted) < 0 &&",
        new="(os_claim_as(page, 1, counted) < 0 || os_commit((void *)page, PAGE_SIZE) < 0) &&",
        tests=(
            "test_islands.py::test_other_mappings_become_one_again[uffd-wp+wp-async-False-_above_others]",
        ),
    ),
    Mutant(
        "a page is lent by the engine's own memory",
        file="csrc/freeze/borrow.c",
        old="    if (!os_take_spare(end))\n",
        new="    if (true)\n",
        tests=("c/test_owner.c::a_shadow_gets_the_page_that_the_engine_can_do_without",),
    ),
    Mutant(
        "what the engine lent is not unmapped with the rest",
        file="csrc/os/own_memory.c",
        old="    return atomic_compare_exchange_strong(&slot->end, &with, left);",
        new="    return atomic_load(&slot->end) == with && left;",
        tests=("c/test_owner.c::the_engine_can_do_without_the_page_below_others",),
    ),
    Mutant(
        "the kernel's KSM is kept away from what is protected",
        file="csrc/freeze/protection.c",
        old="    int error = os_keep_from_ksm(address, n);\n",
        new="    int error = 0;\n",
        tests=("c/test_freeze.c::ksm_is_kept_away_from_what_is_protected",),
    ),
    Mutant(
        "what a device writes into is not merged",
        file="csrc/freeze/freezer.c",
        old="if (!fz->ops->refuses_pinned && os_direct_io(",
        new="if (false && os_direct_io(",
        tests=("c/test_merging.c::what_a_device_writes_into_stays_where_it_is",),
    ),
    Mutant(
        "what a device writes into is not unmerged",
        file="csrc/freeze/replace.c",
        old="    return copies ? os_direct_io(fz->tasks_fd, address, n) : 0;",
        new="    return 0;",
        tests=("c/test_merging.c::what_a_device_writes_into_stays_where_it_is",),
    ),
    Mutant(
        "what comes back in signal has its place's identity",
        file="csrc/freeze/signal.c",
        old="    .shadow = signal_shadow,\n",
        new="",
        tests=(
            "test_islands.py::test_written_pages_come_back_in_place[signal+checksum]",
            "test_islands.py::test_scattered_overlays_leave_no_islands[signal+checksum-release]",
        ),
    ),
    Mutant(
        "a shadow in signal stays one mapping",
        file="csrc/freeze/signal.c",
        old="    int error = os_protect(shadow, n + 1, true);",
        new="    int error = os_protect(shadow, n, true);",
        tests=(
            "test_islands.py::test_a_written_page_parts_its_run_and_nothing_else[signal+checksum]",
        ),
    ),
    Mutant(
        "what has no room below it comes back as one mapping",
        file="csrc/freeze/shadow.c",
        old="    os_populate(shadow + bytes_of(n), 1, true);\n",
        new="",
        tests=("test_islands.py::test_written_pages_come_back_in_place[signal+checksum]",),
    ),
    Mutant(
        "what its owner protects while it is frozen gets no overlay",
        file="csrc/freeze/owner.c",
        old="    if (!is_plain(fz, address, n, !fz->ops->read_only))\n",
        new="    if (false)\n",
        tests=("c/test_freeze.c::what_is_protected_stays_protected",),
    ),
    Mutant(
        "what its owner protects while it is frozen in signal stays protected",
        file="csrc/freeze/signal.c",
        old="        if (ours)\n",
        new="",
        tests=("c/test_freeze.c::what_is_protected_stays_protected",),
    ),
    Mutant(
        "what others map is not made read-only in signal",
        file="csrc/freeze/signal.c",
        old="    return fz->made_read_only ? os_protect(",
        new="    return fz ? os_protect(",
        tests=(
            "c/test_owner.c::what_is_mapped_over_overlays_keeps_its_rights",
            "c/test_owner.c::what_is_mapped_where_pages_are_to_be_frozen_keeps_its_rights",
        ),
    ),
    Mutant(
        "what others have made read-only where nothing was frozen stays so in signal",
        file="csrc/freeze/signal.c",
        old="    if (!fz->made_read_only)\n        return;\n",
        new="",
        tests=("c/test_owner.c::what_is_mapped_where_pages_are_to_be_frozen_keeps_its_rights",),
    ),
    Mutant(
        "what others map over overlays that do not come back is not made writable in signal",
        file="csrc/freeze/signal.c",
        old="        give_back(fz, address, n, true);\n",
        new="        os_protect(address, n, true);\n",
        tests=("c/test_owner.c::what_is_mapped_over_overlays_keeps_its_rights",),
    ),
    Mutant(
        "no handler is called where something is frozen",
        file="csrc/freeze/freezer.c",
        old="    pthread_sigmask(SIG_BLOCK, &others, before);",
        new="    pthread_sigmask(SIG_UNBLOCK, &others, before);",
        tests=("c/test_freeze.c::no_handler_is_called_while_something_is_frozen",),
    ),
    Mutant(
        "only the store is mapped",
        file="csrc/freeze/freezer.c",
        old="""\
    if (!os_is_file(memfd, fz->removals.inode))
        return -EBADF;
""",
        new="""\
""",
        tests=("c/test_freeze.c::what_is_mapped_is_the_store",),
    ),
    Mutant(
        "nothing is merged once nobody tells whose it is",
        file="csrc/freeze/owner.c",
        old="""\
!(os_is_known(fz->wp_fd) && owner_kept_registered(fz, address, n))""",
        new="""\
!owner_kept_registered(fz, address, n)""",
        tests=("c/test_freeze.c::frozen_pages_come_back_without_descriptors",),
    ),
    Mutant(
        "another file stays where it is",
        file="csrc/os/tasks.c",
        old="""\
    return os_is_known(tasks_fd) ? os_each_entry(tasks_fd, visit, data) : -EBADF;""",
        new="""\
    return os_each_entry(tasks_fd, visit, data);""",
        tests=("c/test_dio.c::test_another_file_stays_where_it_is",),
    ),
    Mutant(
        "what is read briefly is closed alone",
        file="csrc/os/files.c",
        old="return flags >= 0 && (flags & (BRIEFLY | O_ACCMODE)) == BRIEFLY;",
        new="return flags >= 0;",
        tests=("c/test_dio.c::test_what_is_read_briefly_is_closed_alone",),
    ),
    Mutant(
        "who stands in for mmap() is not called",
        file="csrc/os/unhooked.h",
        old="    return (void *)syscall(SYS_mmap, address, bytes, (long)rights, (long)flags, "
        "(long)fd, offset);\n",
        new="    return mmap(address, bytes, rights, flags, fd, offset);\n",
        tests=(
            "test_profilers.py::test_a_profiler_sees_no_mapping_of_the_engine[signal+wp-async-life]",
        ),
    ),
]
