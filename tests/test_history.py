"""What an engine notes of itself, and what of that can be read from outside."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ksmpy
from ksmpy.engine import history
from ksmpy.engine.engine import core_of
from ksmpy.engine.history import FILE_NAME, History, read_past
from ksmpy.watch.past import pasts
from support import memory, oracle
from support.descriptors import no_free_descriptor
from support.patience import until
from support.procs import in_child
from test_cli import needs_engine

pytestmark = needs_engine

COUNTERS = {"merging_pages": 3, "ksm_zero_pages": 1, "vmas": 100}


def descriptors() -> list[int]:
    """Those on histories."""
    names = Path("/proc/self/fd")
    return [
        int(entry.name)
        for entry in names.iterdir()
        if entry.is_symlink() and os.readlink(entry).startswith(FILE_NAME)
    ]


def merged(engine: ksmpy.Engine) -> tuple[object, object]:
    """Two equal buffers that have come to share."""
    one = memory.distinct(64)
    other = memory.twin(one)
    engine.register(one, name="one")
    engine.register(other, name="other")
    engine.scan(eager=True)
    return one, other


def test_a_scan_is_noted_and_the_end_of_the_engine_ends_it() -> None:
    """Figures, names and modes of the engine; nothing is left open."""
    before = descriptors()
    with ksmpy.Engine() as engine:
        kept = merged(engine)
        (past,) = pasts(os.getpid())
        (sample,) = past.samples
        assert sample.merged == 128 * 4096 and sample.pss > 0 < sample.rss and sample.mappings > 10
        assert sample.saved == engine.stats().saved_bytes
        names = {name for _, _, name in past.facts["regions"]}  # type: ignore[attr-defined]
        assert names == {"one", "other"} and past.facts["freeze"] == engine.freeze
        assert len(kept) == 2
    assert descriptors() == before == []


def test_a_scan_that_outlives_its_engine_notes_nothing() -> None:
    """A thread that has its counters when another closes the engine opens no file after that."""
    with ksmpy.Engine() as engine:
        kept = merged(engine)
        past = core_of(engine).history
    past.note(COUNTERS, lambda: 0, list, {})
    assert descriptors() == [] and len(kept) == 2


def test_an_engine_that_nobody_has_any_more_leaves_nothing() -> None:
    """Its regions ended with their owners, and it with its last reference."""
    engine = ksmpy.Engine()
    kept = merged(engine)
    assert descriptors()
    del kept
    engine.scan()
    assert not engine.regions()
    del engine
    assert descriptors() == []


def test_samples_come_at_most_once_a_second_and_cost_a_thousandth() -> None:
    """A second scan right away notes nothing; the next is due by what the last has cost."""
    with ksmpy.Engine() as engine:
        kept = merged(engine)
        noted = core_of(engine).history
        assert not noted.due()
        for _ in range(5):
            engine.scan()
        assert len(pasts(os.getpid())[0].samples) == 1 and kept


def test_a_forked_child_has_no_history_of_its_parents() -> None:
    """It neither shows it as its own nor writes to it."""
    with ksmpy.Store.anonymous() as store, ksmpy.Engine(store=store) as engine:
        kept = merged(engine)
        (before,) = pasts(os.getpid())

        def child() -> None:
            assert pasts(os.getpid()) == []
            engine.scan()  # it becomes the child's own
            (mine,) = pasts(os.getpid())
            assert mine.pid == os.getpid() and len(mine.samples) == 1

        in_child(child)
        assert pasts(os.getpid()) == [before] and kept


def test_regions_that_end_are_told_of_until_the_next_sample() -> None:
    """As many as there is room for; then that there were more. A child's are not the parent's."""
    listed = [(number << 12, 4096, "name") for number in range(1, 400)]
    noted = History()

    def left() -> tuple[int, object]:
        (past,) = pasts(os.getpid())
        regions: Any = past.facts["regions"]
        return len(regions), past.facts["more_ended"]

    noted.note(COUNTERS, lambda: 0, lambda: listed, {})
    try:
        assert left() == (399, False)
        in_child(lambda: noted.ended(1 << 12, 4096))
        noted.ended(2 << 12, 8192)
        assert left() == (399, False)
        for number in range(1, 201):
            noted.ended(number << 12, 4096)
        assert left() == (199, False)
        for number in range(201, 400):
            noted.ended(number << 12, 4096)
        count, more = left()
        assert more and count > 0
        noted._due = 0.0
        noted.note(COUNTERS, lambda: 0, lambda: listed[:3], {})
        assert left() == (3, False)
    finally:
        noted.close()


def test_a_child_that_is_told_nothing_shows_nothing() -> None:
    """It has the descriptor of its parent's, whose number is in it."""
    noted = History()
    noted.note(COUNTERS, lambda: 0, list, {})
    try:

        def child() -> None:
            assert descriptors() and pasts(os.getpid()) == []

        in_child(child)
        assert pasts(os.getpid())
    finally:
        noted.close()


