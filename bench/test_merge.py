"""From registered to merged: memory with equal pages, never seen before."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ksmpy import native, proc

from .conftest import Meter
from .data import (
    GIB,
    MIB,
    Bytes,
    constant,
    copies,
    huge_share,
    scattered_pairs,
    unique,
    whole_pages,
    zeros,
)
from .mergers import Ksmpy, Merger

Scale = Callable[[int], int]


def _merge_from_scratch(
    side: Merger,
    meter: Meter,
    make: Callable[[], list[Bytes]],
    saved: Callable[[list[Bytes]], int],
    then: Callable[[list[Bytes]], object] | None = None,
) -> None:
    """Measure from registration to merged, on new memory every round; then look at it."""
    arrays: list[Bytes] = []

    def before() -> None:
        arrays[:] = make()

    def work() -> None:
        side.offer(*arrays)
        side.merge(saved(arrays))

    def after() -> None:
        if then:
            then(arrays)
        side.withdraw()
        arrays.clear()

    meter.run(work, before=before, after=after, cpu=side.cpu)


def _all_but_the_first(arrays: list[Bytes]) -> int:
    return sum(whole_pages(array)[1] for array in arrays[1:])


@pytest.mark.benchmark(group="two_equal")
def test_two_equal(side: Merger, meter: Meter, scale: Scale) -> None:
    """Two equal 512 MiB arrays as numpy makes them, on huge pages where the machine has them."""
    size = scale(512 * MIB)
    target = unique(size, seed=2)

    def look(arrays: list[Bytes]) -> None:
        begin = time.perf_counter()
        target[:] = arrays[0]  # into memory that is there
        meter.note("copied", time.perf_counter() - begin)
        native.read_only(arrays[1])
        meter.note("not_huge", 1.0 - huge_share(*arrays))

    _merge_from_scratch(side, meter, lambda: copies(size, 2), _all_but_the_first, look)


@pytest.mark.benchmark(group="two_equal_small_pages")
def test_two_equal_small_pages(side: Merger, meter: Meter, scale: Scale) -> None:
    """Two equal 512 MiB arrays on 4 KiB pages."""
    size = scale(512 * MIB)
    _merge_from_scratch(side, meter, lambda: copies(size, 2, huge=False), _all_but_the_first)


@pytest.mark.benchmark(group="sixteen_copies")
def test_sixteen_copies(side: Merger, meter: Meter, scale: Scale) -> None:
    """16 equal arrays of 64 MiB."""
    size = scale(64 * MIB)
    _merge_from_scratch(side, meter, lambda: copies(size, 16), _all_but_the_first)


@pytest.mark.benchmark(group="scattered_pairs")
def test_scattered_pairs(side: Merger, meter: Meter, scale: Scale) -> None:
    """12 000 pairs of equal pages in random order: next to no runs."""
    pairs = scale(12_000 * MIB) // MIB
    _merge_from_scratch(side, meter, lambda: [scattered_pairs(pairs)], lambda _arrays: pairs)


@pytest.mark.benchmark(group="zero_pages")
@pytest.mark.knobs(use_zero_pages=1)
def test_zero_pages(side: Merger, meter: Meter, scale: Scale) -> None:
    """1 GiB of zeros onto the kernel's zero page."""
    size = scale(GIB)
    _merge_from_scratch(
        side, meter, lambda: [zeros(size)], lambda arrays: whole_pages(arrays[0])[1]
    )


def _all_but_the_frames(arrays: list[Bytes]) -> int:
    """Of pages that are all equal: max_page_sharing of them share a frame, by default 256."""
    pages = sum(whole_pages(array)[1] for array in arrays)
    return pages - -(-pages // 256)


@pytest.mark.benchmark(group="constant")
def test_constant(side: Merger, meter: Meter, scale: Scale) -> None:
    """1 GiB of one page that is not zero."""
    size, before = scale(GIB), 0

    def make() -> list[Bytes]:
        nonlocal before
        arrays = [constant(size)]
        before = proc.count_mappings()
        return arrays

    def look(_arrays: list[Bytes]) -> None:
        meter.note("mappings", proc.count_mappings() - before)

    _merge_from_scratch(side, meter, make, _all_but_the_frames, look)


@pytest.mark.benchmark(group="after_constant")
def test_pairs_after_a_constant(side: Merger, meter: Meter, scale: Scale) -> None:
    """The same pairs as in scattered_pairs, behind 256 MiB of one page."""
    pairs, size = scale(8_000 * MIB) // MIB, scale(256 * MIB)
    _merge_from_scratch(
        side,
        meter,
        lambda: [constant(size), scattered_pairs(pairs)],
        lambda arrays: _all_but_the_frames(arrays[:1]) + pairs,
    )


@pytest.mark.benchmark(group="growth_merge")
@pytest.mark.parametrize("size", [1, 8], ids=["1 GiB", "8 GiB"])
def test_growth_merge(
    size: int, meter: Meter, scale: Scale, engine_options: dict[str, str]
) -> None:
    """Time per GiB to merge two equal halves of 1 GiB and of 8 GiB."""
    half = scale(size * GIB // 2)
    engine = Ksmpy(**engine_options)
    try:
        arrays: list[Bytes] = []

        def before() -> None:
            arrays[:] = copies(half, 2)

        def work() -> None:
            engine.offer(*arrays)
            engine.merge(_all_but_the_first(arrays))

        def after() -> None:
            engine.withdraw()
            arrays.clear()

        meter.run(work, before=before, after=after, cpu=engine.cpu, per=size)
    finally:
        engine.withdraw()
        engine.engine.close()
