"""Memory is given back only where there is some: nobody is killed for leaving a `with` block."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import EACH_FREEZE, Mode
from support import cgroup
from support.cgroup import Cgroup
from support.procs import python

pytestmark = pytest.mark.timeout(120)

LIMITED = """
import sys
from hashlib import blake2b
from pathlib import Path
import numpy as np
import ksmpy
from support import memory, oracle
from support.cgroup import Cgroup

MIB = 1 << 20
path, version, freeze, tracking, work = sys.argv[1:]
group = Cgroup(Path(path), int(version))
group.enter()
model = memory.distinct(12 * MIB // 4096)
wanted = blake2b(model).digest()  # a copy of the bytes would not fit
arrays = [model]
engine = ksmpy.Engine(freeze=freeze, tracking=tracking)
exec(work)
for array in arrays:
    assert blake2b(array).digest() == wanted
print("right")
"""

MERGED = """
engine.register(model)
for _ in range(5):
    arrays.append(memory.twin(model))
    engine.register(arrays[-1])
    engine.scan(eager=True)
assert engine.stats().pages_sharing == 5 * len(model) // 4096
"""

LEAVING = (
    MERGED
    + """
group.limit(group.used() + 40 * MIB)
with engine:
    pass
assert not engine._core.closed and engine.regions()
engine._core.check()
try:
    engine.close()
except OSError as error:
    assert error.errno == 12 and path in str(error), error
    assert len(str(error).splitlines()) == 1
else:
    raise AssertionError("there is no memory for it")
for array in arrays:
    assert blake2b(array).digest() == wanted
group.limit(1 << 40)
engine.close()
assert not oracle.store_mappings()
"""
)

FREED = (
    MERGED
    + """
group.limit(group.used() + 75 * MIB)
engine.close()
assert not oracle.store_mappings()
"""
)

ZEROS = """
zeros = memory.pages(48 * MIB // 4096)
engine.knobs.use_zero_pages = 1
zeros[:] = 0
engine.register(zeros)
engine.scan(eager=True)
assert engine.stats().ksm_zero_pages == 48 * MIB // 4096
group.limit(group.used() + 24 * MIB)
try:
    engine.unmerge()
except OSError as error:
    assert error.errno == 12, error
else:
    raise AssertionError("there is no memory for it")
assert not zeros[::4096].any()
"""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A memory cgroup without a limit yet."""
    reason = cgroup.refusal()
    if reason is not None:
        pytest.skip(reason)
    with cgroup.made() as group:
        yield group


def _run(group: Cgroup, mode: Mode, work: str) -> str:
    if reason := mode.missing():
        pytest.skip(reason)
    done = python("-c", LIMITED, str(group.path), str(group.version), *mode, work)
    told = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert group.kills() == 0, told
    assert done.returncode == 0 and done.stdout == "right\n", told
    return done.stderr


def test_leaving_a_with_block_kills_nobody(group: Cgroup, mode: Mode) -> None:
    """What there is no memory for stays merged, right, and said once; with memory it ends."""
    said = _run(group, mode, LEAVING).splitlines()
    assert len(said) == 1 and "stay merged" in said[0] and str(group.path) in said[0]


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_memory_that_unmerging_frees_counts_as_left(group: Cgroup, chosen: Mode) -> None:
    """All that is merged goes back where it fits beside what is still shared."""
    assert _run(group, chosen, FREED) == ""


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_placed_zero_pages_stay_where_memory_is_short(group: Cgroup, chosen: Mode) -> None:
    """They are memory of their own again only if there is some."""
    _run(group, chosen, ZEROS)
