"""What people see and keep: lines under print(), tables in notebooks, pickles of reports."""

from __future__ import annotations

import copy
import html.parser
import logging
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy.engine import core
from support import memory, procs

MIB = 1 << 20


class Balance(html.parser.HTMLParser):
    """Counts what is open, and keeps the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: Counter[str] = Counter()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open[tag] += 1
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] -= 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(what: Any) -> str:
    """The words of a table in a notebook, which must be whole."""
    seen = Balance(what._repr_html_())
    assert not any(seen.open.values()), seen.open
    return "\n".join(seen.words)


def pattern(seed: int) -> Any:
    """A megabyte that is page aligned and all its own."""
    return ksmpy.array(np.random.default_rng(seed).integers(0, 256, MIB, np.uint8))


def test_stats_and_engine_tell_what_is_saved(engine: Any) -> None:
    """The same figures in lines and as a table: saved, merged, mappings; refusals if any."""
    for _ in range(2):
        engine.register(memory.distinct(64, seed=9))
    kept = [memory.distinct(64, seed=9) for _ in range(2)]
    for each in kept:
        engine.register(each)
    engine.scan(eager=True)
    stats = engine.stats()
    assert stats.pages_sharing == 63 or stats.pages_sharing == 64
    for text in (str(stats), shown(stats), str(engine), shown(engine)):
        assert f"{stats.merging_pages} of {stats.registered_pages} pages" in text
        assert "refused" not in text
    assert f"freeze {engine.freeze}, tracking {engine.tracking}" in str(engine)
    assert "Stats(pages_shared=" in repr(stats) and "\n" not in repr(engine)
    engine.close()
    assert str(engine) == repr(engine) and "closed" in shown(engine)


def test_refusals_are_told_of() -> None:
    """Each that is not 0, by its reason."""
    zero = dict.fromkeys(ksmpy.Stats.__dataclass_fields__, 0)
    stats = ksmpy.Stats(**{**zero, "pages_no_budget": 5, "pages_busy": 2})
    assert str(stats).endswith("refused     2 in use for I/O, 5 for want of mappings")


def test_an_inherited_engine_is_not_touched_by_looking() -> None:
    """A child does not come to share the store because somebody prints the engine."""
    with ksmpy.Store.anonymous() as store, ksmpy.Engine(store=store) as engine:

        def child() -> None:
            assert str(engine) == repr(engine) and engine._core.inherited
            assert shown(engine) and engine._core.inherited

        procs.in_child(child)


def test_reports_and_estimates_show_names_as_words() -> None:
    """A name with HTML in it stays words; at most ten buffers are listed, most to gain first."""
    objs = {"<script>1</script>": pattern(1), "<script>2</script>": pattern(1), "small": bytes(10)}
    estimate = ksmpy.estimate(objs, *(pattern(seed) for seed in range(2, 14)))
    text = shown(estimate)
    assert "<script>" in text
    assert "script" not in Balance(estimate._repr_html_()).tags
    assert "and 4 buffers more" in text and str(estimate).splitlines()[0] in text
    with ksmpy.dedup(objs, min_bytes=1) as report:
        text = shown(report)
        assert str(report).splitlines()[0] in text
        assert all(line in text for line in str(report).splitlines())
        assert "refused" in text and report.refused


def test_what_was_refused_has_names() -> None:
    """Refusals are tuples of a name and a reason, and say which is which."""
    with ksmpy.dedup({"tiny": bytearray(10)}, min_bytes=1) as report:
        (refused,) = report.refused
        assert refused.name.endswith("['tiny']") and "whole" in refused.reason
        assert refused == (refused.name, refused.reason)
    (skipped,) = ksmpy.estimate({"tiny": bytearray(10)}, min_bytes=1).skipped
    assert isinstance(skipped, ksmpy.Refused) and skipped.reason == "it holds no whole page"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_report_pickles(protocol: int) -> None:
    """The copy has every figure, and regions that have ended; only the original can be undone."""
    arrays = [pattern(20), pattern(20), bytearray(5000)]
    with ksmpy.dedup(arrays, bytearray(10), min_bytes=1) as report:
        twin = pickle.loads(pickle.dumps(report, protocol))
        assert str(twin) == str(report) and twin.stats == report.stats
        assert twin.scan == report.scan and twin.refused == report.refused
        for copied, region in zip(twin.regions, report.regions, strict=True):
            assert (copied.name, copied.address) == (region.name, region.address)
            assert copied.nbytes == region.nbytes and copied._released
            copied.release()
            with pytest.raises(ksmpy.KsmpyError, match="released"):
                copied.stats()
        for each in (twin, copy.copy(report)):
            with pytest.raises(ksmpy.KsmpyError, match="a copy"):
                each.undo()
        assert report.regions[0]._home.stats().pages_sharing == 256
        assert not any(region._released for region in report.regions)
    assert all(region._released for region in report.regions)


def test_a_pickled_report_is_read_in_another_process(tmp_path: Path) -> None:
    """Where there is no engine, and nobody has made one."""
    with ksmpy.dedup([pattern(21) for _ in range(2)]) as report:
        (tmp_path / "report").write_bytes(pickle.dumps(report))
        code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')))"
        command = [sys.executable, "-c", code, str(tmp_path / "report")]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert told.stdout == f"{report}\n"


def test_a_region_is_a_context_manager(engine: Any) -> None:
    """Merged inside, released with its bytes afterwards, also after an error; not entered again."""
    first = memory.distinct(32)
    second = memory.twin(first)
    engine.register(first)
    wanted = second.tobytes()
    with engine.register(second, name="second") as region:
        engine.scan(eager=True)
        assert engine.stats().pages_sharing == 32 and region.name == "second"
    assert region._released and second.tobytes() == wanted
    assert engine.stats().pages_sharing == 0
    with pytest.raises(ksmpy.KsmpyError, match="released"), region:
        pass
    with pytest.raises(ZeroDivisionError), engine.register(second) as region:
        _ = 1 / 0
    assert region._released
    with engine.register(second) as region:
        region.release()


def test_a_region_that_cannot_be_given_back_stays_merged(
    auto: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a block raises nothing for want of memory, and says so; other errors it does."""
    data = memory.distinct(8)
    with monkeypatch.context() as patch:

        def refuse(number: int) -> Any:
            def release(self: object, region: object) -> None:
                raise OSError(number, os.strerror(number))

            return release

        patch.setattr(core.Core, "release_region", refuse(12))
        with caplog.at_level(logging.WARNING, "ksmpy"), auto.register(data) as region:
            pass
        assert "stays merged until it ends: Cannot allocate memory" in caplog.text
        assert not region._released
        patch.setattr(core.Core, "release_region", refuse(16))
        with pytest.raises(OSError, match="busy"), region:
            pass
    region.release()


