"""csrc/freeze/uffd_away.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "pages go back in pieces",
        file="csrc/freeze/uffd_away.c",
        old="""\
            part /= 2;
            continue;""",
        new="            return;",
        tests=("c/test_freeze.c::frozen_pages_come_back",),
    ),
    Mutant(
        "what cannot be moved back is copied",
        file="csrc/freeze/uffd_away.c",
        old="""\
            move = false;
        os_sleep_us(50);""",
        new="""\
            return;
        os_sleep_us(50);""",
        tests=("c/test_freeze.c::frozen_pages_come_back",),
    ),
]
