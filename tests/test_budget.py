"""The mapping budget: kept whatever the data, spent on long runs first, and given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ksmpy
from support import memory, oracle
from support.memory import Bytes
from support.oracle import PAGE

pytestmark = pytest.mark.timeout(300)

#: Mappings that the interpreter may have made since the engine last counted.
OTHERS = 16
#: Mappings that the engine assumes and need not exist before it counts anew.
ASSUMED = 256 + 4
RUN, RUNS = 64, 64


def _map_limit() -> int:
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        return int(file.read())


def _leave_room(engine: Any, mappings: int) -> None:
    """Let the process have about so many mappings more than it has."""
    share = 100 * (len(oracle.mappings()) + mappings) // _map_limit() + 1
    engine.knobs.vma_share_percent = share


def _scattered(count: int) -> tuple[Bytes, Bytes]:
    """Every other page of the one equals one of the other, in no order: no run is longer than 1."""
    one, two = memory.distinct(count, seed=1), memory.distinct(count, seed=2)
    pages = one.reshape(-1, PAGE), two.reshape(-1, PAGE)
    pages[1][::2] = pages[0][::2][np.random.default_rng(3).permutation(count // 2)]
    return one, two


def _long_runs() -> tuple[Bytes, Bytes]:
    """Equal but for one page after each RUN pages."""
    one = memory.distinct((RUN + 1) * RUNS, seed=4)
    two = memory.twin(one)
    two.reshape(-1, PAGE)[RUN :: RUN + 1, 0] ^= 1
    return one, two


def _saved(arrays: tuple[Bytes, Bytes]) -> int:
    return oracle.true_saved_pages([memory.span(array) for array in arrays])


def _within_budget(engine: Any) -> None:
    assert len(oracle.mappings()) - OTHERS <= engine.stats().vma_limit


def test_long_runs_come_first_when_mappings_are_scarce(engine: Any) -> None:
    """Pages that are alone leave room for runs that come after them, and get it in the end."""
    engine.knobs.smart_scan = 0
    _leave_room(engine, 1500)
    scattered, runs = _scattered(8192), _long_runs()
    wanted = [array.tobytes() for array in scattered + runs]
    for array in scattered + runs:
        engine.register(array)
    result = engine.scan(eager=True)
    _within_budget(engine)
    # A run that is cut where a slice of the pass ends leaves a short one behind.
    assert _saved(runs) > 0.95 * RUN * RUNS, "long runs were left out"
    early, left_out = _saved(scattered), engine.stats().pages_no_budget
    assert early > 0, "pages that are alone got nothing at all"
    # A thread that runs may be reading into some; a region's first page is looked at anew once the
    # region has its shadow.
    others = result.busy + result.differed + len(engine.regions())
    assert 4096 - early <= left_out + others, "what was left out is not counted"
    assert left_out == result.no_budget
    for _ in range(16):
        engine.scan(eager=True)
        _within_budget(engine)
    assert _saved(scattered) > early, "the rest of the budget was never used"
    assert len(oracle.mappings()) > engine.stats().vma_limit - ASSUMED - OTHERS
    assert _saved(runs) > 0.95 * RUN * RUNS
    assert [array.tobytes() for array in scattered + runs] == wanted
    engine._core.check()


def test_scattered_pages_leave_a_share_for_ever(engine: Any) -> None:
    """Long runs that come when scattered pages have had all the mappings they get still merge."""
    engine.knobs.smart_scan = 0
    _leave_room(engine, 1500)
    scattered, equal = _scattered(8192), memory.distinct(4096, seed=6)
    for array in scattered:
        engine.register(array)
    for _ in range(12):
        engine.scan(eager=True)
    before = _saved(scattered)
    assert 0 < before < 4096
    later = equal, memory.twin(equal)
    for array in later:
        engine.register(array)
    engine.scan(2, eager=True)
    # A run that is cut where a slice of the pass ends leaves a short one behind.
    assert _saved(later) > 0.95 * 4096, "long runs were left out"
    assert _saved(scattered) >= before
    _within_budget(engine)
    engine._core.check()


@pytest.mark.parametrize("look", ["scan", "stats"])
def test_writes_into_long_runs_keep_the_budget(look: str, engine: Any) -> None:
    """Pages that come out of a run take mappings too: the shortest overlays make room for them."""
    one = memory.distinct(4096, seed=5)
    arrays = one, memory.twin(one)
    for array in arrays:
        engine.register(array)
    _leave_room(engine, 500)
    engine.scan(2, eager=True)
    assert _saved(arrays) == 4096
    for step in (64, 2, 1):
        one[:: step * PAGE] += 1
        wanted = [array.tobytes() for array in arrays]
        getattr(engine, look)()
        _within_budget(engine)
        assert [array.tobytes() for array in arrays] == wanted
        engine._core.check()
    engine.knobs.vma_share_percent = 50
    engine.scan()
    assert engine.stats().pages_sharing == _saved(arrays), "what was left then is forgotten"
    engine.unmerge()
    assert not any(oracle.maps_store(*memory.span(array)) for array in arrays)
    assert [array.tobytes() for array in arrays] == wanted


def test_doctor_names_what_was_left_out_and_the_way_out(auto: Any) -> None:
    """doctor() asks the process's engines: fine at first, and a hint once mappings were scarce."""

    def told() -> ksmpy.Check:
        return next(check for check in ksmpy.doctor() if check.name == "mapping budget")

    arrays = _scattered(4096)
    for array in arrays:
        auto.register(array)
    assert told().ok and not told().hint
    _leave_room(auto, 500)
    auto.scan(eager=True)
    left_out = auto.stats().pages_no_budget
    assert left_out > 0
    assert not told().ok and str(left_out) in told().detail
    for way_out in ("vm.max_map_count", "vma_share_percent", "ksmpy.copy", "ksmpy.empty"):
        assert way_out in told().hint
    auto.close()
    assert told().ok and told().detail == "no engine in this process"
