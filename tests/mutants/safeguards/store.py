"""csrc/store/frames.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a frame that filled up is not joined",
        file="csrc/store/sharers.c",
        old="record->state == FRAME_LIVE && has_room(store, record);",
        new="record->state == FRAME_LIVE;",
        tests=("c/test_between.c::a_frame_has_no_sharer_too_many",),
    ),
    Mutant(
        "a frame that was freed is not joined",
        file="csrc/store/sharers.c",
        old="record->state == FRAME_LIVE && has_room(store, record);",
        new="has_room(store, record);",
        tests=("c/test_between.c::a_frame_that_was_freed_is_not_joined",),
        quick=True,
    ),
    Mutant(
        "a frame in the making is its maker's",
        file="csrc/store/sharers.c",
        old="        return record->owner == store->slot;",
        new="        return true;",
        tests=("c/test_slots.c::a_frame_in_the_making_is_its_makers",),
    ),
    Mutant(
        "others hear of room in a frame",
        file="csrc/store/sharers.c",
        old="""\
        if (is_full(store, frame_at(store, frame)))
            event_add""",
        new="""\
        if (false)
            event_add""",
        tests=("c/test_slots.c::others_hear_of_a_frame_with_room_again",),
    ),
    Mutant(
        "a frame that a child may map is kept",
        file="csrc/store/sharers.c",
        old="""\
    if (store_leased(store, record))
        store->head->stale_frames++;
    else
        free_live_frame(store, frame);""",
        new="    free_live_frame(store, frame);",
        tests=("c/test_slots.c::a_fork_leaves_a_lease_behind",),
    ),
    Mutant(
        "who comes again has nothing left to free",
        file="csrc/store/mapping.c",
        old="    store->dead_count = 0;",
        new="    store->dead_count += 0;",
        tests=("c/test_slots.c::who_comes_again_has_nothing_left_to_free",),
    ),
    Mutant(
        "no hole is punched into another file",
        file="csrc/store/punch.c",
        old="bool done = store_has_write_file(store) &&",
        new="bool done =",
        tests=("c/test_slots.c::freed_frames_leave_no_hole_in_another_file",),
    ),
    Mutant(
        "frames that cannot be read are not used",
        file="csrc/store/frames.c",
        old="    store->broken = store_show(store);",
        new="    store_show(store);",
        tests=("c/test_engine.c::frames_that_cannot_be_read_are_not_used",),
    ),
    Mutant(
        "a frame that keeps its memory is not free",
        file="csrc/store/punch.c",
        old="    if (done) {\n        pool_give(",
        new="    if (true) {\n        pool_give(",
        tests=("c/test_slots.c::a_frame_that_keeps_its_memory_is_not_free",),
    ),
    Mutant(
        "reaping spares what is shared",
        file="csrc/store/frames.c",
        old="if (!frame_is_live(store, frame) || record->sharers || store_leased(store, record))",
        new="if (!frame_is_live(store, frame) || store_leased(store, record))",
        tests=("c/test_rebuild.c::an_index_whose_owner_died_is_made_anew",),
    ),
    Mutant(
        "reaping spares what a child may map",
        file="csrc/store/frames.c",
        old="if (!frame_is_live(store, frame) || record->sharers || store_leased(store, record))",
        new="if (!frame_is_live(store, frame) || record->sharers)",
        tests=("c/test_slots.c::a_fork_leaves_a_lease_behind",),
    ),
    Mutant(
        "a descriptor of another file is not closed",
        file="csrc/store/files.c",
        old="if (files[i] >= 0 && (!inodes[i] || os_is_file(files[i], inodes[i])))",
        new="if (files[i] >= 0)",
        tests=("c/test_slots.c::who_leaves_changes_no_other_file",),
    ),
    Mutant(
        "frames are not written into another file",
        file="csrc/store/frames.c",
        old="""\
    if (!store_has_write_file(store))
        return -EBADF;
    return os_write(""",
        new="""\
    return os_write(""",
        tests=("c/test_slots.c::another_file_is_not_written_to",),
    ),
    Mutant(
        "nor are frames that are gathered",
        file="csrc/store/frames.c",
        old="""\
    if (!store_has_write_file(store))
        return -EBADF;
    return os_write_from(""",
        new="""\
    return os_write_from(""",
        tests=("c/test_slots.c::another_file_is_not_written_to",),
    ),
    Mutant(
        "no byte for a huge page goes into another file",
        file="csrc/store/collapse.c",
        old="""\
        if (!store_has_write_file(store))
            return -EBADF;
""",
        new="""\
""",
        tests=("c/test_slots.c::another_file_is_not_written_to",),
    ),
    Mutant(
        "another file is not cut",
        file="csrc/store/attach.c",
        old="""\
    return store_has_write_file(store) ? os_set_size(store->write_fd, bytes) : -EBADF;""",
        new="""\
    return os_set_size(store->write_fd, bytes);""",
        tests=("c/test_slots.c::another_file_is_not_written_to",),
    ),
    Mutant(
        "another file is no index",
        file="csrc/store/mapping.c",
        old="""\
    if (!store_has_files(store)) {""",
        new="""\
    if (false) {""",
        tests=("c/test_slots.c::another_file_is_no_index",),
    ),
    Mutant(
        "another file has no counts",
        file="csrc/store/mapping.c",
        old="""\
    if (!store_has_write_file(store)) {""",
        new="""\
    if (false) {""",
        tests=("c/test_slots.c::another_file_is_no_index",),
    ),
    Mutant(
        "an index on huge pages counts as what it takes",
        file="csrc/store/pool.c",
        old="int64_t memory = store->large_folios && store_has_write_file(store)",
        new="int64_t memory = false",
        tests=("c/test_slots.c::an_index_on_huge_pages_counts_as_what_it_takes",),
    ),
    Mutant(
        "who looks at a store counts its index on huge pages",
        file="csrc/store/inspect.c",
        old="    store->large_folios = os_file_gets_large_folios(store->write_fd);\n",
        new="",
        tests=("c/test_slots.c::an_index_on_huge_pages_counts_as_what_it_takes",),
    ),
]
