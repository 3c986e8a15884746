"""csrc/freeze/freezer.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a move that fails halfway is made good",
        file="csrc/freeze/replace.c",
        old="if (!error || os_claim(address, n) != 0)",
        new="if (true)",
        tests=("c/test_freeze.c::a_move_that_fails_halfway_is_made_good",),
        quick=True,
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
]
