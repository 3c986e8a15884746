"""Memory that lay on huge pages before it was merged does so afterwards, and when it comes back.

Where the machine has no huge page to give the same holds of small ones: nothing here needs them,
but what is said of them is only asked where they are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy import native
from support import memory, oracle
from support.memory import HUGE, Bytes

PAGE = oracle.PAGE
HUGE_BYTES = HUGE * PAGE


def _kib(name: str, *arrays: Bytes) -> int:
    """What smaps says of the mappings of arrays, in KiB; of nothing else that lies in them."""
    spans = [memory.span(array) for array in arrays]
    return sum(
        int(fields[name][0])
        for mapping, fields in oracle.details()
        if any(mapping.overlaps(*span) for span in spans)
    )


def _mapped_huge(*arrays: Bytes) -> int:
    return (_kib("ShmemPmdMapped", *arrays) + _kib("FilePmdMapped", *arrays)) // (HUGE_BYTES >> 10)


def _read(*arrays: Bytes) -> int:
    return sum(int(array[::PAGE].sum()) for array in arrays)


def _whole(engine: Any, huge_pages: int) -> int:
    """Of a region's: its first page goes away for a moment where pages may be missing."""
    return huge_pages - (engine.freeze in ("uffd-move", "uffd-remap"))


@pytest.fixture
def pair() -> Iterator[tuple[Bytes, Bytes]]:
    """Two equal arrays of three huge pages each, in step with each other."""
    one, other = memory.huge_pages(3 * HUGE), memory.huge_pages(3 * HUGE)
    one[:] = np.random.default_rng(5).integers(0, 256, one.nbytes, dtype=np.uint8)
    other[:] = one
    yield one, other


def _needs_huge_pages(*arrays: Bytes) -> None:
    if native.try_huge_frames():
        pytest.skip("no huge pages for frames are to be had here")
    if any(_kib("AnonHugePages", array) < array.nbytes >> 10 for array in arrays):
        pytest.skip("the machine gave small pages")


