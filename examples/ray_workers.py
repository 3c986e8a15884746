"""Ray's worker processes share what is equal, on each machine."""

from __future__ import annotations

import time

import numpy as np
import ray

import ksmpy


class Model:
    """An actor: a worker process of its own, which loads 32 MiB."""

    def __init__(self) -> None:
        self.weights = np.random.default_rng(0).random((4 << 20,))

    def first(self) -> float:
        """A figure from the model."""
        return float(self.weights[0])


def main() -> None:
    """Start two actors, and wait until they share."""
    hook = {"worker_process_setup_hook": "ksmpy.integrations.ray.setup"}  # this is the one line
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=hook)
    actors = [ray.remote(Model).remote() for _ in range(2)]
    print(ray.get([actor.first.remote() for actor in actors]))
    with ksmpy.Store.open("ray") as store:
        for _ in range(600):
            if store.stats().saved_bytes > 28 << 20:
                break
            time.sleep(0.1)
        print(f"saved {store.stats().saved_bytes >> 20} MiB")
        ray.shutdown()
        store.unlink()


if __name__ == "__main__":
    main()
