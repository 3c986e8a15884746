"""Knobs that refuse to change while frames of the old rule are there."""

from __future__ import annotations

import errno
from typing import Any

import pytest


def refused(engine: Any, name: str, value: int) -> None:
    """The write is answered with EBUSY, and changes nothing."""
    before = getattr(engine.knobs, name)
    with pytest.raises(OSError) as caught:
        setattr(engine.knobs, name, value)
    assert caught.value.errno == errno.EBUSY
    assert getattr(engine.knobs, name) == before
    engine.check()


def both_refused(engine: Any) -> None:
    """So it is for each knob that old frames forbid to change."""
    refused(engine, "merge_across_nodes", 1 - engine.knobs.merge_across_nodes)
    refused(engine, "max_page_sharing", engine.knobs.max_page_sharing + 1)
