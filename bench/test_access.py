"""What the owner of merged or registered memory notices: faults, stalls, slower writes."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from ksmpy import native

from .conftest import Meter
from .data import MIB, Bytes, copies, unique, whole_pages
from .mergers import Ksmpy, Merger
from .native import Latencies, touch_pages, write_each_page, write_words

Scale = Callable[[int], int]

# A read that takes longer than this was held up; undisturbed ones take 0.1 us.
_HELD_UP_NS = 5_000
# Writes of about half a second, so that there are many of a scanner's batches in it.
_WORDS = 50_000_000


@pytest.mark.benchmark(group="first_write")
def test_first_write(side: Merger, meter: Meter, scale: Scale) -> None:
    """The first write to each page of a merged array of 128 MiB; seconds per page."""
    arrays: list[Bytes] = []
    pages = 0

    def before() -> None:
        nonlocal pages
        arrays[:] = copies(scale(128 * MIB), 2)
        pages = whole_pages(arrays[1])[1]
        side.offer(*arrays)
        side.merge(pages)

    def work() -> None:
        begin = time.perf_counter()
        write_each_page(arrays[1])
        meter.note("per_page", (time.perf_counter() - begin) / pages)

    def after() -> None:
        side.withdraw()
        arrays.clear()

    meter.run(work, before=before, after=after)


@pytest.mark.benchmark(group="read_merged")
@pytest.mark.parametrize("state", ["ksmpy", "before"])
def test_read_merged(
    state: str, meter: Meter, scale: Scale, engine_options: dict[str, str]
) -> None:
    """Reading an array of 512 MiB right after it was merged, and before.

    Once from start to end, then a byte each at a million random places.
    """
    arrays = copies(scale(512 * MIB), 2)
    places = np.random.default_rng(1).integers(0, arrays[1].nbytes, 1_000_000)
    merger = Ksmpy(**engine_options)

    def before() -> None:
        if state == "ksmpy":
            merger.offer(*arrays)
            merger.merge(whole_pages(arrays[1])[1])
        else:
            native.read_only(arrays[0])  # as far out of the caches as after a merge

    def after() -> None:
        begin = time.perf_counter()
        arrays[1][places]
        meter.note("random", time.perf_counter() - begin)
        merger.withdraw()

    try:
        meter.run(lambda: native.read_only(arrays[1]), before=before, after=after, rounds=5)
    finally:
        merger.engine.close()


def _while_touching(array: Bytes, work: Callable[[], object]) -> Latencies:
    """Do `work` while a thread reads bytes all over `array`; how long its reads took."""
    stop, seen = ctypes.c_int(0), Latencies()
    toucher = threading.Thread(target=touch_pages, args=(array, stop, seen))
    toucher.start()
    try:
        work()
    finally:
        stop.value = 1
        toucher.join()
    return seen


def _note_latencies(meter: Meter, seen: Latencies) -> None:
    meter.note("percentile_99_9", seen.percentile(99.9))
    meter.note("held_up_99_9", seen.percentile(99.9, above_ns=_HELD_UP_NS))
    meter.note("longest", seen.longest_ns / 1e9)
    meter.note("held_up", seen.slower_than(_HELD_UP_NS))


@pytest.mark.benchmark(group="stall")
def test_stall(side: Merger, meter: Meter, scale: Scale) -> None:
    """How long a thread waits that reads pages of an array while they are being merged."""
    arrays: list[Bytes] = []

    def before() -> None:
        arrays[:] = copies(scale(256 * MIB), 2)
        side.offer(*arrays)

    def work() -> None:
        pages = whole_pages(arrays[1])[1]
        _note_latencies(meter, _while_touching(arrays[1], lambda: side.merge(pages)))

    def after() -> None:
        side.withdraw()
        arrays.clear()

    meter.run(work, before=before, after=after)


@pytest.mark.benchmark(group="stall")
@pytest.mark.parametrize("who", ["nobody"])
def test_stall_without_merging(who: str, meter: Meter, scale: Scale) -> None:
    """The same reads with a busy thread beside them and nothing merged: what the machine does."""
    array = unique(scale(256 * MIB))
    other = unique(scale(256 * MIB), seed=2)

    def busy() -> None:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            native.read_only(other)

    meter.run(lambda: _note_latencies(meter, _while_touching(array, busy)))


@pytest.mark.benchmark(group="writer")
@pytest.mark.knobs(tuned=False)
def test_writer(side: Merger, meter: Meter, scale: Scale) -> None:
    """A thread that writes words all over 256 MiB which the side scans with its defaults.

    In turn with the same writes to memory that is not registered, while nobody scans.
    """
    array, other = unique(scale(256 * MIB)), unique(scale(256 * MIB))
    side.offer(array)

    def alone() -> None:
        side.pause()
        begin = time.perf_counter()
        write_words(other, _WORDS)
        meter.note("alone", time.perf_counter() - begin)
        side.run()

    side.run()
    write_words(array, _WORDS)
    meter.run(lambda: write_words(array, _WORDS), before=alone, rounds=9)
