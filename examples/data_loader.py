"""Workers of torch's DataLoader share what their datasets have loaded.

With num_workers a dataset that loads when it is first used does so in each worker.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import ksmpy
from ksmpy.integrations import pools


class Table(Dataset[Any]):
    """32 MiB, loaded where it is used."""

    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return 1 << 12

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.rows is None:
            torch.manual_seed(0)
            self.rows = torch.rand(1 << 12, 1 << 11)
        return self.rows[index]


def main(context: str | None = None) -> None:
    """Read on until both workers have the same memory; `context`: how they are started."""
    with ksmpy.Store.anonymous() as store:
        options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": context}
        start = pools.share(store)  # without an argument it makes a store by itself
        loader = DataLoader(Table(), 64, worker_init_fn=start, **options)  # this is the one line
        for _ in range(600):
            for _batch in loader:
                pass
            if store.stats().saved_bytes > 28 << 20:
                break
            time.sleep(0.1)
        print(f"saved {store.stats().saved_bytes >> 20} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
