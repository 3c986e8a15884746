"""csrc/store/attach.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "another C library's lock is not taken",
        file="csrc/store/layout.c",
        old="shape->mutex != ours.mutex",
        new="false",
        tests=("test_damaged_stores.py::test_another_layout_is_refused",),
    ),
    Mutant(
        "one at a time takes the attach lock",
        file="csrc/store/attach.c",
        old="int lock = attach_lock(store->lock_fd, true);",
        new="int lock = attach_lock(store->lock_fd, false);",
        tests=("c/test_between.c::one_at_a_time_lays_out_a_store",),
    ),
    Mutant(
        "children inherit no index",
        file="csrc/store/mapping.c",
        old="if (address && os_dont_fork(address, bytes) < 0)",
        new="if (false)",
        tests=("c/test_slots.c::children_inherit_neither_the_index_nor_the_slot",),
    ),
    Mutant(
        "children inherit no slot",
        file="csrc/store/attach.c",
        old="    error = os_dont_fork(lease, PAGE_SIZE);",
        new="    error = 0;",
        tests=("c/test_slots.c::children_inherit_neither_the_index_nor_the_slot",),
    ),
    Mutant(
        "marks beyond the file are refused",
        file="csrc/store/attach.c",
        old="if (high > store->ids[node].limit || trees > frame_limit(store))",
        new="if (false)",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "rules outlast who follows them",
        file="csrc/store/attach.c",
        old="        memcpy(store->head->knobs, rules, sizeof rules);",
        new="        store_default_rules(store->head->knobs);",
        tests=("c/test_slots.c::rules_outlast_those_who_follow_them",),
    ),
    Mutant(
        "rules that nobody can follow are refused",
        file="csrc/store/attach.c",
        old="error = rules_are_sound(store->head->knobs) ? store_lock_soundly(store) : -EUCLEAN;",
        new="error = store_lock_soundly(store);",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "an index is checked before it is used",
        file="csrc/store/attach.c",
        old="            error = store_check(store);",
        new="            error = 0;",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "pid namespaces have to agree",
        file="csrc/store/attach.c",
        old="return theirs && ours && theirs != ours;",
        new="return theirs && ours && false;",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "nodes have to agree",
        file="csrc/store/attach.c",
        old="""\
    if ((int)shape->nodes != nodes)
        return -EXDEV;
""",
        new="",
        tests=("c/test_slots.c::a_newcomer_believes_nothing",),
    ),
    Mutant(
        "a store in use is not laid out anew",
        file="csrc/store/attach.c",
        old="error = used ? join_in",
        new="error = false ? join_in",
        tests=("c/test_dead.c::what_the_dead_was_making_is_freed",),
    ),
    Mutant(
        "a damaged head is not taken for none",
        file="csrc/store/attach.c",
        old="""\
    if (error && (error != -ENODATA || used))
        return error == -ENODATA ? -EUCLEAN : error;
""",
        new="",
        tests=("c/test_store.c::neighbours_come_to_share",),
    ),
    Mutant(
        "a newcomer reaps the dead",
        file="csrc/store/attach.c",
        old="""\
    slots_reap(store);
    store_flush""",
        new="    store_flush",
        tests=("c/test_dead.c::a_newcomer_frees_what_the_dead_was_making",),
    ),
    Mutant(
        "what a newcomer freed is nobody's at once",
        file="csrc/store/attach.c",
        old="""\
    store_flush(store); /* now: without a slot we own no frames, and nobody else knows of these */
""",
        new="",
        tests=("c/test_dead.c::a_newcomer_frees_what_the_dead_was_making",),
    ),
    Mutant(
        "pinned frames outlast their store",
        file="csrc/store/attach.c",
        old="bool leaves = !store->pinned && store_has_files(store);",
        new="bool leaves = store_has_files(store);",
        tests=("c/test_slots.c::what_is_pinned_outlasts_its_store",),
    ),
    Mutant(
        "who leaves changes no other file",
        file="csrc/store/attach.c",
        old="bool leaves = !store->pinned && store_has_files(store);",
        new="bool leaves = !store->pinned;",
        tests=("c/test_slots.c::who_leaves_changes_no_other_file",),
    ),
    Mutant(
        "who leaves frees what nobody maps",
        file="csrc/store/attach.c",
        old="""\
        store_reap(store); /* this may be the last process on the store */
""",
        new="",
        tests=("c/test_store.c::a_child_goes_on_with_its_engine",),
    ),
]
