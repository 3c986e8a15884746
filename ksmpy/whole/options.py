"""What enable() and the commands can be told: the options, and the KSMPY_* environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ksmpy.engine.knobs import ADVISOR_MODES, KNOBS
from ksmpy.native import FREEZES, TRACKINGS

__all__ = ["OPTIONS", "UNSET", "environment"]


class _Unset:
    """Stands for an argument that was not given, where None is one that can be."""

    def __repr__(self) -> str:
        return "<default>"


UNSET: Any = _Unset()

OPTIONS: dict[str, tuple[str, ...] | type[int] | type[str]] = {
    "freeze": FREEZES,
    "tracking": TRACKINGS,
    "store": str,
    "min_bytes": int,
    "adopt": ("mappings", "objects", "all", "0", "1"),
    "advisor_mode": ADVISOR_MODES,
    **dict.fromkeys(KNOBS, int),
}


def environment(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The options that KSMPY_* variables set, as enable() and the commands take them.

    KSMPY_FREEZE, KSMPY_TRACKING, KSMPY_STORE, KSMPY_MIN_BYTES, KSMPY_ADOPT, and each knob's name
    in capitals as in KSMPY_PAGES_TO_SCAN. Raises ValueError naming the variable for a value that
    cannot be.
    """
    found: dict[str, Any] = {}
    for option, kind in OPTIONS.items():
        variable = f"KSMPY_{option.upper()}"
        text = env.get(variable, "").strip()
        if text:
            found[option] = _parse(variable, text, kind)
    return found


def _parse(variable: str, text: str, kind: tuple[str, ...] | type[int] | type[str]) -> int | str:
    if isinstance(kind, tuple):
        if text not in kind:
            raise ValueError(f"{variable}={text!r}: must be one of {', '.join(kind)}")
        return text
    if kind is str:
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{variable}={text!r}: must be a whole number") from None
