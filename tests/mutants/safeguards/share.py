"""csrc/share.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "one at a time comes through the gate",
        file="csrc/share.c",
        old="int gate = store_close_gate(store->lock_fd, true);",
        new="int gate = store_close_gate(store->lock_fd, false);",
        tests=("c/test_between.c::one_at_a_time_lays_out_a_store",),
    ),
]
