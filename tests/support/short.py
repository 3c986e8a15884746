"""Which of a test's modes the short form of the suite runs (pytest --short)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

#: How long what has a length is then, where nobody has set it: seconds, random lives, regions.
LENGTHS = {
    "KSMPY_TORTURE_SECONDS": "0.5",
    "KSMPY_MACHINE_EXAMPLES": "8",
    "KSMPY_CREEP_REGIONS": "180",
}


def modes_of(test: str, there: Iterable[str], own: str) -> set[str]:
    """The machine's own mode and one other; which one the test's name decides, on every run.

    So every mode has its share of the tests, and every test its share of the modes.
    """
    others = sorted(set(there) - {own})
    chosen = {own} & set(there)
    if others:
        chosen.add(others.pop(zlib.crc32(test.encode()) % len(others)))
    if others and own not in chosen:
        chosen.add(others[zlib.crc32(test[::-1].encode()) % len(others)])
    return chosen
