"""What users call: dedup, estimate, track, doctor, arrays, enable, and the engine's answers."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy import KsmpyError, Region, RegionError, native, threads
from ksmpy.engine import core, numa, registry
from ksmpy.native import NativeEngine
from ksmpy.whole import enable as enabling
from support import memory, oracle, procs
from support.patience import patience, until
from support.tracked import track_all

MIB = 1 << 20
PAGE = oracle.PAGE


def pattern(seed: int, nbytes: int = MIB) -> Any:
    """Page-aligned random bytes, the same for the same seed."""
    return ksmpy.copy(np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8))


# ---- the package -------------------------------------------------------------------------


def test_import_brings_nothing_along() -> None:
    """Importing ksmpy imports none of what it needs later."""
    heavy = "numpy", "psutil", "mmh3", "rich", "cffi", "ctypes", "logging", "ksmpy.native"
    program = f"import sys, ksmpy; print([name for name in {heavy!r} if name in sys.modules])"
    assert procs.python_ok("-c", program) == "[]\n"


def test_functions_are_not_hidden_by_modules() -> None:
    """What the package hands on stays what it is, whichever modules are imported beside it."""
    program = """
import importlib, pkgutil, types, ksmpy
for module in pkgutil.walk_packages(ksmpy.__path__, "ksmpy."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
handed_on = {name: getattr(ksmpy, name) for name in ksmpy.__all__}
print([name for name, what in handed_on.items() if isinstance(what, types.ModuleType)])
"""
    assert procs.python_ok("-W", "error", "-c", program) == "[]\n"


def test_every_public_name_exists() -> None:
    """dir() tells what there is, and each of it can be had; what is not is an AttributeError."""
    for name in ksmpy.__all__:
        assert name in dir(ksmpy)
        assert getattr(ksmpy, name) is not None
    assert ksmpy.__version__
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = ksmpy.no_such_thing


OTHER_SYSTEM = """
import sys
sys.{attribute} = "{value}"
sys.modules["ksmpy._ksmpy"] = None
import ksmpy, numpy
arrays = [ksmpy.copy(numpy.arange(1 << 17)) for _ in range(2)]
checks = {{check.name: check.ok for check in ksmpy.doctor()}}
print(ksmpy.estimate(arrays).duplicate_pages, checks["extension"])
for make in ksmpy.Engine, ksmpy.enable, lambda: ksmpy.dedup(arrays):
    try:
        make()
    except ksmpy.Unsupported as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("platform", "darwin", "ksmpy merges memory on Linux only, this is darwin"),
        (
            "abiflags", "t",
            "ksmpy merges nothing in a free-threaded Python: it needs one with a GIL",
        ),
    ],
)  # fmt: skip
def test_other_systems(attribute: str, value: str, words: str) -> None:
    """Without the extension import, estimate and doctor work; an Engine says why it cannot be.

    A free-threaded interpreter is such a system, even one for which the extension could be built.
    """
    program = OTHER_SYSTEM.format(attribute=attribute, value=value)
    out = procs.python_ok("-c", program).splitlines()
    assert out[0] == "256 False"
    assert out[1:] == [words] * 3


def test_its_source_without_the_extension(tmp_path: Path) -> None:
    """Where it was cloned and installed from, Python finds it before what was installed."""
    tree = Path(ksmpy.__file__).parent
    ignored = shutil.ignore_patterns("_ksmpy.*", "__pycache__")
    shutil.copytree(tree, tmp_path / "ksmpy", ignore=ignored)
    (tmp_path / "csrc").mkdir()
    told = procs.python_ok(
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.modules['ksmpy._ksmpy'] = None  # which is installed, editable\nimport ksmpy\n"
        "try: ksmpy.Engine()\nexcept ksmpy.Unsupported as error: print(error)",
    )
    assert told == (
        f"{tmp_path} has ksmpy's source, whose extension module has not been built (make build): "
        "Python finds an installed ksmpy when it is started in another folder\n"
    )


INTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
"""

SUBINTERPRETER = (
    INTERPRETERS
    + """
inside = '''
import ksmpy
check = ksmpy.doctor()[-1]
print(check.name, check.ok, check.hint)
for make in ksmpy.Engine, ksmpy.enable:
    try:
        make()
    except ksmpy.Unsupported as error:
        print(error)
'''
print(interpreters.run_string(interpreters.create({config}), inside))
"""
)


def test_subinterpreters() -> None:
    """Nothing is merged in one, wherever its global lock is, and the reason is said."""
    config = '"legacy"' if sys.version_info >= (3, 13) else "isolated=False"
    out = procs.python_ok("-W", "ignore", "-c", SUBINTERPRETER.format(config=config)).splitlines()
    assert out[0] == "extension False estimate() works everywhere"
    refusal = "ksmpy merges nothing in a subinterpreter: use it in the main interpreter"
    assert out[1:] == [refusal, refusal, "None"]


OTHER_INTERPRETERS = (
    INTERPRETERS
    + """
