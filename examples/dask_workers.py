"""Workers of a dask cluster share what is equal, on each machine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import ksmpy
from ksmpy.integrations.dask import KsmpyPlugin


def load(dask_worker: Any) -> None:
    """In each worker: the same 32 MiB."""
    dask_worker.model = np.random.default_rng(0).random((4 << 20,))


def main() -> None:
    """Start workers, have them load, and wait until they share."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        client.register_plugin(KsmpyPlugin(store="dask-example"))  # this is the one line
        client.run(load)
        with ksmpy.Store.open("dask-example") as store:
            for _ in range(600):
                if store.stats().saved_bytes > 28 << 20:
                    break
                time.sleep(0.1)
            print(f"saved {store.stats().saved_bytes >> 20} MiB")
            store.unlink()


if __name__ == "__main__":
    main()
