"""Programs that confine themselves after they have merged, as a sandbox does."""

from __future__ import annotations

import pytest

from conftest import Mode
from support import confine
from support.procs import python_ok
from test_cli import needs_engine

pytestmark = [
    needs_engine,
    pytest.mark.skipif(not confine.possible(), reason="no seccomp filter for this machine here"),
]

_CONFINED = """
import contextlib, sys
import ksmpy
from support import confine, memory
from support.oracle import PAGE

call, freeze, tracking = sys.argv[1:]
engine = ksmpy.Engine(freeze=freeze, tracking=tracking)
arrays = [memory.distinct(2048) for _ in range(2)]
regions = [engine.register(array) for array in arrays]
assert engine.scan(eager=True).merged == 2 * 2048
confine.refuse((call,))
for array in arrays:
    array[::PAGE] += 1
wanted = arrays[0].tobytes()
for give_back in (engine.unmerge, regions[0].release, engine.close):
    assert engine.stats().saved_bytes == 0, engine.stats()
    with contextlib.suppress(OSError):
        give_back()
    assert all(array.tobytes() == wanted for array in arrays)
    for array in arrays:
        array[::PAGE] += 1
    wanted = arrays[0].tobytes()
"""


@pytest.mark.parametrize("call", ["pread64", "ioctl", "madvise", "mremap"])
def test_what_cannot_be_asked_or_given_back_any_more(call: str, mode: Mode) -> None:
    """Every call ends, with an error where it has to; what was written is not said to be saved,
    and stays what it is.
    """
    python_ok("-c", _CONFINED, call, mode.freeze, mode.tracking)
