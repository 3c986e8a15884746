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
    Mutant(
        "what was protected when it was taken away is copied back",
        file="csrc/freeze/uffd_away.c",
        old="    return os_populate(page, 1, true) == -EINVAL;",
        new="    return page == 0;",
        tests=("c/test_freeze.c::what_is_allowed_stays_allowed",),
    ),
    Mutant(
        "who gives back pages that are away to be verified as zeros waits",
        file="csrc/freeze/gate.c",
        old="    return fz->removals.gate_fd;",
        new="    return fz->to_zeros ? fz->wp_fd : fz->removals.gate_fd;",
        tests=("c/test_freeze.c::what_is_given_back_while_it_is_frozen_for_zeros_is_gone",),
    ),
    Mutant(
        "a shadow is not made of what was protected",
        file="csrc/freeze/shadow.c",
        old="    bool forbidden = os_populate(beside, 1, true) == -EINVAL;",
        new="    bool forbidden = false;",
        tests=("c/test_freeze.c::a_shadow_forbids_nothing",),
    ),
    Mutant(
        "pages come back without descriptors",
        file="csrc/freeze/uffd_away.c",
        old="""\
            os_copy(to, from, n);
            return;""",
        new="""\
            return;""",
        tests=("c/test_freeze.c::frozen_pages_come_back_without_descriptors",),
    ),
]
