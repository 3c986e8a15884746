"""Who waits for an engine that is at work: forks, counters, and arrays that end."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

import ksmpy

from . import native
from .conftest import Meter
from .data import GIB, PAGE, Bytes, copies

Scale = Callable[[int], int]

VICTIMS = ("fork", "stats", "region.stats", "free")
_SMALL = 16 * PAGE
_PAUSE = 1e-3


def _untouched(nbytes: int) -> Bytes:
    """Memory that nobody has touched, and that the machine need not have."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8)


@dataclass
class _Scene:
    """What an engine has, for one thing that it does; `small` arrays wait for their end."""

    engine: ksmpy.Engine
    sparse: Bytes
    halves: list[Bytes]
    kept: Bytes = field(default_factory=lambda: np.ones(_SMALL, np.uint8))
    small: list[Bytes] = field(default_factory=list)

    def offer(self) -> None:
        for half in self.halves:
            self.engine.register(half)

    def merge(self) -> None:
        self.offer()
        self.engine.scan(eager=True)


def _nothing(scene: _Scene) -> None:
    scene.offer()


Deed = Callable[[_Scene], object]


def _region(scene: _Scene, array: Bytes) -> ksmpy.Region:
    start = array.ctypes.data
    return next(each for each in scene.engine.regions() if start <= each.address < start + PAGE)


# What comes before it, and what is watched.
_DEEDS: dict[str, tuple[Deed, Deed]] = {
    "nothing": (_nothing, lambda scene: time.sleep(1.0)),
    "registration of 8 GiB": (_nothing, lambda scene: scene.engine.register(scene.sparse)),
    "merge": (_nothing, lambda scene: scene.engine.scan(eager=True)),
    "pass": (_Scene.merge, lambda scene: scene.engine.scan()),
    "unmerge": (_Scene.merge, lambda scene: scene.engine.unmerge()),
    "release": (_Scene.merge, lambda scene: _region(scene, scene.halves[0]).release()),
}


def _fork() -> float:
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    took = time.perf_counter() - begin
    os.waitpid(pid, 0)
    return took


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _attempts(scene: _Scene) -> dict[str, Callable[[], float]]:
    kept = scene.engine.register(scene.kept)

    def free() -> float:
        return _timed(scene.small.pop) if scene.small else 0.0

    return {
        "fork": _fork,
        "stats": lambda: _timed(scene.engine.stats),
        "region.stats": lambda: _timed(kept.stats),
        "free": free,
    }


@contextmanager
def _watched(attempt: Callable[[], float]) -> Iterator[list[float]]:
    """What attempts of another thread take, one after the other, meanwhile."""
    took: list[float] = []
    over = threading.Event()

    def attempts() -> None:
        while not over.wait(_PAUSE):
            took.append(attempt())

    thread = threading.Thread(target=attempts)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


@pytest.mark.benchmark(group="waits")
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("deed", list(_DEEDS))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_waits(
    deed: str, victim: str, meter: Meter, scale: Scale, engine_options: dict[str, str]
) -> None:
    """Longest wait of who wants the engine, or forks, while it does something long."""
    before, watched = _DEEDS[deed]

    def work() -> None:
        with ksmpy.Engine(**engine_options) as engine:
            scene = _Scene(engine, _untouched(scale(8 * GIB)), copies(scale(GIB // 2), 2))
            before(scene)
            scene.small = [np.ones(_SMALL, np.uint8) for _ in range(500)]
            for array in scene.small:
                engine.register(array)
            del array
            attempt = _attempts(scene)[victim]
            with _watched(attempt) as took:
                watched(scene)
            meter.note("longest", max(took, default=0.0))
            meter.note("percentile_99_9", float(np.quantile(took or [0.0], 0.999)))

    meter.run(work, rounds=1)


@pytest.mark.benchmark(group="holds")
def test_holds(meter: Meter, scale: Scale, engine_options: dict[str, str]) -> None:
    """Longest time that an engine's lock is held, by what it does: of the clock, and at work."""

    def work() -> None:
        sizes = scale(8 * GIB), scale(GIB // 2)
        for what, wall, cpu in native.measure_holds(
            **engine_options, untouched=sizes[0], equal=sizes[1]
        ):
            meter.note(f"{what}: wall", wall)
            meter.note(f"{what}: cpu", cpu)

    meter.run(work, rounds=1)
