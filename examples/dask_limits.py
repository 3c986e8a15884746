"""A worker may have more than its memory limit, where most of it is shared.

The plugin tells dask's guards, in the worker and in its nanny, what is paid for: PSS, not RSS.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import ksmpy
from ksmpy.integrations.dask import KsmpyPlugin

STORE = "dask-limits-example"
LIMIT = 384 << 20
COPIES = 6  # of 64 MiB


def load(dask_worker: Any) -> int:
    """One more copy of the same 64 MiB, merged at once, and all are read; how many there are."""
    copies = vars(dask_worker).setdefault("copies", [])
    copies.append(np.random.default_rng(0).random((8 << 20,)))
    engine = ksmpy.enable()  # the plugin's
    engine.register(copies[-1])
    engine.scan(2, eager=True)
    return len({copy.sum() for copy in copies}) and len(copies)


def state(dask_worker: Any) -> tuple[int, int, str]:
    """(bytes of RSS, bytes as the worker's guard counts them, "running" or "paused")."""
    monitor = dask_worker.monitor
    rss = monitor.proc.memory_info().rss
    return rss, monitor.get_process_memory(), dask_worker.status.name


def main(guards: str = "pss") -> None:
    """Load copy after copy, and see what the guards say."""
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with (
        LocalCluster(memory_limit=LIMIT, **options) as cluster,
        Client(cluster) as client,
        ksmpy.Store.open(STORE) as store,
    ):
        client.register_plugin(KsmpyPlugin(STORE, guards))
        for _ in range(COPIES):
            (copies,) = client.run(load).values()
        time.sleep(1)  # some looks of the nanny's
        for _ in range(300):  # a guard measures what is shared every now and then
            ((rss, counted, status),) = client.run(state).values()
            if status == "running" and counted < LIMIT / 2:
                break
            time.sleep(0.1)
        mebibytes = [nbytes >> 20 for nbytes in (rss, LIMIT, counted)]
        print("RSS {} MiB, limit {} MiB, counted {} MiB: {}".format(*mebibytes, status))
        print(f"copies {copies}, saved {store.stats().saved_bytes >> 20} MiB")
        store.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
