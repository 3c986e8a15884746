"""The rows of the report: which figure answers which question, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `metric` of benchmark group `group`, as measured on side `ours` and compared with side
    `theirs`, or with our own metric `beside` taken in turn with it. The goal is a largest ratio
    of the two, a largest difference, a largest value of ours, or several of these.
    """

    title: str
    group: str
    metric: str = "wall"
    unit: str = "s"
    ours: str = "ksmpy"
    theirs: str | None = "kernel"
    beside: str | None = None
    ratio: float | None = None
    difference: float | None = None
    value: float | None = None
    pick: str = "median"


def _wall_and_cpu(title: str, group: str, ratio: float) -> tuple[Row, Row]:
    return (
        Row(f"{title}: wall time", group, ratio=ratio),
        Row(f"{title}: CPU time", group, "cpu", ratio=ratio),
    )


def _count(title: str, group: str, metric: str, side: str, value: float | None = None) -> Row:
    """A figure of ksmpy's own that has nothing beside it."""
    unit = "B" if metric.startswith("bytes") else ""
    return Row(title, group, metric, unit, ours=side, theirs=None, value=value)


def _kind(title: str, kind: str, ratio: float | None = None) -> Row:
    """One pass of ksmpy's beside another one of its own."""
    return Row(title, "pass_kinds", ours=kind, theirs="unchanged", ratio=ratio)


def _index(operation: str, metric: str, unit: str = "s") -> tuple[Row, ...]:
    """The engine's two structures and a sorted array, beside a hash table."""
    return tuple(
        Row(f"index of 4 million, {operation}: {side}", "index", metric, unit, side, "hash table")
        for side in ("red-black tree", "stable index", "sorted array")
    )


_HOLDS = tuple(
    Row(f"engine's lock held by: {what}", "holds", f"{what}: cpu", theirs=None, value=2e-3)
    for what in (
        "register, untouched",
        "register",
        "merge",
        "pass",
        "settle counters",
        "stats",
        "region.stats",
        "look for lost memory",
        "unmerge",
        "release",
        "owner dies",
        "release, untouched",
    )
)
_WAITS = tuple(
    Row(
        f"longest {who} during: {deed}",
        "waits",
        "longest",
        ours=f"{deed}-{who}",
        theirs=f"nothing-{who}",
        pick="max",
    )
    for who in ("fork", "stats", "region.stats", "free")
    for deed in ("registration of 8 GiB", "merge", "pass", "unmerge", "release")
)

