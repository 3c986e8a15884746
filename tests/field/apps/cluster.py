"""A dask cluster of processes, whose nannies kill who takes too much: WORKERS LIMIT."""

from __future__ import annotations

import sys

import load
import task
from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    workers, limit = int(sys.argv[1]), sys.argv[2]
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=limit, dashboard_address=None
    )
    with cluster, Client(cluster) as client:
        while not load.over():
            client.gather(client.map(task.work, range(2 * workers), pure=False))
