"""csrc/os/presence.c, and who passes over what is not there by it."""

from __future__ import annotations

from ..mutant import Mutant

_TEST = ("c/test_allocators.c::what_is_reserved_is_passed_over",)

MUTANTS = [
    Mutant(
        "what is reserved is passed over at once",
        file="csrc/os/presence.c",
        old="        if (!asked && at < end && next_by_scan(at, end, &next))",
        new="        if (at > end && next_by_scan(at, end, &next))",
        tests=_TEST,
    ),
    Mutant(
        "an arena's first page need not be in memory",
        file="csrc/os/allocators.c",
        old="            at = there - POOL_BYTES + PAGE_SIZE;",
        new="            at = there;",
        tests=_TEST,
    ),
]
