"""Knobs that refuse a value, or to change while frames of the old rule are there; smart_scan."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

#: What smart_scan makes of a page that is unlike all others, pass by pass, as :func:`visits` says.
LONE_PAGE = "PPPPsPssPssssPssssssssPssssssss"


def refused(engine: Any, name: str, value: int | str, code: int) -> None:
    """The write is answered with an errno, and changes nothing."""
    before = getattr(engine.knobs, name)
    with pytest.raises(OSError) as caught:
        setattr(engine.knobs, name, value)
    assert caught.value.errno == code
    assert getattr(engine.knobs, name) == before
    engine._core.check()


def both_refused(engine: Any) -> None:
    """Old frames forbid to change the knobs that their trees depend on: EBUSY."""
    refused(engine, "merge_across_nodes", 1 - engine.knobs.merge_across_nodes, errno.EBUSY)
    refused(engine, "max_page_sharing", engine.knobs.max_page_sharing + 1, errno.EBUSY)


def visits(scan: Callable[[], object], read: Callable[[], tuple[int, int]]) -> str:
    """What each of some passes does with the only page: P (scanned) or s (skipped).

    `read` tells pages_scanned and pages_skipped.
    """
    done = ""
    for _ in LONE_PAGE:
        before = read()
        scan()
        scanned, skipped = (now - then for now, then in zip(read(), before, strict=True))
        assert scanned + skipped == 1
        done += "P" if scanned else "s"
    return done
