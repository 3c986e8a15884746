"""torch's tensors between processes, as a program that its children can import: WHAT METHOD.

WHAT is "queues" or "loader". Every tensor is compared with what it has to be while engines merge
all that is equal, in the parent and in its children.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

import ksmpy

from .background import scanning
from .patience import patience, until

MIB = 1 << 20
LONG = patience(100)
#: 64 bytes: wherever malloc puts a tensor of these within a page, its pages are equal to others'.
PATTERN = torch.arange(16.0)
#: Neither has annotations.
sharing: Any = torch.multiprocessing
is_shared: Any = torch.Tensor.is_shared
#: How many values a sample of `Parts` has.
SAMPLE = 1 << 12


def equal_tensors(count: int, mebibytes: int = 1) -> list[torch.Tensor]:
    """As many with the same values."""
    return [PATTERN.repeat(mebibytes * MIB // 64) for _ in range(count)]


def holds(each: torch.Tensor, added: float = 0) -> bool:
    """Whether a tensor has the values of `equal_tensors`, with so much added to each."""
    right = (PATTERN + added).expand(each.numel() // 16, 16)
    return bool(torch.equal(each.view(-1, 16), right))


def merged(engine: Any, tensors: list[torch.Tensor]) -> None:
    """Wait until each has merged pages."""
    regions = engine.track(tensors)
    assert len(regions) == len(tensors)
    until(lambda: all(each.stats().merging_pages for each in regions), "not merged", limit=LONG)


# ---- queues ------------------------------------------------------------------------------------


def queues(method: str, store: ksmpy.Store) -> None:
    """A merged tensor that is put on a queue moves to shared memory: what its reader writes is
    seen here, and what was merged with it keeps its bytes.
    """
    freezes = [each for each in ("uffd-wp", "uffd-move", "uffd-remap", "signal") if works(each)]
    for strategy in ("file_descriptor", "file_system"):
        sharing.set_sharing_strategy(strategy)
        for freeze in freezes if method == "fork" else ["auto"]:
            with ksmpy.Engine(store=store, freeze=freeze) as engine:
                exchange(engine, method, store)


def works(freeze: str) -> bool:
    """Whether this machine has what it needs."""
    try:
        ksmpy.Engine(freeze=freeze).close()
    except ksmpy.KsmpyError:
        return False
    return True


def exchange(engine: Any, method: str, store: ksmpy.Store) -> None:
    """Send merged tensors to a process that adds 1 to them and sends copies back, twice."""
    context = sharing.get_context(method)
    asked, answers = context.Queue(), context.Queue()
    child = context.Process(target=add_to_what_comes, args=(asked, answers, store))
    child.start()
    with scanning(engine):
        kept = equal_tensors(2)
        merged(engine, kept)
        received: list[torch.Tensor] = []
        for _ in range(2):
            sent = equal_tensors(2)
            merged(engine, sent)
            for added in range(2):
                asked.put((added, sent))
                right, copies = answers.get(timeout=LONG)
                assert right, "the child has read other bytes"
                assert all(is_shared(each) and holds(each, added + 1) for each in sent)
                assert all(holds(each, added) for each in copies)
            received += copies
            assert all(map(holds, kept)) and all(holds(each, 1) for each in received)
        asked.put(None)
        child.join(LONG)
        assert child.exitcode == 0


def add_to_what_comes(asked: Any, answers: Any, store: ksmpy.Store) -> None:
    """The child: says whether what came and what it has merged itself had the right bytes."""
    torch.set_num_threads(1)
    with ksmpy.Engine(store=store) as engine, scanning(engine):
        own = equal_tensors(2)
        engine.track(own)
        while (found := asked.get(timeout=LONG)) is not None:
            added, theirs = found
            right = all(holds(each, added) for each in theirs) and all(map(holds, own))
            copies = [each.clone() for each in theirs]
            for each in theirs:
                each.add_(1)
            del each, theirs, found
            answers.put((right, copies))


# ---- DataLoader --------------------------------------------------------------------------------


class Parts:
    """Samples from equal parts."""

    def __init__(self) -> None:
        self.parts = equal_tensors(4)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.parts[index % len(self.parts)][:SAMPLE], index


def begin_worker(store: ksmpy.Store, number: int) -> None:
    """A worker merges, too."""
    ksmpy.worker_init(number, store=store, min_bytes=MIB // 2, sleep_millisecs=1)


def loader(method: str, store: ksmpy.Store) -> None:
    """Workers read adopted tensors, in their own memory or in what they were sent, and the last
    one's samples would be pinned: without an accelerator torch says that there is nothing to pin
    them for.
    """
    warnings.filterwarnings("ignore", message=".*pin_memory")
    engine = ksmpy.enable(store=store, min_bytes=MIB // 2, sleep_millisecs=1)
    data: Any = Parts()
    until(lambda: engine.stats().pages_sharing > 500, ksmpy.coverage, limit=LONG)
    start = functools.partial(begin_worker, store)
    with scanning(engine):
        for persistent, pinned in ((True, False), (False, True)):
            batches = DataLoader(
                data,
                8,
                num_workers=2,
                persistent_workers=persistent,
                pin_memory=pinned,
                multiprocessing_context=method,
                worker_init_fn=start,
            )
            for _ in range(2):
                seen: list[int] = []
                for samples, numbers in batches:
                    assert samples.shape == (8, SAMPLE) and holds(samples)
                    seen += numbers.tolist()
                assert sorted(seen) == list(range(len(data)))
            del batches
    assert all(map(holds, data.parts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ksmpy.Store.anonymous() as shared:
        {"queues": queues, "loader": loader}[sys.argv[1]](sys.argv[2], shared)
