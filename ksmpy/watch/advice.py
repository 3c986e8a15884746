"""What is not merged, in words, each with the way out."""

from __future__ import annotations

__all__ = ["COUNTERS", "NOBODY", "way_out"]

NOBODY = "nobody registered it"

#: Counters of an engine by what they say; of these, a page counts each time that it is refused.
COUNTERS = {
    "pages_volatile": "written too often, or not looked at often enough yet",
    "pages_busy": "in use for I/O when it was its turn",
    "pages_no_budget": "for want of mappings",
    "pages_no_memory": "for want of memory in the store",
    "pages_differed": "changed while it was being merged",
    "pages_lost": "unmapped or replaced by the program",
}

_WAYS = (
    (NOBODY, "ksmpy.enable(), engine.track(object), or start the program by ksmpy run"),
    ("too often", "nothing to do: it merges when it rests (smart_scan = 0 looks more often)"),
    ("for I/O", "nothing to do: it is tried again in the next pass"),
    ("want of mappings", "raise vm.max_map_count (root), or begin arrays at a page: ksmpy.array()"),
    ("want of memory", "free some of /dev/shm, or mount it larger"),
    ("while it was being", "nothing to do: it is tried again in the next pass"),
    ("replaced by the program", "release() a region before its memory is unmapped"),
    ("new, or given back", "nothing to do: what lives for two looks is adopted"),
    ("count on zeros", "engine.register(array); or adopt='all', if you know that it does not"),
    ("small objects", "nothing to do: what Python keeps there is written all the time"),
    ("not in memory", "nothing to do: it takes no memory"),
    ("mlock", "munlock() it, or register a copy"),
    ("hugetlbfs", "transparent huge pages merge; those of hugetlbfs do not"),
    ("WIPEONFORK", "madvise(MADV_KEEPONFORK)"),
    ("DONTFORK", "madvise(MADV_DOFORK)"),
    ("a stack", "nothing to do: stacks are written all the time"),
    ("not rw-", "make it writable before it is registered"),
    ("userfaultfd", "one userfaultfd per mapping: end the other one"),
    ("small", "ksmpy.enable(min_bytes=...) takes smaller pieces"),
)


def way_out(reason: str) -> str:
    """What can be done about it; empty where nothing is known."""
    return next((way for words, way in _WAYS if words in reason), "")
