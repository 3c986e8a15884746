"""A fault that the fault thread read before a thaw, and comes to after it, changes nothing."""

from __future__ import annotations

import pytest

from conftest import Mode
from support.build import shared_library
from support.procs import python_ok

LATE = """
import ctypes
import sys
import ksmpy
from support import memory

late = ctypes.CDLL(None)
late.late_arm.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGES = 64
whole = memory.pages(2 * PAGES)
start = -memory.address_of(whole) % (PAGES * 4096)  # all of it is frozen at once
one = whole[start : start + PAGES * 4096]
one[:] = memory.distinct(PAGES, seed=3)
two = memory.twin(one)
wanted = one.copy()
wanted[8] = 7
with ksmpy.Engine(freeze=sys.argv[1], tracking="wp-async") as engine:
    engine.register(one)
    engine.register(two)
    late.late_arm(memory.address_of(one), one.nbytes)
    engine.scan(eager=True)
    seen = late.late_result()
    assert seen >= 0, "no fault came late"
    assert seen == wanted[3 * 4096], seen
    assert (one == wanted).all()
    engine._core.check()
"""


@pytest.mark.parametrize("freeze", ["uffd-move", "uffd-remap"])
def test_a_late_answer_puts_no_zeros(freeze: str) -> None:
    """The page lies on a frame by then, tracked and in no page table: it keeps its bytes."""
    mode = Mode(freeze, "wp-async")
    if reason := mode.missing():
        pytest.skip(reason)
    python_ok("-c", LATE, freeze, env={"LD_PRELOAD": str(shared_library("late"))})
