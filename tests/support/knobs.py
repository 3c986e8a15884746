"""Knobs that refuse a value, or to change while frames of the old rule are there."""

from __future__ import annotations

import errno
from typing import Any

import pytest


def refused(engine: Any, name: str, value: int | str, code: int) -> None:
    """The write is answered with an errno, and changes nothing."""
    before = getattr(engine.knobs, name)
    with pytest.raises(OSError) as caught:
        setattr(engine.knobs, name, value)
    assert caught.value.errno == code
    assert getattr(engine.knobs, name) == before
    engine.check()


def both_refused(engine: Any) -> None:
    """Old frames forbid to change the knobs that their trees depend on: EBUSY."""
    refused(engine, "merge_across_nodes", 1 - engine.knobs.merge_across_nodes, errno.EBUSY)
    refused(engine, "max_page_sharing", engine.knobs.max_page_sharing + 1, errno.EBUSY)