# ---- arrays ----------------------------------------------------------------------------------


def aligned(made: np.ndarray) -> bool:
    """Whether the data begins a page, and may be written."""
    return made.ctypes.data % 4096 == 0 and made.flags.writeable and type(made) is np.ndarray


@pytest.mark.parametrize("order", ["K", "A", "C", "F"])
@pytest.mark.parametrize(
    "prototype",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        np.asfortranarray(np.arange(24, dtype=np.int16).reshape(4, 6)),
        np.arange(24)[::-2],
        np.broadcast_to(np.float32(1), (3, 5)),
        np.zeros((0, 3)),
        np.array(5),
        np.ma.array([[1, 2], [3, 4]]),
        np.array([(1, 2.0)], dtype="i4,f8"),
    ],
    ids=lambda each: f"{each.dtype}{each.shape}",
)
def test_like_and_array_are_numpys(prototype: Any, order: Any) -> None:
    """Shape, dtype and strides are what numpy makes of it, on a page's beginning."""
    made = ksmpy.empty_like(prototype, order=order)
    model = np.empty_like(prototype, order=order, subok=False)
    assert aligned(made)
    assert (made.shape, made.dtype, made.strides) == (model.shape, model.dtype, model.strides)
    made = ksmpy.array(prototype, order=order)
    assert aligned(made) and np.array_equal(made, prototype)
    if order != "A":
        assert made.strides == np.array(prototype, order=order, subok=False).strides
    assert not np.shares_memory(made, prototype)


def test_arrays_of_other_things() -> None:
    """Lists, scalars and other dtypes; a shape of one's own; what full() makes of a value."""
    assert aligned(ksmpy.array([1, 2, 3])) and ksmpy.array([1, 2]).dtype == np.array([1, 2]).dtype
    assert ksmpy.array([1.7, 2], np.int8).tolist() == [1, 2]
    assert ksmpy.array(["a", "bcd"]).dtype == "U3" and ksmpy.array([1, 22], "U").dtype.char == "U"
    assert ksmpy.empty_like([1.0], np.int8, shape=(2, 3)).shape == (2, 3)
    for value, dtype in ((7, None), (7.5, None), (7, np.uint8), ([1, 2], None), (True, None)):
        made, model = ksmpy.full((3, 2), value, dtype), np.full((3, 2), value, dtype)
        assert aligned(made) and made.dtype == model.dtype and np.array_equal(made, model)
    assert ksmpy.full((3, 2), 0, order="F").flags.f_contiguous
    assert ksmpy.copy(np.zeros((2, 3, 4)).transpose(1, 2, 0)).strides == (32, 8, 96)


def test_arrays_refuse_objects() -> None:
    """Memory that holds Python's pointers is not placed."""
    for make in (
        lambda: ksmpy.full(3, None),
        lambda: ksmpy.array([None, {}]),
        lambda: ksmpy.empty_like([object()]),
    ):
        with pytest.raises(TypeError, match="Python objects"):
            make()
    with pytest.raises(OverflowError):
        ksmpy.full(3, 300, np.uint8)
