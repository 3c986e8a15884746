"""One pass over memory that is already known, and the first one over memory that is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ksmpy import native

from .conftest import Meter
from .data import GIB, MIB, Bytes, copies, unique, whole_pages, write_some
from .mergers import Ksmpy, Merger

Scale = Callable[[int], int]

# Passes until nothing about unchanged memory is new: smart_scan and the checksums need a few.
_SETTLING = 3


def _settle(side: Merger) -> None:
    side.align()
    for _ in range(_SETTLING):
        side.one_pass()


@pytest.mark.benchmark(group="pass_unchanged")
def test_pass_unchanged(side: Merger, meter: Meter, scale: Scale) -> None:
    """A pass over 1 GiB in which nothing can merge and nothing was written."""
    array = unique(scale(GIB))
    side.offer(array)
    _settle(side)
    meter.run(side.one_pass, before=side.align, cpu=side.cpu)


@pytest.mark.benchmark(group="pass_written")
def test_pass_written(side: Merger, meter: Meter, scale: Scale) -> None:
    """The same, with 1 % of the pages, at random places, written since the pass before."""
    array = unique(scale(GIB))
    rng = np.random.default_rng(7)
    side.offer(array)
    _settle(side)

    def before() -> None:
        side.align()
        write_some(array, 0.01, rng)

    meter.run(side.one_pass, before=before, cpu=side.cpu)


@pytest.mark.benchmark(group="pass_merged")
def test_pass_merged(side: Merger, meter: Meter, scale: Scale) -> None:
    """A pass over 1 GiB that is merged completely: two equal halves."""
    arrays = copies(scale(GIB // 2), 2)
    side.offer(*arrays)
    side.merge(whole_pages(arrays[1])[1])
    _settle(side)
    meter.run(side.one_pass, before=side.align, cpu=side.cpu)


@pytest.mark.benchmark(group="pass_kinds")
@pytest.mark.parametrize("kind", ["unchanged", "unchanged, 4 KiB", "written", "merged"])
def test_pass_kinds(kind: str, meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """What a pass over 1 GiB costs, by what became of the memory since the pass before."""
    rng = np.random.default_rng(7)
    engine = Ksmpy(**engine_options)
    if kind == "merged":
        arrays = copies(scale(GIB // 2), 2)
    else:
        arrays = [unique(scale(GIB), huge=not kind.endswith("KiB"))]

    def before() -> None:
        if kind == "written":
            write_some(arrays[0], 0.01, rng)

    try:
        engine.offer(*arrays)
        if kind == "merged":
            engine.merge(whole_pages(arrays[1])[1])
        _settle(engine)
        meter.run(engine.one_pass, before=before, cpu=engine.cpu, rounds=20)
    finally:
        engine.withdraw()
        engine.engine.close()


@pytest.mark.benchmark(group="growth_pass")
@pytest.mark.parametrize("size", [1, 8], ids=["1 GiB", "8 GiB"])
def test_growth_pass(size: int, meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """Time per GiB of a pass over unchanged memory, at 1 GiB and at 8 GiB."""
    array = unique(scale(size * GIB))
    engine = Ksmpy(**engine_options)
    try:
        engine.offer(array)
        _settle(engine)
        meter.run(engine.one_pass, cpu=engine.cpu, per=size, rounds=20)
    finally:
        engine.withdraw()
        engine.engine.close()


def _evict(scratch: Bytes) -> None:
    """Push everything else out of the caches."""
    scratch += 1


@pytest.mark.benchmark(group="first_pass")
@pytest.mark.parametrize("how", ["ksmpy", "read"])
def test_first_pass(how: str, meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """The first pass over 1 GiB of cold, unmergeable memory, beside just reading it.

    Eager, so that this very pass reads every page: otherwise new pages wait for the next one.
    """
    array = unique(scale(GIB))
    scratch = np.zeros(256 * MIB, dtype=np.uint8)
    engine = Ksmpy(**engine_options)

    def before() -> None:
        if how == "ksmpy":
            engine.offer(array)
        _evict(scratch)

    def work() -> None:
        if how == "ksmpy":
            engine.engine.scan(eager=True)
        else:
            native.read_only(array)

    try:
        meter.run(work, before=before, after=engine.withdraw, cpu=engine.cpu, rounds=5)
    finally:
        engine.engine.close()


@pytest.mark.benchmark(group="two_threads")
@pytest.mark.parametrize("threads", [1, 2], ids=["one", "two"])
def test_two_threads(
    threads: int, meter: Meter, scale: Scale, engine_options: dict[str, str]
) -> None:
    """The first pass of two engines over 512 MiB each, in one thread or in a thread each."""
    arrays = [unique(scale(GIB // 2), seed) for seed in (1, 2)]
    scratch = np.zeros(256 * MIB, dtype=np.uint8)
    engines = [Ksmpy(**engine_options) for _ in arrays]

    def before() -> None:
        for engine, array in zip(engines, arrays, strict=True):
            engine.offer(array)
        _evict(scratch)

    def after() -> None:
        for engine in engines:
            engine.withdraw()

    def scan(engine: Ksmpy) -> None:
        engine.engine.scan(eager=True)

    try:
        with ThreadPoolExecutor(threads) as pool:
            meter.run(lambda: list(pool.map(scan, engines)), before=before, after=after, rounds=5)
    finally:
        for engine in engines:
            engine.engine.close()


@pytest.mark.benchmark(group="checksum")
@pytest.mark.parametrize("how", ["ksmpy", "read"])
def test_checksum(how: str, meter: Meter, scale: Scale) -> None:
    """The page checksum over 1 GiB of cold memory, beside just reading it."""
    array = unique(scale(GIB))
    scratch = np.zeros(256 * MIB, dtype=np.uint8)
    function = native.checksum if how == "ksmpy" else native.read_only
    meter.run(lambda: function(array), before=lambda: _evict(scratch), rounds=9)
