"""What the process's size is said to be from outside, while its pages are merged."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from support import memory

MIB = 1 << 20


def _resident_bytes() -> int:
    """The RSS of this process, exact, as another one reads it."""
    path = f"/proc/{os.getpid()}/smaps_rollup"
    told = subprocess.run(["cat", path], capture_output=True, check=True, text=True).stdout
    line = next(line for line in told.splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) << 10


def _metadata_bytes(engine: Any) -> int:
    return int(engine.stats().metadata_bytes)


def test_merging_does_not_raise_the_resident_size(engine: Any) -> None:
    """After a pass RSS is at most what it was before, plus the engine's own tables."""
    model = memory.distinct(24 * MIB // 4096)
    arrays = [model, memory.twin(model), memory.twin(model)]
    for array in arrays:
        engine.register(array)
    before = _resident_bytes() - _metadata_bytes(engine)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 2 * len(model) // 4096
    assert _resident_bytes() - _metadata_bytes(engine) <= before + MIB
    engine._core.check()
    model[::4096] ^= 1  # single pages, looked up one by one in the next pass
    model[::4096] ^= 1
    engine.scan(2, eager=True)
    assert engine.stats().pages_sharing == 2 * len(model) // 4096
    assert _resident_bytes() - _metadata_bytes(engine) <= before + MIB
