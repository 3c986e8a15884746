"""How long something may take before it counts as hung."""

from __future__ import annotations

import os

#: An emulated machine says how much longer everything takes there (tests/vm).
FACTOR = int(os.environ.get("KSMPY_VM", "1"))


def patience(seconds: float) -> float:
    """Seconds here, for what never takes that many on a machine of any use."""
    return seconds * FACTOR
