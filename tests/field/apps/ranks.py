"""Ranks of MPI, each of which sends what it has loaded to the next one, and checks what it gets."""

from __future__ import annotations

import time
import zlib

import load
import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
weights = load.load()
names = sorted(weights)
got = np.empty_like(weights[names[0]])
turn = 0
while not world.bcast(load.over(), root=0):
    name = names[turn % len(names)]
    if got.shape != weights[name].shape or got.dtype != weights[name].dtype:
        got = np.empty_like(weights[name])
    world.Sendrecv(
        weights[name],
        dest=(world.rank + 1) % world.size,
        recvbuf=got,
        source=(world.rank - 1) % world.size,
    )
    load.answered(f"{name} {zlib.crc32(got)}")
    turn += 1
    time.sleep(load.PAUSE)
