"""csrc/store: slots, the lock, the dead, children."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "who comes again has no slot yet",
        file="csrc/store/attach.c",
        old="""    store->slot = NO_SLOT;
    int error = enter_locked""",
        new="""    int error = enter_locked""",
        tests=("test_death.py::test_a_child_that_held_no_slot_buries_the_dead",),
    ),
    Mutant(
        "a lock that is none ends nobody",
        file="csrc/store/lock.c",
        old="        store->broken = -EUCLEAN;",
        new="        __builtin_trap();",
        tests=("test_damaged_stores.py::test_a_lock_that_is_none_any_more",),
    ),
    Mutant(
        "who cannot mend an index leaves it to others",
        file="csrc/store/lock.c",
        old="    if (error)\n        return error;\n    head->half_changed = false;",
        new="    head->half_changed = false;\n    if (error)\n        return error;",
        tests=("test_stopped_members.py::test_who_cannot_mend_leaves_it_to_others",),
    ),
    Mutant(
        "who was stopped itself has not waited",
        file="csrc/store/patience.c",
        old="patience->waited += least(now - patience->last, STEP_NS);",
        new="patience->waited += now - patience->last;",
        tests=("test_stopped_members.py::test_who_was_stopped_itself_has_not_waited",),
    ),
    Mutant(
        "nobody is reaped alive",
        file="csrc/store/reap.c",
        old="""\
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE && !slot_is_held(store, i))
            reap_slot(store, i);
""",
        new="""\
        reap_slot(store, i);
""",
        tests=("c/test_between.c::nobody_is_reaped_alive",),
        quick=True,
    ),
    Mutant(
        "who lost its files reaps nobody",
        file="csrc/store/reap.c",
        old="""\
        return; /* in another file nobody holds a lock, so everybody would look dead */
""",
        new="""\
        atomic_signal_fence(memory_order_seq_cst);
