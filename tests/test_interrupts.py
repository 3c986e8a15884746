"""Ctrl-C, no memory and no room on the stack in the middle of things: nothing is left half done.

The error comes at each place in turn where the handler of a signal may raise one.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy import RegionError
from ksmpy.engine import regions as regions_module
from ksmpy.memory.buffers import locate
from support import memory
from support.interrupts import Error
from support.oracle import PAGE
from support.patience import until

ERRORS = pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
PAGES = 16
#: Deeper than ksmpy's calls go.
DEEP = 80


class Company:
    """A buffer that stays registered, and others that come and go."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.stays = memory.pages(PAGES)
        # Where malloc puts an array within a page is its own affair: every 16 bytes are the same.
        self.stays[:] = np.tile(np.arange(16, dtype=np.uint8), PAGES * PAGE // 16)
        self.content = self.stays.tobytes()
        self.region = engine.register(self.stays)

    def array(self) -> Any:
        """One more, with memory that is numpy's own."""
        return self.stays.copy()

    def merged(self) -> tuple[Any, Any]:
        """One more, and its region."""
        arr = self.array()
        region = self.engine.register(arr)

        def all_merge() -> bool:  # not beside a thread that computes, as numpy's own do at first
            self.engine.scan(eager=True)
            return bool(region.stats().merging_pages == region.pages)

        until(all_merge, "not merged")
        return arr, region

    def end_others(self) -> None:
        """What a program can see of regions, and end."""
        for region in self.engine.regions():
            if region is not self.region:
                region.release()

    def is_alone(self, *arrays: Any) -> None:
        """Nothing else is registered, all can be, and has its bytes."""
        assert self.engine.regions() == (self.region,)
        assert self.engine.stats().registered_pages == PAGES
        for arr in arrays:
            self.engine.register(arr).release()
        assert all(arr.tobytes() == self.content for arr in (self.stays, *arrays))


@pytest.fixture
def company(engine: Any) -> Company:
    """In each mode."""
    return Company(engine)


def places(error: type[BaseException], *, step: int = 1) -> Iterator[Error]:
    """An error for each place; ends after the first one that was not come to."""
    nth = 1
    while True:
        each = Error(nth, error)
        yield each
        if not each.raised:
            break
        nth += step
    assert nth > 10


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in the callback of a weak reference is told to nobody."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@ERRORS
def test_making(mode: Any, error: type[BaseException]) -> None:
    """Nothing is left of an engine whose making was interrupted."""
    ksmpy.Engine(**mode.options).close()  # what the first one opens for all of them
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for interrupt in places(error, step=3):
        made = []
        with interrupt:
            made.append(ksmpy.Engine(**mode.options))
        for engine in made:
            engine.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@ERRORS
def test_registering(company: Company, error: type[BaseException]) -> None:
    """Memory whose registration was interrupted is not registered, or by a region that is known."""
    for interrupt in places(error):
        arr = company.array()
        with interrupt:
            company.engine.register(arr)
        company.end_others()
        company.is_alone(arr)
    company.engine._core.check()


@ERRORS
def test_tracking(company: Company, error: type[BaseException]) -> None:
    """The same of many at once."""
    for interrupt in places(error, step=7):
        arrays = [company.array() for _ in range(2)]
        with interrupt:
            company.engine.track(arrays, min_bytes=1)
        company.end_others()
        company.is_alone(*arrays)


@ERRORS
def test_releasing(company: Company, error: type[BaseException]) -> None:
    """A region that was not released can be."""
    for interrupt in places(error):
        arr, region = company.merged()
        with interrupt:
            region.release()
        assert region._released == (region not in company.engine.regions())
        region.release()
        company.is_alone(arr)
    company.engine._core.check()


@ERRORS
def test_dying(company: Company, error: type[BaseException]) -> None:
    """A region whose owner dies meanwhile ends, now or when somebody asks."""
    if not locate(company.array()).watched:
        pytest.skip("this numpy's arrays are held")
    for interrupt in places(error):
        box = [company.merged()[0]]
        with interrupt:
            box.clear()
        company.is_alone()
    company.engine._core.check()


@ERRORS
def test_being_abandoned(company: Company, error: type[BaseException]) -> None:
    """The same of an owner that only ksmpy holds any more."""
    for interrupt in places(error):
        company.engine.register(bytearray(2 * PAGES * PAGE))
        with interrupt:
            company.engine.regions()
        company.is_alone()


@ERRORS
def test_scanning(
    company: Company, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that was interrupted keeps nobody from making the next one, and from asking first what
    was not asked at registration, since it takes too long to do it each time.
    """
    monkeypatch.setattr(regions_module._allowance, "_spent", inf)
    for interrupt in places(error, step=3):
        arr = company.array()
        region = company.engine.register(arr)
        with interrupt:
            company.engine.scan(eager=True)
        company.engine.scan(eager=True)
        assert not company.engine._core._regions._unasked
        assert region.stats().merging_pages == region.pages
        assert not company.engine._core._scanning
        region.release()
        company.is_alone(arr)


@ERRORS
def test_closing(mode: Any, error: type[BaseException]) -> None:
    """What was not closed can be; nothing is left of it then, as is seen after each test."""
    for interrupt in places(error):
        company = Company(ksmpy.Engine(**mode.options))
        arr, _ = company.merged()
        with interrupt:
            company.engine.close()
        company.engine.close()
        core = company.engine._core
        assert core.closed and not core._native._pointer and core.history._file is None
        assert arr.tobytes() == company.stays.tobytes() == company.content


# ---- no room on the stack ------------------------------------------------------------------


def with_room_for(frames: int, function: Callable[[], object]) -> bool:
    """Call a function where only so many frames more have room; whether they were enough."""
    limit = sys.getrecursionlimit()
    least = 1
    try:
        while not _can_be_limit(least):
            least += 1
        sys.setrecursionlimit(least + frames)
        function()
    except RecursionError:
        return False
    finally:
        sys.setrecursionlimit(limit)
    return True


def _can_be_limit(depth: int) -> bool:
    try:
        sys.setrecursionlimit(depth)
    except RecursionError:  # there are more already
        return False
    return True


def test_dying_without_room(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that dies where the stack is full: its region ends, with the bytes that somebody
    else may have at its place by now.
    """
    if not locate(company.array()).watched:
        pytest.skip("this numpy's arrays are held")
    release = company.engine._core._native.release
    discards: list[bool] = []

    def watch(number: int, *, discard: bool) -> None:
        discards.append(discard)
        release(number, discard=discard)

    monkeypatch.setattr(company.engine._core._native, "release", watch)
    unseen = 0
    for frames in range(DEEP):
        arr, region = company.merged()
        box = [arr]
        del arr
        with_room_for(frames, box.clear)
        if not region._released:
            unseen += 1
            discards.clear()
            company.is_alone()
            assert discards == [False]
        company.is_alone()
    assert unseen > 1
    company.engine._core.check()


def test_registering_and_releasing_without_room(company: Company) -> None:
    """All or nothing."""
    done = []
    for frames in range(DEEP):
        arr = company.array()
        weakref.finalize(arr, len, "")  # who is told of its end, too, is asked about
        done.append(with_room_for(frames, lambda arr=arr: company.engine.register(arr)))  # type: ignore[misc]
        company.end_others()
        company.is_alone(arr)
        arr, region = company.merged()
        done.append(with_room_for(frames, region.release))
        assert region._released == (region not in company.engine.regions())
        region.release()
        company.is_alone(arr)
    assert not any(done[:2]) and all(done[-2:])


def test_memory_of_an_array_that_died_unseen(make_engine: Any) -> None:
    """What is at the place of an array that died where the stack was full can be registered."""
    engine = make_engine()
    area = memory.distinct(PAGES)
    view: Any = np.ndarray.__new__(Unseen, area.shape, np.uint8, memoryview(area))
    region = engine.register_range(*memory.span(area), owner=view)
    box = [view]
    del view
    with_room_for(0, box.clear)
    assert not region._released, "the callback had room"
    engine.register(area).release()
    assert region._released


class Unseen(np.ndarray[Any, Any]):
    """An array of a class that takes weak references, as all do."""


def test_a_release_that_nobody_saw(company: Company) -> None:
    """A region whose release was interrupted just after it took effect can be released, too."""
    arr, region = company.merged()
    company.engine._core._native.release(region._number, discard=False)
    region.release()
    company.is_alone(arr)


def test_a_number_that_was_used_again(company: Company) -> None:
    """It does not end another region that has got its number, and nobody forgets that one."""
    arr, region = company.merged()
    company.engine._core._native.release(region._number, discard=False)
    more = company.array()
    other = company.engine.register(more)
    assert other._number == region._number
    region.release()
    assert company.engine.regions() == (company.region, other)
    assert company.engine.stats().registered_pages == PAGES + other.pages
    with pytest.raises(RegionError, match="overlaps the region"):
        company.engine.register(more)
    other.release()
    company.is_alone(arr, more)


def test_what_nobody_knows_is_ended_by_close(make_engine: Any) -> None:
    """A region of the native engine that Python has lost keeps no engine from being closed."""
    engine = make_engine()
    area = memory.distinct(PAGES)
    engine._core._native.register(*memory.span(area), 0)
    assert engine.regions() == ()
    engine.close()
    assert engine._core.closed
    make_engine().register(area)


def test_an_engine_that_cannot_be_freed_stays_open(make_engine: Any) -> None:
    """And can be closed later."""
    engine = make_engine()
    native = engine._core._native
    area = memory.distinct(PAGES)
    number = native.register(*memory.span(area), 0)
    with pytest.raises(OSError, match="ksmpy_engine_close"):
        native.close()
    assert not native.closed
    native.release(number, discard=False)
    engine.close()
    assert native.closed
