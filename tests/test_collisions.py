"""Pages of one checksum, as whoever knows a store's key can make them: slower, never wrong."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from ksmpy import native
from support import memory
from support.collide import colliding, known_key
from support.oracle import PAGE
from support.patience import patience

pytestmark = pytest.mark.timeout(120)

#: Compared each with each they take 20 seconds here.
MANY = 16384


def test_the_pages_collide() -> None:
    """They are different, and have one checksum."""
    pages = [bytes(page) for page in colliding(100).reshape(100, PAGE)]
    assert len(set(pages)) == 100
    assert len({native.checksum(page) for page in pages}) == 1


def test_many_pages_of_one_checksum_keep_nobody_waiting(make_engine: Any) -> None:
    """A pass over them ends soon, and who wants counters meanwhile does not wait for its end."""
    with known_key():
        engine = make_engine()
    array = colliding(MANY)
    wanted = array.tobytes()
    engine.register(array)
    waits, used = [], time.process_time()
    scan = threading.Thread(target=lambda: engine.scan(2, eager=True))
    begin = time.monotonic()
    scan.start()
    while scan.is_alive():
        asked = time.monotonic()
        engine.stats()
        waits.append(time.monotonic() - asked)
    lasted = time.monotonic() - begin
    assert time.process_time() - used < patience(6)
    assert max(waits) < max(patience(2), lasted / 2)  # a busy machine gives neither thread its turn
    assert array.tobytes() == wanted
    engine._core.check()


def test_equal_ones_among_them_merge(make_engine: Any) -> None:
    """A few dozen are compared, so that some find their equal; no byte is wrong, whichever do."""
    with known_key():
        engine = make_engine()
    one = colliding(100)
    two = memory.twin(one)
    wanted = one.tobytes()
    for array in (one, two):
        engine.register(array)
    engine.scan(3, eager=True)
    assert engine.stats().pages_sharing >= 16
    assert one.tobytes() == wanted == two.tobytes()
    two[PAGE - 1 :: PAGE] ^= 1
    assert one.tobytes() == wanted
    engine.unmerge()
    assert one.tobytes() == wanted
    engine._core.check()


def test_others_of_its_checksum_in_a_stretch_stay_what_they_are(make_engine: Any) -> None:
    """A stretch of equal pages goes by the checksum; when all are frozen the others are found."""
    with known_key():
        engine = make_engine()
    stretch, others = colliding(2).reshape(2, PAGE)
    array = memory.pages(96)
    pages = array.reshape(96, PAGE)
    pages[:] = stretch
    pages[40:50] = pages[70] = others
    wanted = array.tobytes()
    engine.register(array)
    for _ in range(3):
        engine.scan(eager=True)
        assert array.tobytes() == wanted
    assert engine.stats().pages_sharing >= 96 - 11 - 1
    pages[40, -1] ^= 1
    assert pages[39].tobytes() == stretch.tobytes() and pages[41].tobytes() == others.tobytes()
    pages[40, -1] ^= 1
    engine.unmerge()
    assert array.tobytes() == wanted
    engine._core.check()
