"""Zeros that an engine has given back, and that take no memory still, as seen from outside.

An engine notes how many there are at the end of a pass or a scan. What was overwritten or freed
since then it may never note, so its count is no more than a bound; the page tables are the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ksmpy import proc
from ksmpy.engine.history import Past
from ksmpy.memory.maps import may_be_region
from ksmpy.watch.pages import Kind, Look, within
from ksmpy.watch.past import counters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["noted_zeros", "told_by_pages", "watched_memory", "zeros_left"]


def noted_zeros(past: Past) -> int:
    """The pages of zeros that an engine had given back when it noted its counters last."""
    return counters(past).get("ksm_zero_pages", 0)


def told_by_pages(past: Past) -> bool:
    """Whether its zeros can be told without smaps: where PAGEMAP_SCAN marks all memory that a
    userfaultfd has, or the engine has none.
    """
    return past.facts.get("tracking") == "wp-async" or not _watches(past)


def watched_memory(mappings: list[proc.Mapping]) -> list[tuple[int, int]]:
    """Where engines may have regions, neighbours together (mappings: proc.smaps())."""
    found: list[tuple[int, int]] = []
    for each in mappings:
        if not may_be_region(each):
            continue
        if found and found[-1][1] == each.start:
            found[-1] = found[-1][0], each.end
        else:
            found.append((each.start, each.end))
    return found


def zeros_left(past: Past, seen: Look, watched: list[tuple[int, int]] | Integers) -> int:
    """How many pages of its zeros are there still: no more than it has noted, and no more than
    pages of its regions take no memory now, less those that had never any when it noted them. Too
    few, where these have been touched since then. `seen` is cut where regions and what is watched
    begin and end.
    """
    import numpy as np

    noted = noted_zeros(past)
    if not noted:
        return 0
    empty = (seen.kind == Kind.ZERO) | (seen.kind == Kind.ABSENT)
    if _watches(past):  # memory that is no region any more has lost its userfaultfd
        empty &= within(seen.start, np.array(watched, np.int64).reshape(-1, 2)) >= 0
    elif past.facts.get("more_ended"):
        return 0
    before: Integers = np.append(0, np.cumsum(np.where(empty, seen.pages, 0)))
    regions: Any = past.facts["regions"]
    starts = np.array([address for address, _, _ in regions], np.int64)
    ends = starts + np.array([nbytes for _, nbytes, _ in regions], np.int64)
    first, last = np.searchsorted(seen.start, starts), np.searchsorted(seen.start, ends)
    untouched = counters(past).get("pages_untouched", 0)
    return max(0, min(noted, int((before[last] - before[first]).sum()) - untouched))


def _watches(past: Past) -> bool:
    """Whether the engine registers all of its regions with a userfaultfd."""
    return (past.facts.get("freeze"), past.facts.get("tracking")) != ("signal", "checksum")
