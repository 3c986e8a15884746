"""The engines of a process: which there are, who holds what memory, what fork and exit do."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ksmpy import native, threads
from ksmpy.own import own

if TYPE_CHECKING:
    from ksmpy.engine.region import Home, Region

__all__ = ["anchor", "enter", "leave", "let_go", "live", "new_serial", "overlapping", "until_ended"]

_numbers = itertools.count(1)
_engines: dict[int, weakref.ref[Home]] = {}
# An engine with regions is kept alive even when the program has no reference to it any more, since
# the death of an owner has to give its pages back.
_anchored: dict[int, Home] = {}


def new_serial() -> int:
    """A number for an engine, which no other engine of this process has had."""
    return next(_numbers)


def enter(serial: int, engine: Home) -> None:
    """Note a new engine, which may be swept from here on."""
    _install_hooks()
    _engines[serial] = weakref.ref(engine)


def leave(serial: int) -> None:
    """Forget a closed engine."""
    _engines.pop(serial, None)


def anchor(serial: int, engine: Home) -> None:
    """Keep an engine alive: it has a region."""
    _anchored[serial] = engine


def let_go(serial: int) -> None:
    """Keep it no longer: it has none."""
    _anchored.pop(serial, None)


def live() -> list[Home]:
    """The engines of this process that are not closed, the inherited ones included."""
    engines = (ref() for ref in list(_engines.values()))
    return [engine for engine in engines if engine is not None]


def overlapping(start: int, end: int) -> Iterator[Region]:
    """The regions of all engines that have a page in [start, end)."""
    for engine in live():
        yield from engine.overlapping(start, end)


# To give back what a region has merged takes half a second a GiB.
_ENDING_SECONDS = 10.0


def until_ended(start: int, end: int) -> bool:
    """Wait until no other thread is ending a region in [start, end), for some seconds at the most.
    Whether one was, and is not any more.
    """
    was, deadline = False, own.monotonic() + _ENDING_SECONDS
    while any(engine.is_ending(start, end) for engine in live()):
        if own.monotonic() > deadline:
            return False
        was = True
        threads.pause(0.001)
    return was


# The garbage collector's callback comes many times a second for the youngest objects. Sweeps are at
# least so many seconds apart, and take 2 % of the time at most.
_SWEEP_SECONDS = 0.05
_SWEEP_FACTOR = 50
_next_sweep = [0.0]


def _sweep_all(at_once: bool, is_over: Callable[[], bool] = sys.is_finalizing) -> None:
    """Sweep all engines after a collection. is_over() says whether the interpreter is ending: it is
    passed in, because an engine that was made in an exit handler is not told of the end, and this
    module's names are gone by then.
    """
    if is_over():
        return
    begin = own.monotonic()
    if at_once or begin >= _next_sweep[0]:
        for engine in live():
            engine.sweep()
        end = own.monotonic()
        _next_sweep[0] = end + max(_SWEEP_SECONDS, (end - begin) * _SWEEP_FACTOR)


def stop_all() -> None:
    """Stop the threads at exit. Pages are not given back, which could take more memory than there
    is. The collector goes on until the modules are gone, so the sweeps have to end here.
    """
    native.sweep_no_more()
    for engine in live():
        engine.stop_thread()


def _inherit_all() -> None:
    for engine in live():
        engine.inherit()


_hooked: list[bool] = []


def _install_hooks() -> None:
    if not _hooked:
        _hooked.append(True)
        gc.callbacks.append(native.collector_callback(_sweep_all))
        atexit.register(stop_all)
        os.register_at_fork(after_in_child=_inherit_all)
