"""A program that uses every public name as a user would: mypy checks it, and a test runs it."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

import ksmpy

Bytes = npt.NDArray[np.uint8]


class OneNode:
    """A topology of the program's own."""

    @property
    def nodes(self) -> tuple[int, ...]:
        return (0,)

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        return np.zeros(len(addresses), np.int32)


def weights() -> Bytes:
    """The same 2 MiB each time."""
    return ksmpy.array(np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8))


def arrays() -> None:
    """Everything that makes an array."""
    made: list[npt.NDArray[np.float64]] = [
        ksmpy.empty((4, 1024)),
        ksmpy.zeros(1024, np.float64, order="F"),
        ksmpy.full((2, 3), 7.5),
        ksmpy.array([[1.0, 2.0]], dtype=np.float64),
        ksmpy.empty_like(np.ones(4), shape=(8,)),
        ksmpy.copy(np.ones(1000)),
    ]
    assert all(each.ctypes.data % 4096 == 0 for each in made)


def one_call() -> int:
    """dedup(), its report, and estimates."""
    one, other = weights(), weights()
    promised: ksmpy.Estimate = ksmpy.estimate(one, other, min_bytes=1 << 20)
    refusals: tuple[ksmpy.Refused, ...] = promised.skipped
    names: list[str] = [refusal.name for refusal in refusals]
    with ksmpy.dedup({"one": one, "other": other}, bytes(1 << 20), min_bytes=1 << 20) as report:
        names += [f"{name}: {reason}" for name, reason in report.refused]
        figures: ksmpy.Report = pickle.loads(pickle.dumps(report))
        assert figures.saved_bytes == report.saved_bytes
        saved: int = report.before_bytes - report.after_bytes
        assert str(promised) and str(report) and report.seconds > 0 and report.stats and report.scan
        assert report.misaligned == () and report.volatile_pages >= 0 and names is not None
    report.undo()
    return saved


def an_engine() -> ksmpy.Stats:
    """Engines, regions, knobs and what they tell."""
    one, other, more = weights(), weights(), weights()
    with ksmpy.Engine(topology=OneNode(), freeze="auto", tracking="auto") as engine:
        with engine.register(more, name="for a while") as region:
            assert region in engine.regions()
        first: ksmpy.Region = engine.register(one, name="one")
        address = other.ctypes.data
        second = engine.register_range(address, other.nbytes, name="other", owner=None)
        tracked: list[ksmpy.Region] = engine.track([more], min_bytes=1 << 20)
        scan: ksmpy.ScanResult = engine.scan(2, eager=True, max_pages=None)
        knobs = engine.knobs
        knobs.smart_scan, knobs.sleep_millisecs, knobs.advisor_mode = True, 1, "scan-time"
        known: dict[str, int | str] = knobs.asdict()
        try:
            knobs.merge_across_nodes = 2
        except ksmpy.KnobError as error:
            assert isinstance(error, ValueError) and isinstance(error, OSError) and error.errno
        engine.start()
        engine.stop()
        stats: ksmpy.Stats = engine.stats()
        shares: list[ksmpy.Share] = engine.shares()
        told: list[tuple[tuple[str, str], int]] = [(share.names, share.nbytes) for share in shares]
        part: ksmpy.RegionStats = first.stats()
        assert part.merging_pages and scan.merged and told and known["run"] == 0
        assert (first.name, first.pages * 4096) == ("one", first.nbytes) and first.address
        assert len(engine.regions()) == 2 + len(tracked) and engine.freeze and engine.tracking
        print(engine, stats, sep="\n")
        assert asdict(stats)["pages_sharing"] == stats.pages_sharing
        first.unmerge()
        second.release()
        engine.unmerge()
    return stats


def a_module() -> None:
    """Torch modules, where there is torch."""
    try:
        import torch
    except ImportError:
        return
    module = torch.nn.Linear(64, 1024)
    assert ksmpy.align_module(module, min_bytes=1 << 16) is module


def stores(name: str) -> None:
    """Named stores, and the ones without a name."""
    with ksmpy.Store.open(name, create=True) as store, ksmpy.Engine(store=store) as engine:
        one = weights()
        engine.register(one)
        processes: list[ksmpy.StoreProcess] = store.processes()
        counters: ksmpy.StoreStats = store.stats()
        assert [process.pid for process in processes] == [os.getpid()] and store.name == name
        assert counters.pages_shared >= 0
        again: ksmpy.Store = pickle.loads(pickle.dumps(store))
        assert again == store
        again.close()
        store.unlink()
    with ksmpy.Store.anonymous() as nameless, ksmpy.Engine(store=nameless):
        pass
    try:
        ksmpy.Store.open("no/name")
    except ksmpy.StoreError as refusal:
        assert refusal.errno


def the_process() -> None:
    """One engine for the whole process."""
    engine: ksmpy.Engine = ksmpy.enable(
        freeze="auto", adopt=False, min_bytes=1 << 20, run=False, sleep_millisecs=50
    )
    coverage: ksmpy.Coverage | None = ksmpy.coverage()
    assert coverage is None and ksmpy.enable(run=True) is engine
    ksmpy.disable()
    ksmpy.worker_init(0, adopt=False)
    ksmpy.disable()


def errors() -> None:
    """All errors have one base."""
    with ksmpy.Engine() as engine:
        try:
            engine.register(bytearray(16))
        except ksmpy.RegionError as error:
            assert isinstance(error, ksmpy.KsmpyError) and isinstance(error, ValueError)
    try:
        engine.scan()
    except ksmpy.Unsupported:
        raise
    except ksmpy.KsmpyError as error:
        assert str(error)


def main() -> None:
    """All of it."""
    checks: list[ksmpy.Check] = ksmpy.doctor()
    assert all(check.name and (check.ok or check.detail or check.hint) for check in checks)
    arrays()
    a_module()
    assert one_call() > 0
    assert an_engine().saved_bytes > 0
    stores("every-name")
    the_process()
    errors()
    seen: ksmpy.Estimate = ksmpy.analyze(os.getpid())
    assert seen.total_pages and ksmpy.__version__


if __name__ == "__main__":
    main()
