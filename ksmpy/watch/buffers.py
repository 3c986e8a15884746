"""The buffers of one process, from outside: how much of each lies on frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ksmpy.native import PAGE_SIZE
from ksmpy.watch.pages import Kind
from ksmpy.watch.subjects import UNNAMED, Subject

__all__ = ["Buffer", "buffers"]

_IN_MEMORY = (Kind.ALONE, Kind.HUGE, Kind.OFTEN, Kind.SWAPPED)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A region of an engine, or all merged memory that is in none that is known; bytes."""

    name: str
    nbytes: int
    merged_bytes: int
    written_bytes: int
    alone_bytes: int


def buffers(subject: Subject) -> list[Buffer]:
    """Those with most on frames first."""
    import numpy as np

    seen = subject.look
    inside = np.zeros(len(seen.start), bool)
    found = []
    for start, end, name in subject.regions:
        part = (seen.start >= start) & (seen.start < end)
        inside |= part
        found.append(_buffer(name, end - start, seen, part))
    rest = _buffer(UNNAMED, 0, seen, ~inside)
    if rest.merged_bytes or rest.written_bytes:
        size = rest.merged_bytes + rest.written_bytes
        found.append(Buffer(UNNAMED, size, rest.merged_bytes, rest.written_bytes, 0))
    return sorted(found, key=lambda each: (-each.merged_bytes, -each.nbytes))


def _buffer(name: str, nbytes: int, seen: Any, part: Any) -> Buffer:
    import numpy as np

    def count(*kinds: Kind) -> int:
        return int(seen.pages[part & np.isin(seen.kind, kinds)].sum()) * PAGE_SIZE

    return Buffer(name, nbytes, count(Kind.SHARED), count(Kind.WRITTEN), count(*_IN_MEMORY))
