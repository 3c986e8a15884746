"""How the background thread scans: how long it sleeps after a pass, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ksmpy import native, threads
from ksmpy.engine import ksmd
from ksmpy.engine.stats import ScanResult

#: Seconds of processor time that each pass takes here, and that the thread sleeps when busy.
PASS, BUSY = 0.001, 0.02


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function of pass results that says for how long the thread sleeps after each."""
    clock = SimpleNamespace(now=0.0)
    times = SimpleNamespace(thread_time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(ksmd, "own", times)
    knobs = SimpleNamespace(pages_to_scan=100, sleep_millisecs=BUSY * 1000, advisor_mode="none")

    def follow(*results: ScanResult) -> list[float]:
        left = list(results)

        def batch(_pages: int) -> ScanResult:
            clock.now += PASS
            return left.pop(0)

        pace, scanner, slept = ksmd._Pace(), SimpleNamespace(knobs=knobs, batch=batch), []
        while left:
            slept.append(pace.step(scanner))
            clock.now += slept[-1]
        return slept

    return follow


def _pass(**counts: int) -> ScanResult:
    return dataclasses.replace(ScanResult(), full=1, **counts)


def test_it_sleeps_longer_and_longer_while_nothing_happens(waits: Any) -> None:
    """A hundred times what a pass takes, up to a thousand times."""
    rising = [0.1 * times for times in range(1, 11)]
    assert waits(*[_pass()] * 12) == pytest.approx([*rising, 1, 1])


def test_a_few_pages_keep_it_from_sleeping_for_seconds_only(
    waits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the interpreter's own threads write some all the time."""
    monkeypatch.setattr(ksmd, "LONGEST_LITTLE_SECONDS", 0.25)
    few, none = _pass(scanned=ksmd.FEW_PAGES), _pass()
    assert waits(few, none, few, few, none) == pytest.approx([BUSY, 0.1, 0.2, 0.25, 0.4])


@pytest.mark.parametrize("name", ["scanned", "merged", "unmerged"])
def test_it_does_not_sleep_for_long_while_something_happens(waits: Any, name: str) -> None:
    """Memory that is to be merged is merged with no more pauses than the knob asks for."""
    busy = _pass(**{name: ksmd.FEW_PAGES + 1})
    assert waits(_pass(), busy, busy, _pass()) == pytest.approx([0.1, BUSY, BUSY, 0.1])


@pytest.mark.parametrize(
    "little",
    [
        _pass(scanned=1),
        _pass(merged=ksmd.FEW_PAGES, unmerged=0),
        _pass(scanned=9 * ksmd.FEW_PAGES, volatiles=8 * ksmd.FEW_PAGES),
    ],
)
def test_it_slows_down_while_little_happens(waits: Any, little: ScanResult) -> None:
    """A program that writes to its heap all the time would cost it a pass for each pause.

    What others say of the same pages is heard in the passes that follow, so it does so by and by.
    """
    many = _pass(scanned=ksmd.FEW_PAGES + 1)
    rising = [max(PASS * times, BUSY) for times in (10, 20, 40, 80, 100, 200)]
    assert waits(many, *[little] * 6, many) == pytest.approx([BUSY, *rising, BUSY])


def test_only_the_background_lets_memory_rest_for_longer(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who calls for a pass gets one."""
    core = make_engine()._core
    scan, asked = core._native.scan, []

    def note(pages: int, flags: int) -> Any:
        asked.append(flags & native.SCAN_BACK_OFF)
        return scan(pages, flags)

    monkeypatch.setattr(core._native, "scan", note)
    core.batch(1000)
    core.scan(1, eager=False, max_pages=None)
    assert asked == [native.SCAN_BACK_OFF, 0]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_it_says_so_when_it_ends_by_what_is_not_its_own(error: type[BaseException]) -> None:
    """A program's hook, as by threading.settrace_all_threads(), may raise anywhere in its thread,
    and so does PyThreadState_SetAsyncExc().
    """
    failed: list[BaseException] = []
    knobs = SimpleNamespace(pages_to_scan=100, sleep_millisecs=20, advisor_mode="none")

    class Scanner:
        def __init__(self) -> None:
            self.knobs, self.batch_failed = knobs, failed.append

        def batch(self, _pages: int) -> ScanResult:
            return ScanResult()

    class Stop(type(threads.event())):  # type: ignore[misc]
        def wait(self, timeout: float | None = None) -> bool:
            raise error(timeout)

    scanner, noted = Scanner(), threads.event()
    noted.set()
    ksmd._loop(weakref.ref(scanner), Stop(), noted)
    assert [type(each) for each in failed] == [error]
