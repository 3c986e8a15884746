"""Processes of concurrent.futures share what they have loaded; so do those of multiprocessing."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import ksmpy
from ksmpy.integrations import pools

kept: list[object] = []


def work(seconds: float) -> None:
    """Load 32 MiB, keep it, and be busy for a while."""
    kept.append(np.random.default_rng(0).random((4 << 20,)))
    time.sleep(seconds)


def main() -> None:
    """Two workers, and what their store says while both have what they loaded."""
    with ksmpy.Store.anonymous() as store:
        start = pools.share(store)  # without an argument it makes a store by itself
        with ProcessPoolExecutor(2, initializer=start) as pool:  # this is the one line
            list(pool.map(work, [1.0] * 2))
            for _ in range(600):
                if store.stats().saved_bytes > 28 << 20:
                    break
                time.sleep(0.1)
            print(f"saved {store.stats().saved_bytes >> 20} MiB")


if __name__ == "__main__":
    main()
