"""Memory profilers that stand in for the functions by which mappings are made.

Fil and memray do so, by preloading and by exchanging what objects call. The engine's calls are not
the program's: they would be counted as memory that it has taken, and wait for the profiler's lock
while pages are frozen.
"""

from __future__ import annotations

import pytest

from conftest import Mode
from support.build import shared_library
from support.procs import python_ok

PRELUDE = """
import ctypes, sys, threading
import ksmpy
import ksmpy.native
from support import memory, scenarios
profiler = ctypes.CDLL(None)
profiler.profiler_calls.restype = ctypes.c_uint64
assert profiler.profiler_target(b"/_ksmpy.")
"""

LIFE = (
    PRELUDE
    + """
life = scenarios.SCENARIOS[sys.argv[1]](*sys.argv[2:])
life.disturbed()
life.recover()
assert profiler.profiler_calls() == 0, profiler.profiler_calls()
"""
)

WRITERS = (
    PRELUDE
    + """
PAGES = 256
one = memory.distinct(PAGES)
arrays = [one, memory.twin(one)]
wanted = one.tobytes()
over = threading.Event()

def write():
    while not over.is_set():
        for array in arrays:
            profiler.profiler_write(ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(PAGES))

with ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2]) as engine:
    for array in arrays:
        engine.register(array)
    writer = threading.Thread(target=write)
    writer.start()
    merged = sum(engine.scan(eager=True).merged for _ in range(200))
    over.set()
    writer.join()
    assert merged
    assert all(array.tobytes() == wanted for array in arrays)
"""
)


def _preloaded() -> dict[str, str]:
    return {"LD_PRELOAD": str(shared_library("profiler"))}


@pytest.mark.parametrize("scenario", ["life", "forking"])
def test_a_profiler_sees_no_mapping_of_the_engine(scenario: str, mode: Mode) -> None:
    """Nor what it unmaps, moves, protects or gives back, in the whole life of its regions."""
    python_ok("-c", LIFE, scenario, mode.freeze, mode.tracking, env=_preloaded())


def test_a_profiler_may_write_to_what_merges_with_its_lock_held(mode: Mode) -> None:
    """Who waits for a frozen page has the lock that each call takes: both go on."""
    python_ok("-X", "faulthandler", "-c", WRITERS, mode.freeze, mode.tracking, env=_preloaded())
