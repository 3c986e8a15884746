"""The program takes every mapping that there is while pages are frozen."""

from __future__ import annotations

import pytest

from conftest import Mode
from support.pause import preloaded
from support.procs import python_ok

pytestmark = pytest.mark.timeout(120)

TAKEN = """
import ctypes
import mmap
import sys

import numpy as np

import ksmpy
from support import memory
from support.libc import libc
from support.oracle import PAGE
from support.pause import Pauser

FAILED = ctypes.c_void_p(-1).value


def take_all():
    taken = []
    while True:
        rights = mmap.PROT_READ | (mmap.PROT_WRITE if len(taken) % 2 else 0)
        at = libc.mmap(None, PAGE, rights, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if at == FAILED:
            return taken
        taken.append(at)


pauser = Pauser()
one = memory.distinct(256)
two = memory.twin(one)
two.reshape(-1, PAGE)[:] = one.reshape(-1, PAGE)[np.random.default_rng(1).permutation(256)]
wanted = one.tobytes(), two.tobytes()
with ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2]) as engine:
    engine.register(one)
    engine.register(two)
    with pauser.at("mmap(MAP_FIXED)", 9, lambda: engine.scan(eager=True)):
        taken = take_all()
    one[::PAGE] ^= 1
    two[::PAGE] ^= 1
    for at in taken:
        libc.munmap(at, PAGE)
    one[::PAGE] ^= 1
    two[::PAGE] ^= 1
    assert (one.tobytes(), two.tobytes()) == wanted
assert (one.tobytes(), two.tobytes()) == wanted
"""


def test_a_freeze_ends_where_no_mapping_is_left(mode: Mode) -> None:
    """Pages that cannot be merged are given back, and can be written, without a mapping more."""
    python_ok("-c", TAKEN, mode.freeze, mode.tracking, env=preloaded({}))