def test_files_with_the_descriptors_number_are_not_touched(tmp_path: Path) -> None:
    """The program closes the descriptor, opens a file that gets its number, and the engine ends."""
    noted = History()
    noted.note(COUNTERS, lambda: 0, list, {})
    (number,) = descriptors()
    os.close(number)
    path = tmp_path / "mine"
    path.write_bytes(b"mine" * 5000)
    mine = os.open(path, os.O_RDWR)
    if mine != number:
        os.dup2(mine, number)
    noted._due = 0.0
    noted.note(COUNTERS, lambda: 0, list, {})
    noted.close()
    assert path.read_bytes() == b"mine" * 5000
    os.fstat(number)  # still open
    for each in {mine, number}:
        os.close(each)


def test_what_enable_left_out_is_told() -> None:
    """What the last look has found; nothing of it where there are no looks."""
    ksmpy.enable(run=False, min_bytes=1 << 20)
    try:
        engine = ksmpy.enable()
        until(lambda: ksmpy.coverage() is not None, "no look")
        kept = merged(engine)
        (past,) = pasts(os.getpid())
        told = past.facts["coverage"]
        assert isinstance(told, dict) and "left" in told and told["found_bytes"] >= 0 and kept
        core_of(engine).history._due = 0.0
        ksmpy.disable()
        ksmpy.enable(run=False, adopt=False)
        kept = merged(ksmpy.enable())
        assert "coverage" not in pasts(os.getpid())[0].facts and kept
    finally:
        ksmpy.disable()


def test_it_is_bounded_whatever_there_is_to_note() -> None:
    """Thousands of samples and long names: the first sample and the last are there, in 64 KiB."""
    noted = History()
    regions = [(address << 20, 1 << 20, "ü" * 500) for address in range(5000)]
    try:
        for number in range(3 * history._SAMPLES):
            noted._take({**COUNTERS, "vmas": number}, number)
        noted.note({**COUNTERS, "vmas": 7}, lambda: 7, lambda: regions, {})
        (past,) = pasts(os.getpid())
        assert history._SAMPLES // 2 <= len(past.samples) <= history._SAMPLES
        assert past.samples[0].mappings == 0 and past.samples[-1].mappings == 7
        assert [each.time for each in past.samples] == sorted(each.time for each in past.samples)
        listed = past.facts["regions"]
        assert isinstance(listed, list) and 0 < len(listed) < 5000
        assert past.facts["unlisted"] == 5000 - len(listed)
        (number,) = descriptors()
        assert os.fstat(number).st_size == 64 << 10
    finally:
        noted.close()


def test_facts_without_end_are_left_out() -> None:
    """Thousands of paths in them: the rest is told, and nothing else is written over."""
    noted = History()
    noted.facts = lambda: {"coverage": {"left": [["x" * 100, 1]] * 1000}}
    try:
        noted.note(COUNTERS, lambda: 0, lambda: [(4096, 4096, "name")], {"fact": 1})
        (past,) = pasts(os.getpid())
        assert "coverage" not in past.facts and past.facts["fact"] == 1
        assert past.facts["regions"] == [[4096, 4096, "name"]]
        assert noted._file is not None
        with pytest.raises(OSError):
            noted._file.write(8, bytes(64 << 10))
    finally:
        noted.close()


@pytest.mark.parametrize("at", [0, 8, 20, 30, 5000])
def test_what_is_damaged_or_half_written_is_not_read(at: int) -> None:
    """A byte that differs, wherever it is."""
    noted = History()
    noted.note(COUNTERS, lambda: 0, lambda: [(4096, 4096, "name")], {"fact": "x" * 3000})
    try:
        (number,) = descriptors()
        data = bytearray(os.pread(number, 1 << 17, 0))
        assert read_past(bytes(data)) is not None
        data[at] ^= 1
        changed = read_past(bytes(data))
        assert changed is None or (at == 20 and changed.birth)  # whose it is, is compared elsewhere
    finally:
        noted.close()


def test_without_descriptors_an_engine_does_without(tmp_path: Path) -> None:
    """Nothing is raised, and nothing noted."""
    noted = History()
    with no_free_descriptor():
        noted.note(COUNTERS, lambda: 0, list, {})
    assert descriptors() == [] and np.pi


def test_a_file_that_is_closed_twice_takes_nothing_else_away() -> None:
    """Ctrl-C may come in the middle of closing, which is done again: who is at its place stays."""
    file = history._File()
    address = file._address
    file.close()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    size, at = ctypes.c_size_t(oracle.PAGE), ctypes.c_void_p(address)
    place = libc.mmap(at, size, mmap.PROT_READ, flags, -1, ctypes.c_long(0))
    file.close()
    assert oracle.overlapping(place, oracle.PAGE)
    libc.munmap(ctypes.c_void_p(place), size)
    assert place == address
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(0, b"late")
