"""Several processes with equal memory on one store, beside one process with it all."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import ksmpy
from ksmpy import proc
from ksmpy.store.files import is_shared_store

from .conftest import Meter
from .data import GIB, MIB, copies, unique, whole_pages

Scale = Callable[[int], int]
Options = dict[str, str]

PROCESSES = 8


def _pss(address: int, nbytes: int) -> int:
    """PSS of this process's array and of all that it maps of the store, in bytes."""
    return sum(
        mapping.sizes["Pss"]
        for mapping in proc.smaps()
        if is_shared_store(mapping.path)
        or (mapping.start < address + nbytes and address < mapping.end)
    )


def _life(orders: Connection, store: ksmpy.Store, nbytes: int, options: Options) -> None:
    """A worker process: its array equals every other worker's."""
    array = unique(nbytes)
    address, pages = whole_pages(array)
    with ksmpy.Engine(store=store, **options) as engine:
        orders.send("ready")
        while (order := orders.recv()) != "end":
            begin = time.perf_counter()
            if order == "merge":
                engine.register(array)
                engine.scan(eager=True)
            elif order == "scan":
                engine.scan(eager=True)
            seconds = time.perf_counter() - begin
            orders.send((seconds, _pss(address, pages * 4096) if order == "pss" else 0))


@dataclass
class Fleet:
    """Worker processes, and the store that they share."""

    store: ksmpy.Store
    workers: list[Connection]

    def each(self, order: str) -> list[float]:
        """One after the other; how long each of them took, in seconds."""
        return [self.all(order, [worker])[0] for worker in self.workers]

    def all(self, order: str, workers: list[Connection] | None = None) -> list[float]:
        """All at the same time."""
        chosen = self.workers if workers is None else workers
        for worker in chosen:
            worker.send(order)
        return [float(worker.recv()[0]) for worker in chosen]

    def pss(self) -> int:
        """What the arrays and the store take up, of all workers together, in bytes."""
        for worker in self.workers:
            worker.send("pss")
        return sum(int(worker.recv()[1]) for worker in self.workers)


@contextmanager
def _fleet(nbytes: int, options: Options) -> Iterator[Fleet]:
    context = multiprocessing.get_context("spawn")
    processes, ours = [], []
    with ksmpy.Store.anonymous() as store:
        for _ in range(PROCESSES):
            mine, theirs = context.Pipe()
            process = context.Process(target=_life, args=(theirs, store, nbytes, options))
            process.start()
            theirs.close()
            processes.append(process)
            ours.append(mine)
            assert mine.recv() == "ready"
        yield Fleet(store, ours)
        for worker in ours:
            worker.send("end")
        for process in processes:
            process.join()
            assert process.exitcode == 0


@pytest.mark.benchmark(group="processes_merge")
@pytest.mark.parametrize("who", ["later process", "one process"])
def test_merge(who: str, meter: Meter, scale: Scale, engine_options: Options) -> None:
    """Seconds per GiB: the second to eighth process, one after the other; two arrays in one."""
    nbytes = scale(256 * MIB)

    def together() -> None:
        with ksmpy.Engine(**engine_options) as engine:
            arrays = copies(nbytes, 2)
            begin = time.perf_counter()
            for array in arrays:
                engine.register(array)
            engine.scan(eager=True)
            meter.note("per_gib", (time.perf_counter() - begin) * GIB / (2 * nbytes))

    def apart() -> None:
        with _fleet(nbytes, engine_options) as fleet:
            first, *later = fleet.each("merge")
            meter.note("per_gib", statistics.median(later) * GIB / nbytes)
            meter.note("slowest_per_gib", max(later) * GIB / nbytes)

    meter.run(apart if who == "later process" else together)


@pytest.mark.benchmark(group="processes")
def test_fleet(meter: Meter, scale: Scale, engine_options: Options) -> None:
    """Eight processes with the same 256 MiB that merge at the same time."""
    nbytes = scale(256 * MIB)

    def work() -> None:
        with _fleet(nbytes, engine_options) as fleet:
            begin = time.perf_counter()
            fleet.all("merge")
            fleet.all("scan")
            seconds = time.perf_counter() - begin
            stats = fleet.store.stats()
            meter.note("copies", fleet.pss() / nbytes)
            meter.note("merge_per_gib", seconds * GIB / (PROCESSES * nbytes))
            meter.note("waits_per_page", stats.lock_waits / (PROCESSES * nbytes / 4096))
            meter.note("waited", stats.lock_wait_ns / 1e9 / (PROCESSES * seconds))
            meter.note("held_longest", stats.lock_hold_max_ns / 1e9)
            meter.note("switches", _switches(2.0))

    def _switches(seconds: float) -> float:
        before = _voluntary()
        time.sleep(seconds)
        return (_voluntary() - before) / PROCESSES / seconds

    def _voluntary() -> int:
        total = 0
        for child in multiprocessing.active_children():
            for task in Path(f"/proc/{child.pid}/task").iterdir():
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        total += int(line.split()[1])
        return total

    meter.run(work)
