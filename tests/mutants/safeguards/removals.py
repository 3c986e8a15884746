"""csrc/freeze/removal_thread.c, and what follows it."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what is another engine's on the store is left to it",
        file="csrc/freeze/removal_thread.c",
        old="|| !is_ours(fz, removed.start, removed.end))",
        new="|| (false && !is_ours(fz, removed.start, removed.end)))",
        tests=(
            "test_given_back.py::test_what_another_engine_on_the_store_is_told_of[uffd-wp+wp-async]",
        ),
    ),
    Mutant(
        "overlays are replaced before the message is read",
        file="csrc/freeze/removal_thread.c",
        old="seen |= replace_overlays(fz, call->start, call->end, false) > 0;",
        new="seen = true;",
        tests=("test_given_back.py::test_what_is_given_back_is_zero_at_once",),
    ),
    Mutant(
        "who was let go on is waited for",
        file="csrc/freeze/removal_thread.c",
        old="if (os_now_ns() < leaver->until && os_may_remove(fz->tasks_fd, &leaver->call))",
        new="if (false)",
        tests=("c/test_freeze.c::what_is_being_given_back_is_not_frozen",),
    ),
    Mutant(
        "the records follow what was given back",
        file="csrc/merge/unmerge.c",
        old="    forget_sharing(pages, region, span, PAGE_NEW);\n    if (!region->lost)",
        new="    if (!region->lost)",
        tests=("test_given_back.py::test_what_is_given_back_is_zero_at_once",),
    ),
    Mutant(
        "all threads that give back are seen",
        file="csrc/freeze/removal_thread.c",
        old="        if (n < 0 || (uint64_t)n <= seen->committed)",
        new="        if (n < 0 || (n = (int)least((uint64_t)n, 32), seen->committed >= 32))",
        tests=("test_given_back.py::test_many_give_back_at_once",),
    ),
    Mutant(
        "who gives back is seen without a free descriptor",
        file="csrc/os/given_back.c",
        old="    int error = os_ask(find_removers, &removers);",
        new="    int error = find_removers(&removers, false);",
        tests=("test_given_back.py::test_given_back_without_a_free_descriptor",),
    ),
]
