"""Four spawned workers that load the same 100 MiB, and compute with it."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np

weights = np.empty(0)


def load() -> None:
    """What each worker has."""
    global weights
    weights = np.random.default_rng(1).random(13 << 20)


def answer(question: int) -> float:
    """One task: it reads all of the weights, and takes a temporary as large."""
    time.sleep(0.02)
    return float((weights * question).sum())


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(4, load) as pool:
        print(sum(pool.map(answer, range(80), chunksize=1)))
