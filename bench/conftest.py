"""Fixtures of the benchmarks: the two sides, and a meter that keeps every figure it takes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy.watch import kernel

from .mergers import TUNED, Kernel, Ksmpy, Merger

_TIMEOUT = 900


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the benchmarks."""
    group = parser.getgroup("ksmpy benchmarks")
    group.addoption(
        "--bench-scale", type=float, default=1.0, help="shrink all memory sizes by this factor"
    )
    group.addoption("--bench-rounds", type=int, default=3, help="rounds of each measurement")
    group.addoption("--freeze", default="auto", help="how the engine freezes pages")
    group.addoption("--tracking", default="auto", help="how the engine learns of writes")


def pytest_configure(config: pytest.Config) -> None:
    """Say what the benchmarks' own marker means."""
    config.addinivalue_line(
        "markers", "knobs(tuned=True, **values): settings of both sides while this benchmark runs"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Benchmarks take longer than tests may."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_TIMEOUT))


def _first_line(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return ""


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """What the report says about the machine."""
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    machine_info["ksmpy"] = {
        "version": ksmpy.__version__,
        "kernel": platform.release(),
        "processor": _first_line("/proc/cpuinfo", "model name"),
        "processors": len(os.sched_getaffinity(0)),
        "memory": _first_line("/proc/meminfo", "MemTotal"),
        "huge_pages": thp.read_text().strip() if thp.exists() else "none",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[1],
        "scale": config.getoption("--bench-scale"),
    }


class Meter:
    """Runs something several times, and keeps each round's figures for the report."""

    def __init__(self, benchmark: Any, side: str, rounds: int) -> None:
        self._benchmark = benchmark
        self._rounds = rounds
        self._metrics: dict[str, list[float]] = {}
        benchmark.extra_info["side"] = side
        benchmark.extra_info["metrics"] = self._metrics

    def note(self, metric: str, value: float) -> None:
        """Keep one figure, in seconds, bytes or whatever the row of the report says."""
        self._metrics.setdefault(metric, []).append(value)

    def run(
        self,
        work: Callable[[], object],
        *,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
        cpu: Callable[[], tuple[float, float]] | None = None,
        per: float = 1.0,
        rounds: int | None = None,
    ) -> None:
        """Time `work` between `before` and `after`; `per` divides the figures that are kept."""

        def measured() -> None:
            spent = cpu() if cpu else (0.0, 0.0)
            begin = time.perf_counter()
            work()
            self.note("wall", (time.perf_counter() - begin) / per)
            if cpu:
                user, system = (now - then for now, then in zip(cpu(), spent, strict=True))
                self.note("user", user / per)
                self.note("system", system / per)
                self.note("cpu", (user + system) / per)

        rounds = rounds or self._rounds
        if self._benchmark.disabled:
            rounds = 1
        finished = 0

        def setup() -> None:
            nonlocal finished
            if finished:
                after()
            finished += 1
            before()

        self._benchmark.pedantic(measured, setup=setup, rounds=rounds, iterations=1)
        after()


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """Applies --bench-scale to a number of bytes, keeping it a multiple of 1 MiB."""
    factor = float(request.config.getoption("--bench-scale"))
    return lambda nbytes: max(1, int((nbytes >> 20) * factor)) << 20


@pytest.fixture
def engine_options(request: pytest.FixtureRequest) -> dict[str, str]:
    """Keyword arguments for every Engine."""
    return {name: request.config.getoption(f"--{name}") for name in ("freeze", "tracking")}


@pytest.fixture
def meter(request: pytest.FixtureRequest, benchmark: Any) -> Meter:
    """A meter; its side is what stands in the brackets of the test's name."""
    call = getattr(request.node, "callspec", None)
    side = call.id if call else "ksmpy"
    return Meter(benchmark, side, request.config.getoption("--bench-rounds"))


def _kernel_side(tuned: bool, values: dict[str, int]) -> Iterator[Merger]:
    state = kernel.available()
    if not state:
        pytest.skip(state.reason)
    wanted = {**(TUNED if tuned else {}), **values}
    known = kernel.read()
    # Older kernels lack some knobs, and then do what the missing one's 0 would ask for.
    with kernel.settings(**{name: value for name, value in wanted.items() if name in known}):
        if int(kernel.read()["pages_shared"]):
            pytest.skip("another program's memory is merged and would be measured too")
        side = Kernel()
        yield side
        side.withdraw()


@pytest.fixture(params=["ksmpy", "kernel"])
def side(request: pytest.FixtureRequest, engine_options: dict[str, str]) -> Iterator[Merger]:
    """Each of the two that merge, in turn."""
    marker = request.node.get_closest_marker("knobs")
    values = dict(marker.kwargs) if marker else {}
    tuned = bool(values.pop("tuned", True))
    if request.param == "kernel":
        yield from _kernel_side(tuned, values)
        return
    merger = Ksmpy(**engine_options)
    for name, value in values.items():
        setattr(merger.engine.knobs, name, value)
    yield merger
    merger.withdraw()
    merger.engine.close()