ROWS = (
    Row("pass over 1 GiB, unmergeable, unchanged", "pass_unchanged", ratio=1 / 200, value=3e-3),
    Row("pass over 1 GiB, 1 % of the pages written", "pass_written"),
    Row("pass over 1 GiB, fully merged", "pass_merged"),
    _kind("1 % of the pages written, beside unchanged", "written", 10),
    _kind("fully merged, beside unchanged", "merged", 1),
    _kind("unchanged on 4 KiB pages, beside huge ones", "unchanged, 4 KiB"),
    *_wall_and_cpu("two equal 512 MiB arrays", "two_equal", 1 / 12),
    Row("the same, beside a plain copy of one", "two_equal", beside="copied", ratio=4),
    Row("share that is not on 2 MiB entries then", "two_equal", "not_huge", "%", value=0.1),
    *_wall_and_cpu("the same on 4 KiB pages", "two_equal_small_pages", 1 / 8),
    *_wall_and_cpu("16 copies of 64 MiB", "sixteen_copies", 1 / 4),
    *_wall_and_cpu("12 000 pairs in random order", "scattered_pairs", 1),
    *_wall_and_cpu("1 GiB of zero pages", "zero_pages", 1 / 10),
    *_wall_and_cpu("1 GiB of one page that is not zero", "constant", 1 / 4),
    _count("mappings that it takes", "constant", "mappings", "ksmpy", 2100),
    *_wall_and_cpu("8 000 pairs behind 256 MiB of one page", "after_constant", 1),
    Row("first pass over 1 GiB, beside reading it", "first_pass", theirs="read", ratio=1 / 0.7),
    Row(
        "first pass of two engines in two threads, beside one",
        "two_threads",
        ours="two",
        theirs="one",
        ratio=1 / 1.6,
    ),
    Row("checksum of 1 GiB, beside reading it", "checksum", theirs="read", ratio=1 / 0.8),
    Row("first write to a merged page", "first_write", "per_page", ratio=1.2),
    Row("reading a merged array, beside before", "read_merged", theirs="before", ratio=1),
    Row("at a million random places", "read_merged", "random", theirs="before", ratio=1),
    Row("stall of a reader, 99.9th percentile", "stall", "percentile_99_9", value=200e-6),
    Row("the same of its reads above 5 us only", "stall", "held_up_99_9", value=200e-6),
    Row("stall of a reader, longest", "stall", "longest", value=5e-3, pick="max"),
    _count("reads that took longer than 5 us", "stall", "held_up", "ksmpy"),
    _count("the same with nothing merged", "stall", "held_up", "nobody"),
    Row("longest with nothing merged", "stall", "longest", ours="nobody", theirs=None, pick="max"),
    Row("writer under a scanner, beside alone", "writer", beside="alone", ratio=1.05),
    Row("writer under the kernel's, beside alone", "writer", ours="kernel", beside="alone"),
    Row("idle over 4 GiB, share of a core", "idle", "share", "%", value=0.002),
    _count("metadata per registered page", "metadata", "bytes_per_page", "pages", 16),
    _count("metadata per frame, with its pages'", "metadata", "bytes_per_frame", "frames", 96),
    Row("pass per GiB, 8 GiB beside 1", "growth_pass", ours="8 GiB", theirs="1 GiB", ratio=1.3),
    Row("merge per GiB, 8 GiB beside 1", "growth_merge", ours="8 GiB", theirs="1 GiB", ratio=1.3),
    _count("mappings for 2 x 64 MiB, equal", "mappings", "mappings", "equal"),
    *(
        _count(f"the same, {shape}", "mappings", "mappings", shape)
        for shape in (
            "one page in 4096 differs",
            "one page in 512 differs",
            "one page in 64 differs",
            "one page in 8 differs",
            "shifted by a page",
            "blocks of 64 pages shuffled",
            "all pages shuffled",
        )
    ),
    _count(
        "mappings for 1000 equal arrays of 64 KiB", "mappings", "mappings", "1000 arrays of 64 KiB"
    ),
    *_index("build, per entry", "build"),
    *_index("insert", "insert"),
    *_index("look up", "find"),
    *_index("look up what is not there", "miss"),
    *_index("remove", "remove"),
    *_index("memory per entry", "bytes", "B"),
    Row(
        "second to eighth process, per GiB, beside one alone",
        "processes_merge",
        "per_gib",
        ours="later process",
        theirs="one process",
        ratio=2,
    ),
    Row(
        "the slowest of them",
        "processes_merge",
        "slowest_per_gib",
        ours="later process",
        theirs=None,
    ),
    _count("8 processes with the same 256 MiB: copies", "processes", "copies", "ksmpy", 1.1),
    Row("the same all at once, per GiB", "processes", "merge_per_gib", theirs=None),
    Row(
        "share of that time spent waiting for the lock",
        "processes",
        "waited",
        "%",
        theirs=None,
        value=0.1,
    ),
    _count("waits for the lock, per page", "processes", "waits_per_page", "ksmpy"),
    Row("longest time the lock was held", "processes", "held_longest", theirs=None, pick="max"),
    _count("wake-ups a second of a process that waits", "processes", "switches", "ksmpy", 1),
    Row(
        "register() of 1000 arrays, each", "register", "each", ours="1000", theirs=None, value=1e-3
    ),
    Row("of 36 000 arrays of 12 KiB", "register", "each", ours="36000", theirs=None, value=1e-3),
    _count("of which are taken", "register", "taken", "36000"),
    *_HOLDS,
    *_WAITS,
    Row("import ksmpy, beside a bare interpreter", "import", theirs="bare", difference=0.04),
)
