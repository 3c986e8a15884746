"""ProcessPoolExecutor, or multiprocessing's Pool: KIND METHOD WORKERS."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import load
import task


def futures(context: multiprocessing.context.BaseContext, workers: int) -> None:
    """A pool that lost a worker is broken; the next one is made."""
    while not load.over():
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                while not load.over():
                    list(pool.map(task.work, range(2 * workers)))
        except BrokenProcessPool:
            pass


def pool(context: multiprocessing.context.BaseContext, workers: int) -> None:
    """A worker that is killed is replaced; its task is lost."""
    with context.Pool(workers) as made:
        while not load.over():
            tasks = [made.apply_async(task.work) for _ in range(2 * workers)]
            for each in tasks:
                each.wait(5)


if __name__ == "__main__":
    kind, method, count = sys.argv[1:]
    {"futures": futures, "pool": pool}[kind](multiprocessing.get_context(method), int(count))
