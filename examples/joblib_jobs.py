"""Processes of joblib (loky) share what they have loaded."""

from __future__ import annotations

import time

import numpy as np
from joblib import Parallel, delayed

import ksmpy

STORE = "joblib-example"

model: dict[str, object] = {}  # enable() finds what dicts, lists and attributes hold


def work(_job: int) -> int:
    """Load 32 MiB, and have it until it is shared with the other job; MiB saved by then."""
    ksmpy.enable(store=STORE)  # this is the one line
    model["weights"] = np.random.default_rng(0).random((4 << 20,))
    saved = 0
    with ksmpy.Store.open(STORE) as store:
        for _ in range(600):
            saved = max(saved, store.stats().saved_bytes >> 20)
            if saved >= 28:
                break
            time.sleep(0.1)
        time.sleep(0.5)  # the other job sees it, too
    return saved


def main() -> None:
    """Two jobs at once, and what their store said."""
    saved = Parallel(n_jobs=2)(delayed(work)(job) for job in range(2))
    print(f"saved {max(saved)} MiB")
    ksmpy.Store.open(STORE).unlink()


if __name__ == "__main__":
    main()
