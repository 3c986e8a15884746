"""What the short form of the suite runs (pytest --short), and its halves (pytest --half)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

#: How long what has a length is then, where nobody has set it: seconds, random lives, regions.
LENGTHS = {
    "KSMPY_TORTURE_SECONDS": "0.5",
    "KSMPY_MACHINE_EXAMPLES": "8",
    "KSMPY_CREEP_REGIONS": "180",
}


#: Tests of what a mode does to bytes, in all its steps: two modes of each. Of others one will do.
IN_TWO_MODES = frozenset(
    "test_exchanged test_fork test_invariants test_machine test_stale_nodes test_trees"
    " test_writers".split()
)

#: Tests that change what the kernel does for everybody (KSM, swap, huge pages, cgroups), or build
#: the same programs. They are all in the first half.
ONE_AT_A_TIME = frozenset(
    "test_bad_input test_checksum test_cli test_kernel test_kernel_oracle test_memory_limits"
    " test_rbtree test_soak test_stale_neighbours test_stale_nodes test_unprivileged".split()
)
#: So the halves take equally long. The tests that wait most are beside those that compute most.
MIDDLE = "test_int"
WAITING = "test_follow"


def half_of(module: str) -> int:
    """The half that a module's tests belong to, 1 or 2."""
    first = module < MIDDLE and module != WAITING
    return 1 if first or module in ONE_AT_A_TIME else 2


def modes_of(test: str, there: Iterable[str], own: str, *, count: int = 2) -> set[str]:
    """The machine's own mode and one other, or one of both; the test's name decides, on every run.

    So every mode has its share of the tests, and every test its share of the modes.
    """
    others = sorted(set(there) - {own})
    chosen = [own] if own in there else []
    number = zlib.crc32(test.encode())
    while others and len(chosen) < 2:
        chosen.append(others.pop(number % len(others)))
        number = zlib.crc32(test[::-1].encode())
    return set(chosen) if count > 1 else {chosen[number % len(chosen)]}
