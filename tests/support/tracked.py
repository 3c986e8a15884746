"""What Engine.track() does not say."""

from __future__ import annotations

from ksmpy import Engine, Region
from ksmpy.engine.engine import core_of
from ksmpy.memory.traverse import find_buffers


def track_all(
    engine: Engine, obj: object, *, min_bytes: int
) -> tuple[list[Region], list[tuple[str, str]]]:
    """As Engine.track(); also (name, reason) of what was passed over."""
    found, hidden = find_buffers((obj,), min_bytes)
    regions, refused = core_of(engine).track(found)
    return regions, hidden + refused
