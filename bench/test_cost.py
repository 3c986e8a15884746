"""What merging costs when nothing happens: memory, processor time, start-up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

import ksmpy

from .conftest import Meter
from .data import GIB, MIB, PAGE, SHAPES, Bytes, copies, unique, whole_pages
from .mergers import Ksmpy, Merger

Scale = Callable[[int], int]


@pytest.mark.benchmark(group="idle")
@pytest.mark.knobs(tuned=False)
def test_idle(side: Merger, meter: Meter, scale: Scale) -> None:
    """Share of a core that goes to watching 4 GiB which nobody writes, default knobs."""
    array = unique(scale(4 * GIB))
    side.offer(array)
    if isinstance(side, Ksmpy):
        for _ in range(3):
            side.one_pass()
    side.run()
    seconds = 5.0

    def work() -> None:
        begin = sum(side.cpu())
        time.sleep(seconds)
        meter.note("share", (sum(side.cpu()) - begin) / seconds)

    meter.run(work)


@pytest.mark.benchmark(group="metadata")
@pytest.mark.parametrize("kind", ["pages", "frames"])
def test_metadata(kind: str, meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """Bytes of bookkeeping per page of unique memory, and per frame of merged memory."""
    half = scale(GIB // 2)
    arrays: list[Bytes] = copies(half, 2) if kind == "frames" else [unique(2 * half)]
    pages = sum(whole_pages(array)[1] for array in arrays)
    merger = Ksmpy(**engine_options)

    def work() -> None:
        merger.engine.scan(passes=2, eager=True)
        stats = merger.engine.stats()
        meter.note("bytes_per_page", stats.metadata_bytes / pages)
        if kind == "frames":
            meter.note("bytes_per_frame", stats.metadata_bytes / stats.pages_shared)

    try:
        meter.run(work, before=lambda: merger.offer(*arrays), after=merger.withdraw, rounds=1)
    finally:
        merger.engine.close()


@pytest.mark.benchmark(group="mappings")
@pytest.mark.parametrize("shape", list(SHAPES))
def test_mappings(shape: str, meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """How many mappings more it takes to merge equal pages that lie in different shapes."""
    arrays = SHAPES[shape](scale(64 * MIB))
    merger = Ksmpy(**engine_options)

    def work() -> None:
        before = merger.engine.stats().vmas
        merger.engine.scan(passes=2, eager=True)
        stats = merger.engine.stats()
        meter.note("mappings", stats.vmas - before)
        meter.note("saved_pages", stats.pages_sharing)

    try:
        meter.run(work, before=lambda: merger.offer(*arrays), after=merger.withdraw, rounds=1)
    finally:
        merger.engine.close()


@pytest.mark.benchmark(group="register")
@pytest.mark.parametrize("count", [1000, 36_000])
def test_register(count: int, meter: Meter, engine_options: dict[str, str]) -> None:
    """Time of one call of register(), of many for arrays of 12 KiB; and how many are taken."""
    arrays = [np.ones(3 * PAGE, np.uint8) for _ in range(count)]
    merger = Ksmpy(**engine_options)

    def work() -> None:
        begin = time.perf_counter()
        for array in arrays:
            with suppress(ksmpy.RegionError):
                merger.offer(array)
        meter.note("each", (time.perf_counter() - begin) / count)
        meter.note("taken", len(merger.regions))

    try:
        meter.run(work, after=merger.withdraw, rounds=1)
    finally:
        merger.engine.close()


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize("what", ["ksmpy", "bare"])
def test_import(what: str, meter: Meter) -> None:
    """An interpreter that starts, imports ksmpy or nothing, and ends."""
    statement = "import ksmpy" if what == "ksmpy" else "pass"
    meter.run(lambda: subprocess.run([sys.executable, "-c", statement], check=True), rounds=30)