""",
        tests=("c/test_between.c::who_lost_its_files_reaps_nobody",),
    ),
    Mutant(
        "the lock of a stopped process is not waited for",
        file="csrc/store/mutex.c",
        old="error == EBUSY && *waited < limit_ns;",
        new="error == EBUSY;",
        tests=("test_stopped_members.py::test_close_does_not_wait",),
    ),
    Mutant(
        "a short hold costs nobody the processor",
        file="csrc/store/mutex.c",
        old="        if (tries < SPINS)",
        new="        if (false)",
        tests=("c/test_lock.c::a_short_hold_costs_nobody_the_processor",),
    ),
    Mutant(
        "a lock is given back once",
        file="csrc/store/lock.c",
        old="    if (!store->shared || !has_lock(store) || --store->depth)",
        new="    (void)has_lock;\n    if (!store->shared || --store->depth)",
        tests=("c/test_lock.c::a_lock_is_given_back_once",),
    ),
    Mutant(
        "memory for a larger table is asked for without the lock",
        file="csrc/store/announce.c",
        old="    if (!store->depth)\n        board_prepare(store);\n",
        new="",
        tests=("c/test_lock.c::nobody_waits_while_memory_is_asked_for",),
    ),
    Mutant(
        "an outgrown table goes back in pieces",
        file="csrc/store/board.c",
        old="#define TRIM 8192",
        new="#define TRIM 8192000",
        tests=("c/test_lock.c::nobody_waits_while_memory_is_asked_for",),
    ),
    Mutant(
        "an outgrown table leaves no hole in another file",
        file="csrc/os/arena.c",
        old="""\
        return -EBADF;
    return os_punch(""",
        new="""\
        arena->fd >= 0;
    return os_punch(""",
        tests=("c/test_slots.c::an_outgrown_table_leaves_no_hole_in_another_file",),
    ),
    Mutant(
        "a frame that could not be pinned is not left",
        file="csrc/store/frames.c",
        old="    if (store->bankrupt && store->pinned)",
        new="    if (false)",
        tests=("c/test_slots.c::a_frame_that_cannot_be_pinned_is_not_left",),
    ),
    Mutant(
        "what a fork has left is not claimed",
        file="csrc/scan/lookup.c",
        old="announced == ANNOUNCED_BY_KIN && !is_left_by_fork(scanner, id)",
        new="announced == ANNOUNCED_BY_KIN",
        tests=("test_stores.py::test_what_a_fork_has_left_is_no_saving",),
    ),
    Mutant(
        "what kin have loaded each for itself merges",
        file="csrc/scan/lookup.c",
        old="announced == ANNOUNCED_BY_KIN && !is_left_by_fork(scanner, id)",
        new="false",
        tests=("test_stores.py::test_what_a_fork_has_left_is_no_saving",),
    ),
    Mutant(
        "kin that wait are told what was written",
        file="csrc/store/board.c",
        old="if (remove_entry(store, entry_for(key_of(tree, sum), store->slot)) & KIN_WAITS)",
        new="if (remove_entry(store, entry_for(key_of(tree, sum), store->slot)) & 0)",
        tests=("c/test_dead.c::a_page_left_by_fork_waits_for_what_becomes_of_it",),
    ),
    Mutant(
        "kin that wait are told who has died",
        file="csrc/store/board.c",
        old="entry & (CLAIMED | KIN_WAITS) && tree",
        new="entry & CLAIMED && tree",
        tests=("c/test_dead.c::a_page_left_by_fork_waits_for_what_becomes_of_it",),
    ),
    Mutant(
        "a lock is waited for",
        file="csrc/store/lock.c",
        old="limit = store->away ? 0 : LOCK_TRY_MS * 1000000;",
        new="limit = 0;",
        tests=("c/test_lock.c::a_lock_is_waited_for_once",),
    ),
    Mutant(
        "a lock is waited for once",
        file="csrc/store/lock.c",
        old="limit = store->away ? 0 : LOCK_TRY_MS * 1000000;",
        new="limit = LOCK_TRY_MS * 1000000;",
        tests=("c/test_lock.c::a_lock_is_waited_for_once",),
    ),
    Mutant(
        "an index whose owner died is made anew",
        file="csrc/store/lock.c",
        old="    error = store_rebuild(store);",
        new="",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "a slot with a dead one in it is not taken",
        file="csrc/store/slots.c",
        old="""\
        if (atomic_load(&store->head->slots[i].kind) != SLOT_FREE) {
            os_lease_drop(*lease);""",
        new="""\
        if (false) {
            os_lease_drop(*lease);""",
        tests=("c/test_dead.c::a_slot_with_a_dead_one_in_it_is_not_taken",),
    ),
    Mutant(
        "a slot is not claimed in another file",
        file="csrc/store/slots.c",
        old="""\
    *lease = NULL;
    if (!store_has_files(store))
        return -EBADF;""",
        new="    *lease = NULL;",
        tests=("c/test_slots.c::a_slot_is_not_claimed_in_another_file",),
    ),
    Mutant(
        "pins of the dead are taken back",
        file="csrc/store/reap.c",
        old="""\
    record->pins = (uint16_t)(record->pins - (count & PINNED ? 1 : 0));
""",
        new="",
        tests=("c/test_dead.c::what_the_dead_shared_is_taken_back",),
    ),
    Mutant(
        "sharers of the dead are taken back",
        file="csrc/store/reap.c",
        old="        if (each_count(store, slot, take_back) < 0) {",
        new="        if (false) {",
        tests=("c/test_dead.c::what_the_dead_shared_is_taken_back",),
    ),
    Mutant(
        "counts of the dead are cleared",
        file="csrc/store/reap.c",
        old="""\
        clear_counts(store, slot);
        store->head->deaths++;""",
        new="        store->head->deaths++;",
        tests=("c/test_dead.c::what_the_dead_shared_is_taken_back",),
    ),
    Mutant(
        "what the dead were making is freed",
        file="csrc/store/reap.c",
        old="""\
        free_orphans(store, slot);
""",
        new="",
        tests=("c/test_dead.c::what_the_dead_was_making_is_freed",),
    ),
    Mutant(
        "what the dead had not filled is not read",
        file="csrc/store/reap.c",
        old="            if (half && record->owner == slot)\n",
        new="""\
            if (half && record->owner == slot && store_sum(store, frame_bytes(store, frame)))
""",
        tests=("c/test_dead.c::what_the_dead_had_not_filled_is_not_read",),
    ),
    Mutant(
        "a rebuild does not read what the dead had not filled",
        file="csrc/store/rebuild.c",
        old="               store->head->slots[record->owner].kind != SLOT_ENGINE) {\n",
        new="""\
               store->head->slots[record->owner].kind != SLOT_ENGINE) {
        record->sum = store_sum(store, frame_bytes(store, frame));
""",
        tests=("c/test_dead.c::what_the_dead_had_not_filled_is_not_read",),
    ),
    Mutant(
        "frames are in the index before pages lie on them",
        file="csrc/merge/publish.c",
        old="            store_publish(store, batch->onto[i], tree);",
        new="            (void)tree;",
        tests=("c/test_between.c::frames_are_in_the_index_before_pages_lie_on_them",),
    ),
    Mutant(
        "nobody waits with the dead",
        file="csrc/store/reap.c",
        old="""\
        announcements_forget_slot(store, slot);
""",
        new="",
        tests=("c/test_dead.c::nobody_waits_with_the_dead",),
    ),
    Mutant(
        "a rebuild forgets what the dead shared",
        file="csrc/store/rebuild.c",
        old="""\
            clear_counts(store, i);
""",
        new="",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "a rebuild counts what the living share",
        file="csrc/store/rebuild.c",
        old="        error = each_count(store, i, count_sharers);",
        new="        error = 0;",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "a rebuild has memory for every record it believes in",
        file="csrc/store/rebuild.c",
        old="        error = ids_allocate(ids);",
        new="        error = 0;",
        tests=("c/test_rebuild.c::an_index_is_made_anew_as_a_whole",),
    ),
    Mutant(
        "a rebuild believes in no more records than there can be",
        file="csrc/store/rebuild.c",
        old="least(ids->state->high, ids->limit);",
        new="ids->state->high;",
        tests=("c/test_rebuild.c::an_index_is_made_anew_as_a_whole",),
    ),
    Mutant(
        "a rebuild believes in records that nobody has touched",
        file="csrc/store/rebuild.c",
        old="        error = ids_allocate(ids);",
        new="""\
        extern long lseek(int fd, long offset, int whence);
        uint64_t start = store->records[node].offset;
        uint64_t there = (uint64_t)lseek(store->lock_fd, (long)start, 4) - start; /* SEEK_HOLE */
        ids->state->high = least(ids->state->high, there / sizeof(struct frame));""",
        tests=("c/test_rebuild.c::frames_behind_records_that_nobody_has_touched_stay",),
    ),
    Mutant(
        "a rebuild without memory is none",
        file="csrc/store/rebuild.c",
        old="    int error = need_records(store);\n    if (error)\n",
        new="    int error = need_records(store);\n    if (false)\n",
        tests=("c/test_rebuild.c::an_index_is_made_anew_as_a_whole",),
    ),
    Mutant(
        "a rebuild that misses counts of the living is none",
        file="csrc/store/rebuild.c",
        old="            return error; /* of those",
        new="            continue; /* of those",
        tests=("c/test_rebuild.c::an_index_is_made_anew_as_a_whole",),
    ),
    Mutant(
        "sharers of the dead that cannot be read are not forgotten",
        file="csrc/store/reap.c",
        old="        if (each_count(store, slot, take_back) < 0) {",
        new="        each_count(store, slot, take_back);\n        if (false) {",
        tests=("c/test_rebuild.c::an_index_is_made_anew_as_a_whole",),
    ),
    Mutant(
        "counts are found while the kernel moves them",
        file="csrc/store/slots.c",
        old="""\
            if (error < 0)
                return error;
            if (!store_has""",
        new="""\
            if (lseek(store->lock_fd, (off_t)counts_offset(store, slot), SEEK_DATA) < 0)
                return error;
            if (!store_has""",
        tests=("c/test_rebuild.c::counts_are_found_while_the_kernel_moves_them",),
    ),
    Mutant(
        "ids are known once there are records for them",
        file="csrc/os/arena.c",
        old="        if (allocate(ids, high) < 0)\n            return false;\n        clear_above",
        new="""\
        uint64_t before = ids->state->high;
        ids->state->high = high;
        if (allocate(ids, high) < 0) {
            ids->state->high = before;
            return false;
        }
        ids->state->high = before;
        clear_above""",
        tests=("c/test_rebuild.c::ids_are_known_once_there_are_records_for_them",),
    ),
    Mutant(
        "a rebuild looks at the bytes",
        file="csrc/store/rebuild.c",
        old="""\
    if (record->state == FRAME_LIVE) {
        record->sum = store_sum""",
        new="""\
    if (record->state == FRAME_LIVE) {
        (void)store_sum""",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "a rebuild frees what the dead were making",
        file="csrc/store/rebuild.c",
        old="        store_free(store, frame);",
        new="        (void)frame;",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "a rebuild keeps what a child may map",
        file="csrc/store/rebuild.c",
        old="""\
            record->left = store->head->forks;
            store->head->stale_frames++;""",
        new="            store->head->stale_frames++;",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "pinned frames are kept",
        file="csrc/store/slots.c",
        old="if (frame->pins || frame->born < head->lost)",
        new="if (frame->born < head->lost)",
        tests=("c/test_slots.c::a_child_holds_what_was_there_when_it_came",),
    ),
    Mutant(
        "a child without a slot keeps its frames",
        file="csrc/store/slots.c",
        old="if (frame->pins || frame->born < head->lost)",
        new="if (frame->pins)",
        tests=("c/test_slots.c::a_child_holds_what_was_there_when_it_came",),
    ),
    Mutant(
        "a child keeps no later frames",
        file="csrc/store/slots.c",
        old="slot->fork > frame->born && slot->fork <= until",
        new="slot->fork <= until",
        tests=("c/test_slots.c::a_child_holds_what_was_there_when_it_came",),
    ),
    Mutant(
        "a child keeps no frame that was left before it",
        file="csrc/store/slots.c",
        old="slot->fork > frame->born && slot->fork <= until",
        new="slot->fork > frame->born",
        tests=("c/test_slots.c::a_child_holds_what_was_there_when_it_came",),
    ),
    Mutant(
        "a child keeps its frames",
        file="csrc/store/slots.c",
        old="if (slot->kind == SLOT_CHILD && slot->fork > frame->born && slot->fork <= until)",
        new="if (false)",
        tests=("c/test_slots.c::a_fork_leaves_a_lease_behind",),
    ),
    Mutant(
        "frames of a child without a slot stay for ever",
        file="csrc/store/slots.c",
        old="""\
    raise_to(&store->head->lost, fork);
""",
        new="",
        tests=("c/test_slots.c::a_fork_without_a_slot_loses_frames",),
    ),
    Mutant(
        "a child without a slot holds its parent's",
        file="csrc/store/slots.c",
        old="""\
    raise_to(&store->head->lost, fork);
    store_bequeath(store);""",
        new="    raise_to(&store->head->lost, fork);",
        tests=("c/test_slots.c::a_fork_without_a_slot_loses_frames",),
    ),
    Mutant(
        "a fork takes the slots of the dead",
        file="csrc/store/children.c",
        old="""\
        slots_reap(store);
        if (slot_claim(store, SLOT_CHILD""",
        new="        if (slot_claim(store, SLOT_CHILD",
        tests=("c/test_slots.c::a_fork_without_a_slot_loses_frames",),
    ),
    Mutant(
        "slots in use are looked at",
        file="csrc/store/slots.c",
        old="""\
        raise_to(&store->head->slots_end, i + 1);
""",
        new="",
        tests=("c/test_slots.c::a_fork_leaves_a_lease_behind",),
    ),
    Mutant(
        "in another file nobody is dead",
        file="csrc/store/slots.c",
        old="""\
    return looks_held(store, slot) || !store_has_lock_file(store);""",
        new="""\
    return looks_held(store, slot);""",
        tests=("c/test_slots.c::in_another_file_nobody_is_dead",),
    ),
    Mutant(
        "in another file all slots look held",
        file="csrc/store/slots.c",
        old="""\
            return true;
    return !store_has_lock_file(store);""",
        new="""\
            return true;
    return false;""",
        tests=("c/test_slots.c::in_another_file_nobody_is_dead",),
    ),
    Mutant(
        "nobody is counted in another file",
        file="csrc/store/slots.c",
        old="""\
            if (!store_has_lock_file(store))
                return -EBADF;
            for""",
        new="""\
            for""",
        tests=("c/test_slots.c::in_another_file_nobody_is_dead",),
    ),
    Mutant(
        "counts of the dead leave no hole in another file",
        file="csrc/store/slots.c",
        old="""\
    if (store_has_lock_file(store))
        os_punch""",
        new="""\
    if (store->lock_fd >= 0)
        os_punch""",
        tests=("c/test_slots.c::another_file_gets_no_holes",),
    ),
    Mutant(
        "a child does not sign another file",
        file="csrc/store/slots.c",
        old="""\
    if (!store_has_lock_file(store))
        return;
""",
        new="""\
""",
        tests=("c/test_slots.c::in_another_file_nobody_is_dead",),
    ),
    Mutant(
        "another file gets no memory for counts",
        file="csrc/store/room.c",
        old="""\
    if (!store_has_lock_file(store))
        return -EBADF;
""",
        new="""\
""",
        tests=("c/test_slots.c::in_another_file_nobody_is_dead",),
    ),
]