def _merge(engine: Any, *arrays: Bytes) -> None:
    for array in arrays:
        engine.register(array)
    engine.scan(eager=True)
    pages = sum(array.nbytes // PAGE for array in arrays)
    assert engine.stats().merging_pages == pages


def test_what_was_on_huge_pages_is_merged_on_huge_pages(
    engine: Any, pair: tuple[Bytes, Bytes]
) -> None:
    """Both sharers of a huge page are mapped by one entry for it, over passes too."""
    _needs_huge_pages(*pair)
    want = pair[0].copy()
    _merge(engine, *pair)
    assert engine.stats().huge_frames == 3 * HUGE
    _read(*pair)
    mapped = _mapped_huge(pair[0]), _mapped_huge(pair[1])
    assert min(mapped) >= _whole(engine, 3)
    engine.scan(3)
    assert (_mapped_huge(pair[0]), _mapped_huge(pair[1])) == mapped
    assert all(np.array_equal(array, want) for array in pair)


def test_what_nobody_reads_is_not_resident(engine: Any, pair: tuple[Bytes, Bytes]) -> None:
    """After a merge onto huge pages the process is smaller by what it merged, until it is read."""
    _needs_huge_pages(*pair)
    before = _kib("Rss", *pair)
    _merge(engine, *pair)
    assert _kib("Rss", *pair) < before // 8
    _read(*pair)
    assert _kib("Rss", *pair) <= before


def test_what_comes_back_lies_on_huge_pages(engine: Any, pair: tuple[Bytes, Bytes]) -> None:
    """Unmerged memory has its huge pages again, whether it was written meanwhile or not."""
    _needs_huge_pages(*pair)
    if engine.freeze == "signal":
        pytest.skip("without a userfaultfd memory comes back on small pages")
    _merge(engine, *pair)
    pair[0][5 * PAGE] ^= 1
    want = [array.copy() for array in pair]
    engine.unmerge()
    assert _kib("AnonHugePages", *pair) == 2 * pair[0].nbytes >> 10
    assert all(np.array_equal(*both) for both in zip(pair, want, strict=True))


def test_a_write_splits_what_it_must(engine: Any, pair: tuple[Bytes, Bytes]) -> None:
    """Who writes into one page loses the entry of that huge page only; who shares it loses none."""
    _needs_huge_pages(*pair)
    _merge(engine, *pair)
    _read(*pair)
    pair[0][HUGE_BYTES + 7 * PAGE] ^= 1
    want = [array.copy() for array in pair]
    for _ in range(2):
        assert 2 >= _mapped_huge(pair[0]) >= _whole(engine, 2)
        assert 3 >= _mapped_huge(pair[1]) >= _whole(engine, 3)
        engine.scan(2)
    assert engine.stats().pages_sharing == 3 * HUGE - 1
    assert all(np.array_equal(*both) for both in zip(pair, want, strict=True))


def test_spare_memory_is_counted_and_bounded(engine: Any, pair: tuple[Bytes, Bytes]) -> None:
    """A freed frame of a huge page keeps its memory, which no figure hides, up to an eighth."""
    _needs_huge_pages(*pair)
    _merge(engine, *pair)
    for few in (20, 400):
        for seed, array in enumerate(pair):
            words = array.view(np.uint64)[: few * PAGE // 8 : PAGE // 8]
            words[:] = np.random.default_rng(few + seed).integers(1 << 60, size=few)
        engine.scan(2)
        engine.stats()
        stats = engine.stats()
        assert stats.spare_frames * 8 <= stats.pages_shared + stats.pages_unshared
        frames = stats.frame_bytes // PAGE - stats.spare_frames
        assert frames == stats.pages_shared + stats.stale_frames == 3 * HUGE - few
        assert (stats.spare_frames > 0) == (few == 20)
        assert oracle.store_bytes() == stats.frame_bytes
        gained = stats.pages_sharing + stats.ksm_zero_pages - stats.spare_frames
        assert stats.general_profit == gained * PAGE - stats.metadata_bytes
    engine.unmerge()
    assert engine.stats().frame_bytes == 0 == engine.stats().spare_frames


def test_processes_share_huge_pages(
    make_engine: Any, store: Any, pair: tuple[Bytes, Bytes]
) -> None:
    """Frames of a named store lie on huge pages as well, for every process that is in step."""
    _needs_huge_pages(*pair)
    one, other = make_engine(store=store), make_engine(store=store)
    one.register(pair[0])
    other.register(pair[1])
    for engine in (one, other) * 2:
        engine.scan(eager=True)
    assert store.stats().pages_sharing == 3 * HUGE == store.stats().huge_frames
    _read(*pair)
    assert min(_mapped_huge(pair[0]), _mapped_huge(pair[1])) >= _whole(one, 3)
    assert np.array_equal(*pair)
    one.unmerge()
    assert store.stats().huge_frames == 3 * HUGE
    other.unmerge()
    assert store.stats().frame_bytes == 0
    assert np.array_equal(*pair)


@pytest.mark.parametrize("make", [ksmpy.empty, ksmpy.zeros])
def test_big_arrays_are_in_step(make: Any) -> None:
    """Arrays of 4 MiB and more that ksmpy makes begin where a huge page does."""
    big, small = make(2 * HUGE_BYTES, np.uint8), make(2 * HUGE_BYTES - 1, np.uint8)
    assert memory.address_of(big) % HUGE_BYTES == 0 == memory.address_of(small) % PAGE
    assert big.base.nbytes == 3 * HUGE_BYTES
    assert small.base.nbytes == 2 * HUGE_BYTES - 1 + PAGE


_WITHOUT = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
import ksmpy
from ksmpy import native
from support import memory
one = memory.huge_pages(1024)
one[:] = memory.distinct(1024)
other = memory.twin(one)
assert native.try_huge_frames() != 0
with ksmpy.Engine() as engine:
    engine.register(one)
    engine.register(other)
    engine.scan(eager=True)
    stats = engine.stats()
    assert (stats.pages_sharing, stats.huge_frames, stats.spare_frames) == (1024, 0, 0), stats
    engine._core.check()
check = next(check for check in ksmpy.doctor() if check.name == "merged memory on huge pages")
assert check.ok and check.detail.startswith("no: "), check
"""


def test_without_huge_pages_everything_merges_all_the_same() -> None:
    """A process that may have no huge pages merges onto small ones, and doctor() says why."""
    tests = str(oracle.__file__).rsplit("/", 2)[0]
    subprocess.run([sys.executable, "-c", _WITHOUT, tests], check=True, timeout=120)