import gc
from ksmpy import native
def calls():
    asked = []
    native._looking("ksmpy_look_around", 3)(
        gc.get_objects, lambda: asked.append(1) or {}, ({}, None, None, (), 4096)
    )
    return len(asked), native._looking("ksmpy_call_alone", 1)(lambda: 7)
print(calls())
other = interpreters.create()
print(calls())
interpreters.destroy(other)
print(calls())
"""
)


def test_other_interpreters_are_not_asked() -> None:
    """Neither for frames nor for a count: they change these while they hold their own lock only."""
    assert procs.python_ok("-c", OTHER_INTERPRETERS) == "(1, 7)\n(0, None)\n(1, 7)\n"


BUSY_INTERPRETERS = (
    INTERPRETERS
    + """
import threading, time
from ksmpy import native
from ksmpy.memory import objects
inside = '''
import time
def deep(n):
    held = [(i, [i]) for i in range(300)]
    return deep(n - 1) if n else len(held)
end = time.monotonic() + 3
while time.monotonic() < end:
    deep(50)
    held = [(i, [i]) for i in range(60000)]
    del held
'''
def run():
    other = interpreters.create()
    print(interpreters.run_string(other, inside))
    interpreters.destroy(other)
threads = [threading.Thread(target=run) for _ in range(2)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    for _ in range(50):
        native.allocated_blocks()
        list(objects.named_memory(1 << 20))
    time.sleep(0.001)
"""
)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="subinterpreters share one lock")
def test_busy_interpreters_go_on() -> None:
    """Whatever looks at the objects of this interpreter leaves those of others alone."""
    assert procs.python_ok("-c", BUSY_INTERPRETERS) == "None\nNone\n"


LARGER_PAGES = """
import os
sysconf = os.sysconf
os.sysconf = lambda name: 16384 if name == "SC_PAGE_SIZE" else sysconf(name)
import ksmpy
check = ksmpy.doctor()[-1]
print(check.name, check.ok, check.hint)
try:
    ksmpy.Engine()
except ksmpy.Unsupported as error:
    print(error)
"""


def test_larger_pages() -> None:
    """A kernel with larger pages, as there are for Arm, is refused and named as the reason."""
    check, error = procs.python_ok("-c", LARGER_PAGES).splitlines()
    assert check.startswith("extension False boot a kernel with pages of 4096 bytes")
    assert error == "ksmpy works with pages of 4096 bytes, here they have 16384"


# ---- engine ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"freeze": "mprotect"}, {"tracking": "soft-dirty"}, {"freeze": "AUTO"}]
)
def test_unknown_words(options: dict[str, str]) -> None:
    """Words that Engine does not know are a ValueError that lists those it knows."""
    with pytest.raises(ValueError, match="must be one of auto"):
        ksmpy.Engine(**options)  # type: ignore[arg-type]


def test_forced_modes_are_told(mode: Any) -> None:
    """An engine says how it freezes and tracks; forced ways are taken as they are."""
    with ksmpy.Engine(**mode.options) as engine:
        assert (engine.freeze, engine.tracking) == (mode.freeze, mode.tracking)
        assert mode.freeze in repr(engine)
    assert "closed" in repr(engine)


def test_auto_is_told(auto: Any) -> None:
    """Nobody is told that "auto" was chosen."""
    assert auto.freeze in native.FREEZES[1:]
    assert auto.tracking in native.TRACKINGS[1:]


def test_register(engine: Any) -> None:
    """A region is the whole pages of the buffer, under the name that was given."""
    data = memory.distinct(5)
    region = engine.register(data[100:-100], name="weights")
    assert (region.name, region.pages, region.nbytes) == ("weights", 3, 3 * PAGE)
    assert region.address == memory.address_of(data) + PAGE
    assert "weights" in repr(region)
    assert engine.regions() == (region,)


def test_what_cannot_be_registered(engine: Any) -> None:
    """A refusal is a RegionError and a ValueError with the reason; the engine is as before."""
    data = memory.distinct(8)
    engine.register(data[PAGE : 3 * PAGE], name="there")
    for bad, words in (
        (b"", "empty"),
        (np.zeros(0), "empty"),
        (bytearray(100), "no whole"),
        (data[10 : PAGE + 5], "no whole"),
        (data[::2], "ascontiguousarray"),
        (data, "overlaps the region 'there'"),
        (data[2 * PAGE :], "overlaps the region 'there'"),
    ):
        with pytest.raises(RegionError, match=words):
            engine.register(bad)
    with pytest.raises(ValueError, match="no whole"):
        engine.register(bytearray(100))
    with pytest.raises(TypeError, match="no buffer"):
        engine.register([1, 2, 3])
    assert len(engine.regions()) == 1


def test_two_engines_do_not_share_memory(make_engine: Any) -> None:
    """Memory belongs to one engine at a time."""
    one, two = make_engine(), make_engine()
    data = memory.distinct(4)
    region = one.register(data)
    with pytest.raises(RegionError, match="another engine"):
        two.register(data)
    region.release()
    two.register(data)


def test_an_engine_goes_on_beside_one_that_another_thread_closes(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was among the live ones a moment ago, and had a region there."""
    one, two = make_engine(), make_engine()
    data = memory.distinct(4)
    two.register(data)
    live, overlapping = registry.live, registry.overlapping

    def overlapping_by_then(start: int, end: int) -> Iterator[Region]:
        for region in list(overlapping(start, end)):
            two.close()
            yield region

    monkeypatch.setattr(registry, "overlapping", overlapping_by_then)
    monkeypatch.setattr(registry, "live", lambda: [*live(), two._core])
    region = one.register(data)
    assert one.regions() == (region,)


def test_a_region_ends_with_an_engine_that_another_thread_closes(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that ends it comes too late, and has nothing to complain of."""
    engine = make_engine()
    data = memory.distinct(4)
    bytes_before = data.tobytes()
    region = engine.register(data)
    release = NativeEngine.release

    def release_late(native: NativeEngine, number: int, *, discard: bool) -> None:
        monkeypatch.undo()
        engine.close()
        release(native, number, discard=discard)

    monkeypatch.setattr(NativeEngine, "release", release_late)
    region.release()
    assert repr(region).endswith("released>") and data.tobytes() == bytes_before


def test_scan_counts(engine: Any) -> None:
    """A scan says what it did; the counters agree with the page tables."""
    first = memory.distinct(16)
    second = memory.twin(first)
    regions = engine.register(first), engine.register(second)
    result = engine.scan(eager=True)
    assert (result.merged, result.full, result.lost) == (32, 1, 0)
    assert result.seconds > 0
    stats = engine.stats()
    assert (stats.pages_shared, stats.pages_sharing) == (16, 16)
    assert stats.general_profit == 16 * PAGE - stats.metadata_bytes
    assert stats.saved_bytes == max(0, stats.general_profit)
    spans = [memory.span(first), memory.span(second)]
    assert oracle.true_saved_pages(spans) == 16
    assert [r.stats().merging_pages for r in regions] == [16, 16]
    assert sum(r.stats().saved_pages for r in regions) == 16
    engine._core.check()


def test_scan_waits_a_pass_unless_eager(engine: Any) -> None:
    """Without eager, a page must have been unchanged since the previous pass."""
    first = memory.distinct(4)
    second = memory.twin(first)
    engine.register(first)
    engine.register(second)
    assert engine.scan().merged == 0
    result = engine.scan(2)
    assert result.full == 2
    assert engine.stats().pages_sharing == 4


def test_scan_in_pieces(engine: Any) -> None:
    """max_pages scans at most so many pages, and goes on where it left off."""
    data = memory.distinct(64)
    engine.register(data)
    seen, passes = 0, 0
    for _ in range(64):
        result = engine.scan(max_pages=10)
        assert result.scanned <= 10
        seen += result.scanned
        passes += result.full
        if passes:
            break
    assert (seen, passes) == (64, 1)


@pytest.mark.parametrize("arguments", [(0,), (-1,)])
def test_scan_arguments(auto: Any, arguments: tuple[int]) -> None:
    """At least one pass, at least one page."""
    with pytest.raises(ValueError, match="at least 1"):
        auto.scan(*arguments)
    with pytest.raises(ValueError, match="at least 1"):
        auto.scan(max_pages=arguments[0])


def test_scan_without_regions(engine: Any) -> None:
    """A pass over nothing ends at once."""
    assert engine.scan(3).full == 3


def test_shares_name_the_regions(engine: Any) -> None:
    """Which regions have how many pages in common, most first, themselves included."""
    a = memory.filled([2, 3, 4, 5])
    b = memory.filled([2, 3, 4, 1])
    c = memory.filled([5, 5, 0, 1])
    for name, data in (("a", a), ("b", b), ("c", c)):
        engine.register(data, name=name)
    engine.scan(eager=True)
    shares = {tuple(sorted(share.names)): share.pages for share in engine.shares()}
    assert shares[("a", "b")] == 3
    assert shares[("a", "c")] == 1
    assert shares[("b", "c")] == 1
    pages = [share.pages for share in engine.shares()]
    assert pages == sorted(pages, reverse=True)


def test_region_unmerge(engine: Any) -> None:
    """One region gets its pages back, the other ones stay merged, all stay registered."""
    data = memory.distinct(8)
    arrays = [data, memory.twin(data), memory.twin(data)]
    regions = [engine.register(each) for each in arrays]
    assert engine.scan(eager=True).merged == 24
    regions[0].unmerge()
    assert not oracle.maps_store(regions[0].address, regions[0].nbytes)
    assert oracle.maps_store(regions[1].address, regions[1].nbytes)
    assert engine.stats().pages_sharing == 8
    assert len(engine.regions()) == 3


def test_many_threads_scan(engine: Any) -> None:
    """Several threads may scan at once; every pass ends."""
    data = [memory.distinct(256) for _ in range(2)]
    for each in data:
        engine.register(each)
    threads = [threading.Thread(target=engine.scan, args=(5,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine._core.check()
    assert engine.stats().pages_sharing == 256


# ---- track -------------------------------------------------------------------------------


def test_track(engine: Any) -> None:
    """Every large buffer is registered once; tracking again gives the same regions."""
    arr = pattern(1, 2 * MIB)
    model = {"a": arr, "b": arr[:100], "c": [pattern(2), pattern(3, 1000)]}
    regions = engine.track(model)
    assert sorted(region.pages for region in regions) == [256, 512]
    assert set(engine.track(model)) == set(regions) == set(engine.regions())


def test_track_passes_over_what_cannot_be_merged(engine: Any, tmp_path: Any) -> None:
    """A file-backed array among others is passed over, with its reason."""
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    mapped = np.memmap(path, np.uint8, mode="r")
    objs = [mapped, pattern(4)]
    assert len(engine.track(objs)) == 1
    regions, refused = track_all(engine, objs, min_bytes=MIB)
    assert len(regions) == 1
    assert len(refused) == 1 and "file-backed" in refused[0][1]


def test_track_many_small(engine: Any) -> None:
    """A thousand arrays are registered and merged in one go."""
    arrays = [pattern(i % 10, 2 * PAGE) for i in range(1000)]
    regions = engine.track(arrays, min_bytes=1)
    assert len(regions) == 1000
    # On a busy machine the kernel refuses to move some pages at first, and smart_scan then passes
    # over them for up to eight passes.
    for _ in range(40):
        engine.scan(eager=True)
        if engine.stats().pages_sharing == 2 * 990:
            break
    assert engine.stats().pages_sharing == 2 * 990
    for i, arr in enumerate(arrays):
        assert np.array_equal(arr, pattern(i % 10, 2 * PAGE))


# ---- topology ----------------------------------------------------------------------------


class Halves:
    """A machine whose nodes take turns, page by page."""

    def __init__(self, nodes: tuple[int, ...] = (3, 7)) -> None:
        self.nodes = nodes

    def node_of_pages(self, addresses: Any) -> Any:
        """Even pages on the first node, odd ones on the second."""
        return np.asarray(self.nodes)[(addresses >> np.uint64(12)).astype(int) % len(self.nodes)]


def test_injected_topology(make_engine: Any) -> None:
    """With merge_across_nodes off, equal pages of different nodes stay apart."""
    engine = make_engine(topology=Halves())
    data = memory.filled([2] * 8)
    engine.register(data)
    engine.knobs.merge_across_nodes = 0
    engine.scan(eager=True)
    assert engine.stats().pages_sharing > 0
    frames = oracle.frames_of(*memory.span(data))
    assert None not in frames
    assert not set(frames[0::2]) & set(frames[1::2])
    engine.unmerge()
    engine.knobs.merge_across_nodes = 1
    engine.scan(eager=True)
    assert (engine.stats().pages_shared, engine.stats().pages_sharing) == (1, 7)


@pytest.mark.parametrize(
    ("nodes", "error"),
    [((), ValueError), ((1, 1), ValueError), (tuple(range(33)), ValueError), (("a",), TypeError)],
)
def test_bad_nodes(nodes: Any, error: type[Exception]) -> None:
    """A topology has 1 to 32 different nodes, which are ints."""
    with pytest.raises(error, match=r"topology\.nodes"):
        ksmpy.Engine(topology=Halves(nodes))


@pytest.mark.parametrize(
    "answer",
    [lambda n: np.zeros(n - 1, int), lambda n: np.full(n, 5), lambda n: np.zeros(n)],
    ids=["length", "node", "type"],
)
def test_bad_answers(auto: Any, answer: Any) -> None:
    """What a topology answers is checked before it goes anywhere: at first, and in each pass."""

    class Bad(Halves):
        good = 0

        def node_of_pages(self, addresses: Any) -> Any:
            self.good -= 1
            return super().node_of_pages(addresses) if self.good >= 0 else answer(len(addresses))

    data = memory.distinct(4)
    topology = Bad()
    with ksmpy.Engine(topology=topology) as engine:
        with pytest.raises(ValueError, match="node_of_pages"):
            engine.register(data)
        assert engine.regions() == ()
        topology.good = 1
        engine.register(data)
        with pytest.raises(ValueError, match="node_of_pages"):
            engine.scan()


def test_system_topology() -> None:
    """The machine has a node, and memory that was written lies on one of them."""
    topology = numa.SystemTopology()
    assert isinstance(topology, numa.Topology)
    assert len(topology.nodes) >= 1
    data = memory.distinct(4)
    addresses = memory.address_of(data) + np.arange(4, dtype=np.uint64) * PAGE
    found = topology.node_of_pages(addresses)
    assert set(found.tolist()) <= set(topology.nodes)
    assert numa.parse_list("0-2,5\n") == (0, 1, 2, 5)
    assert numa.parse_list("") == ()


@pytest.fixture
def enabled() -> Iterator[Any]:
    """ksmpy.enable, undone after the test."""
    yield ksmpy.enable
    ksmpy.disable()


# ---- dedup and estimate ------------------------------------------------------------------


def test_dedup() -> None:
    """Equal buffers in any objects are merged now, and stay usable; undo() gives all back."""
    models = [{"w": pattern(1, 4 * MIB), "b": pattern(i + 10)} for i in range(3)]
    report = ksmpy.dedup(*models)
    assert len(report.regions) == 6
    assert report.before_bytes == 15 * MIB
    assert report.stats.pages_sharing == 2 * 4 * MIB // PAGE
    assert 7 * MIB < report.saved_bytes <= 8 * MIB
    assert report.after_bytes == report.before_bytes - report.saved_bytes
    assert "saved" in str(report) and "Report(" in repr(report)
    assert np.array_equal(models[1]["w"], pattern(1, 4 * MIB))
    models[0]["w"][0] ^= 1
    assert np.array_equal(models[1]["w"], pattern(1, 4 * MIB))
    report.undo()
    report.undo()
    assert not any(oracle.maps_store(r.address, r.nbytes) for r in report.regions)


def test_dedup_calls_share_an_engine() -> None:
    """What is given in two calls is merged with all of both; each report says what its call saved,
    and undoes that, except what the other one has too.
    """
    a, b, c = (pattern(8) for _ in range(3))
    first = ksmpy.dedup(a, b)
    second = ksmpy.dedup(b, c)
    assert second.refused == () and len(second.regions) == 2
    spans = {name: memory.span(arr) for name, arr in (("a", a), ("b", b), ("c", c))}
    assert oracle.true_saved_pages(spans.values()) == 512
    assert 0.9 * MIB < second.saved_bytes <= MIB
    first.undo()
    assert oracle.true_saved_pages([spans["b"], spans["c"]]) == 256
    assert not oracle.maps_store(*spans["a"])
    third = ksmpy.dedup(a)
    second.undo()
    second.undo()
    assert not any(oracle.maps_store(*spans[name]) for name in "bc")
    third.undo()
    assert not oracle.store_mappings()
    assert all(np.array_equal(arr, pattern(8)) for arr in (a, b, c))


def test_dedup_uses_the_engine_that_is_enabled(enabled: Any) -> None:
    """With enable() there is one engine: undo() leaves alone what that had registered before."""
    engine = enabled(run=0, adopt=False)
    a, b = pattern(9), pattern(9)
    region = engine.register(a)
    with ksmpy.dedup(a, b) as report:
        assert set(report.regions) == set(engine.regions()) and len(report.regions) == 2
        assert engine.stats().pages_sharing == 256
    assert engine.regions() == (region,) and not engine._core.closed


def test_dedup_in_a_child_begins_anew() -> None:
    """A forked child's dedup() has an engine of its own; its parent's report stays whole."""
    arrays = [pattern(10) for _ in range(2)]
    with ksmpy.dedup(arrays) as report:

        def child() -> None:
            with ksmpy.dedup([pattern(11) for _ in range(2)]) as own:
                assert own.stats.pages_sharing == 256
            report.undo()
            assert all(np.array_equal(arr, pattern(10)) for arr in arrays)

        procs.in_child(child)
        assert oracle.true_saved_pages([memory.span(arr) for arr in arrays]) == 256


def test_dedup_says_why_little_was_saved() -> None:
    """Want of mappings in any pass, data that is not aligned alike, and nothing found: each has a
    line, and buffers refused for one reason have one line together.
    """
    data = pattern(12).tobytes()
    raw = memory.pages(3 * MIB // PAGE)
    shifted = [raw[16 : 16 + MIB], raw[MIB + PAGE + 100 : 2 * MIB + PAGE + 100]]
    for each in shifted:
        each[:] = np.frombuffer(data, np.uint8)
    apart = [memory.twin(each) for each in (raw[:MIB],)]
    objs = {"one": pattern(12), "other": shifted[1]}
    with ksmpy.dedup(objs) as report:
        assert report.saved_bytes == 0
        assert "misaligned: ['o" in str(report) and "ksmpy.copy" in str(report)
    with ksmpy.dedup({"one": pattern(12), "same": pattern(12)}, apart) as report:
        assert report.misaligned == ()
    with ksmpy.dedup(1) as report:
        assert "min_bytes" in str(report)
    with ksmpy.dedup(*(bytearray(10) for _ in range(3)), min_bytes=1) as report:
        assert str(report).count("refused") == 1 and "and 2 more" in str(report)


def test_dedup_counts_the_refusals_of_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that refuses pages is told of though the last one refuses none; of written pages those
    of the last one are, as the first one takes all for written.
    """
    results = [
        ksmpy.ScanResult(merged=1, no_budget=5, volatiles=256),
        ksmpy.ScanResult(no_memory=2, volatiles=7),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(core.Core, "scan", lambda *_, **__: results.pop(0))
        report = ksmpy.dedup(pattern(13))
    with report:
        assert (report.scan.no_budget, report.scan.no_memory) == (5, 2)
        assert "5 pages for want of mappings" in str(report)
        assert "2 pages for want of memory" in str(report)
        assert "7 pages that were being written" in str(report)
    with ksmpy.dedup([pattern(15) for _ in range(2)]) as report:
        assert "left alone" not in str(report)


def test_dedup_as_a_block() -> None:
    """As a context manager the merge ends with the block."""
    arrays = [pattern(2) for _ in range(2)]
    with ksmpy.dedup(arrays) as report:
        assert report.stats.pages_sharing == 256
    assert all(region._released for region in report.regions)


def test_dedup_stays_until_the_objects_die() -> None:
    """Without the report, merged objects stay merged; nothing is left when they are gone."""
    arrays = [pattern(3) for _ in range(2)]
    spans = [memory.span(arr) for arr in arrays]
    ksmpy.dedup(arrays)
    gc.collect()
    assert oracle.true_saved_pages(spans) == 256
    del arrays
    gc.collect()
    assert not oracle.store_mappings()


def test_dedup_zero_pages() -> None:
    """Zero pages that were written go to the kernel's zero page."""
    arr = ksmpy.empty(4 * MIB, np.uint8)
    arr[:] = 0
    with ksmpy.dedup(arr) as report:
        assert report.stats.ksm_zero_pages == 4 * MIB // PAGE
        assert not arr.any()
        arr[5] = 1
        assert arr.sum() == 1


def test_dedup_names_what_it_refused(tmp_path: Any) -> None:
    """Buffers that cannot be merged are in the report with the reason."""
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with ksmpy.dedup(np.memmap(path, np.uint8, mode="r")) as report:
        assert report.regions == () and report.saved_bytes == 0
        assert "file-backed" in report.refused[0][1] and "file-backed" in str(report)


def test_estimate_is_what_dedup_saves() -> None:
    """An estimate counts the pages that dedup then merges, and changes nothing itself."""
    arrays = [pattern(4, 2 * MIB), pattern(4, 2 * MIB), ksmpy.zeros(MIB, np.uint8)]
    arrays[2][:] = 0
    guess = ksmpy.estimate(arrays)
    assert guess.total_pages == 5 * 256
    assert guess.zero_pages == 256
    assert guess.duplicate_pages == 512 + 255
    assert guess.saved_bytes == (512 + 255) * PAGE
    assert sum(buffer.duplicate_pages for buffer in guess.buffers) == guess.duplicate_pages
    assert "MiB" in str(guess)
    with ksmpy.dedup(arrays) as report:
        assert report.stats.pages_sharing == 512
        assert report.stats.ksm_zero_pages == 256


def test_estimate_promises_no_more_than_dedup_saves() -> None:
    """Memory that was never written, or only read, is no saving; nor is what merging finds
    nothing in.
    """
    untouched, read = memory.pages(1024), memory.pages(1024)
    assert not read.any()
    written = ksmpy.zeros(MIB, np.uint8)
    written[:] = 0
    arrays = [untouched, read, written, pattern(6), pattern(6)]
    guess = ksmpy.estimate(arrays)
    with ksmpy.dedup(arrays) as report:
        delivered = report.stats.pages_sharing + report.stats.ksm_zero_pages
    assert guess.zero_pages == report.stats.ksm_zero_pages == 256
    assert 0 < guess.duplicate_pages <= delivered


def test_what_cannot_be_seen_is_said(engine: Any) -> None:
    """track, dedup and estimate report what keeps its memory behind a pointer, by name."""

    class Model:
        def __init__(self) -> None:
            self.handle = ctypes.c_void_p(PAGE)

        def __reduce__(self) -> Any:
            raise AssertionError("serialised")

    objs = {"model": Model(), "weights": pattern(7)}
    regions, refused = track_all(engine, objs, min_bytes=MIB)
    assert len(regions) == 1 and refused[0][0] == "['model']"
    regions[0].release()
    assert ksmpy.estimate(objs).skipped == tuple(refused)
    with ksmpy.dedup(objs) as report:
        assert report.refused == tuple(refused)
        assert "Python cannot see" in str(report)


def test_estimate_leaves_out_what_dedup_would_refuse() -> None:
    """Memory that is merged already counts for nothing, and says so."""
    arrays = [pattern(5) for _ in range(2)]
    with ksmpy.dedup(arrays):
        guess = ksmpy.estimate(arrays)
    assert guess.saved_bytes == 0
    assert len(guess.skipped) == 2


def test_reports_cannot_be_changed(auto: Any) -> None:
    """Figures are frozen records, comparable and picklable."""
    stats = auto.stats()
    with pytest.raises(AttributeError):
        stats.pages_shared = 1
    assert pickle.loads(pickle.dumps(stats)) == stats
    assert ksmpy.ScanResult(scanned=1) + ksmpy.ScanResult(scanned=2, full=1) == ksmpy.ScanResult(
        scanned=3, full=1
    )


# ---- doctor ------------------------------------------------------------------------------


def test_doctor() -> None:
    """Each line has a name and what was found, and a hint where something does not work."""
    checks = ksmpy.doctor()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for wanted in ("userfaultfd", "engine", "mappings", "NUMA", "swap", "kernel KSM", "numpy"):
        assert wanted in names
    for check in checks:
        assert check.detail and (check.ok or check.hint)
    engine = next(check for check in checks if check.name == "engine")
    assert engine.ok and "freeze=" in engine.detail and "tracking=" in engine.detail


# ---- arrays ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [5, (3, 4), (), (0, 7), (100, 200, 3)])
@pytest.mark.parametrize("dtype", [float, np.int8, "M8[s]", "S7", [("a", "i4"), ("b", "f8")]])
def test_arrays_begin_on_a_page(shape: Any, dtype: Any, order: Any) -> None:
    """empty, zeros and copy are numpy's, but for where the data begins."""
    like = np.zeros(shape, dtype, order)
    for arr in (ksmpy.empty(shape, dtype, order), ksmpy.zeros(shape, dtype, order)):
        assert arr.__array_interface__["data"][0] % PAGE == 0
        assert (arr.shape, arr.dtype) == (like.shape, like.dtype)
        assert arr.strides == like.strides or not arr.size
        assert arr.flags.writeable
    assert ksmpy.zeros(shape, dtype, order).tobytes() == like.tobytes()
    copied = ksmpy.copy(like)
    assert copied.tobytes(order) == like.tobytes(order)
    assert copied.strides == like.strides or not like.size


def test_arrays_of_objects_are_refused() -> None:
    """Objects cannot be placed."""
    for make in (lambda: ksmpy.empty(3, object), lambda: ksmpy.copy([None])):
        with pytest.raises(TypeError, match="objects"):
            make()
    with pytest.raises(ValueError, match="negative"):
        ksmpy.empty(-1)


# ---- enable ------------------------------------------------------------------------------


def test_enable_is_idempotent(enabled: Any) -> None:
    """One engine, whose knobs later calls may set; disable() closes it, twice is fine."""
    engine = enabled(sleep_millisecs=5, adopt=False)
    assert engine.knobs.run == 1 and engine.knobs.sleep_millisecs == 5
    assert enabled() is engine
    assert enabled(sleep_millisecs=7, run=0).knobs.asdict()["sleep_millisecs"] == 7
    assert engine.knobs.run == 0
    other = "checksum" if engine.tracking == "wp-async" else "wp-async"
    with pytest.raises(KsmpyError, match="disable"):
        enabled(tracking=other)
    ksmpy.disable()
    ksmpy.disable()
    assert engine._core.closed
    assert enabled(adopt=False) is not engine


def test_enable_refuses_what_it_does_not_know(enabled: Any) -> None:
    """Unknown options and bad values leave nothing enabled."""
    with pytest.raises(TypeError, match="'pages'"):
        enabled(pages=1)
    with pytest.raises(OSError, match="max_page_sharing"):
        enabled(max_page_sharing=1)
    assert enabling._state.present() is None


def test_enable_reads_the_environment(monkeypatch: pytest.MonkeyPatch, enabled: Any) -> None:
    """KSMPY_* variables are defaults, arguments win."""
    monkeypatch.setenv("KSMPY_PAGES_TO_SCAN", "77")
    monkeypatch.setenv("KSMPY_SLEEP_MILLISECS", "78")
    monkeypatch.setenv("KSMPY_TRACKING", "checksum")
    engine = enabled(sleep_millisecs=79, adopt=False)
    assert (engine.knobs.pages_to_scan, engine.knobs.sleep_millisecs) == (77, 79)
    assert engine.tracking == "checksum"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="needs Python 3.13 to look without a trace")
def test_enable_adopts_local_arrays(enabled: Any) -> None:
    """Arrays that only local variables hold are found as well, where that leaves no trace."""
    one, two = pattern(1), pattern(1)
    engine = enabled(adopt="objects")
    until(lambda: engine.stats().pages_sharing >= 255, engine.regions, limit=patience(30))
    del one
    until(lambda: len(engine.regions()) <= 1, engine.regions, limit=patience(30))
    assert np.array_equal(two, pattern(1))


def test_enable_in_a_child(enabled: Any) -> None:
    """A forked child's enable() makes its own engine; the inherited one is let go untouched."""
    arrays = [pattern(2) for _ in range(2)]
    engine = enabled(adopt=False)
    engine.track(arrays)
    engine.scan(eager=True)

    def child() -> None:
        own = ksmpy.enable(adopt=False)
        assert own is not engine
        assert own is ksmpy.enable()
        own.track(arrays)
        own.scan(eager=True)
        assert own.stats().pages_sharing == 256
        assert all(np.array_equal(arr, pattern(2)) for arr in arrays)
        ksmpy.disable()
        assert all(np.array_equal(arr, pattern(2)) for arr in arrays)

    procs.in_child(child)
    assert enabled() is engine
    assert engine.stats().pages_sharing == 256


def worker(seed: int) -> tuple[bool, bool]:
    """What a worker process says of its own engine."""
    engine = ksmpy.enable()
    arrays = [pattern(seed) for _ in range(2)]
    engine.track(arrays)
    engine.scan(eager=True)
    # Arrays of an earlier call may be in the hands of the thread that looks for arrays.
    return engine.stats().pages_sharing >= 256, engine.knobs.run == 1


@pytest.fixture(scope="module")
def helpers() -> None:
    """Helper processes of multiprocessing, started before a test counts descriptors."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_init(helpers: None, method: str) -> None:
    """worker_init is an initializer for pools of every start method."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context, ksmpy.worker_init) as pool:
        assert list(pool.map(worker, range(3))) == [(True, True)] * 3


_WAITS = """
import os, signal, time
import ksmpy
from ksmpy import threads
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
{begin}
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {{signal.SIGUSR2}}
for number in signal.SIGUSR1, signal.SIGRTMIN:
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(0.1)
    print(signal.sigwait([number]) == number)
"""


@pytest.mark.parametrize("hidden", ["", "threads.hide(); "], ids=["threading's", "own"])
@pytest.mark.parametrize(
    "begin",
    ["engine = ksmpy.enable()", "ksmpy.worker_init()", "engine = ksmpy.Engine(); engine.start()"],
)
def test_a_program_may_wait_for_signals(begin: str, hidden: str) -> None:
    """None of our threads takes a signal that the program has blocked in its own, to wait for it,
    and the thread that starts them has the mask that it had.
    """
    done = procs.python("-c", _WAITS.format(begin=hidden + begin))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue\n", "")


@pytest.mark.parametrize("hidden", [False, True])
def test_our_threads_take_the_signals_of_faults(
    hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread brings on itself cannot be put off, and a freeze may need its handler."""
    monkeypatch.setattr(threads, "_hidden", [hidden])
    masks: list[set[Any]] = []
    threads.start(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())), (), "").join()
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
    assert not masks[0] & faults and {signal.SIGINT, signal.SIGTERM, signal.SIGPROF} <= masks[0]


def test_an_interrupt_while_signals_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that comes just then leaves none blocked in the thread that starts one of ours."""
    change = signal.pthread_sigmask
    before = change(signal.SIG_BLOCK, ())

    def interrupted(how: Any, signals: Any) -> Any:
        mask = change(how, signals)
        if how == signal.SIG_BLOCK and signals:
            raise KeyboardInterrupt
        return mask

    with monkeypatch.context() as patch:
        patch.setattr(signal, "pthread_sigmask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            threads.start(print, (), "")
    assert change(signal.SIG_BLOCK, ()) == before


def test_worker_init_ignores_a_worker_id(enabled: Any) -> None:
    """The number that torch's DataLoader passes to a worker is ignored, options are not."""
    ksmpy.worker_init(3, sleep_millisecs=11, adopt=False)
    assert enabled().knobs.sleep_millisecs == 11


def test_worker_init_is_picklable() -> None:
    """Spawned workers get it by pickle."""
    assert pickle.loads(pickle.dumps(ksmpy.worker_init)) is ksmpy.worker_init
    assert "ksmpy" in sys.modules


ENGINE = (
    "register register_range track start stop scan knobs stats unmerge regions shares freeze"
    " tracking close"
)
REGION = "name address nbytes pages stats unmerge release"


def test_an_engine_and_a_region_show_what_users_need_and_no_more(auto: Any) -> None:
    """What the package itself needs of an engine is in no user's way, nor in a completion."""
    region = auto.register(memory.distinct(8))
    for shown, wanted in ((auto, ENGINE), (region, REGION)):
        names = {name for name in dir(shown) if not name.startswith("_")}
        assert names == set(wanted.split())
