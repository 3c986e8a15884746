"""Errors at chosen places of ksmpy's code: each place where the handler of a signal may raise."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import ksmpy

_PACKAGE = str(Path(ksmpy.__file__).parent)


class Error:
    """Raises an error at the nth such place that is come by in the block: where a function begins
    or returns, and after a call of one in C, whose result is lost then. (The interpreter also looks
    for signals where loops begin anew.)
    """

    def __init__(self, nth: int, error: type[BaseException]) -> None:
        self._left = nth
        self._error = error

    @property
    def raised(self) -> bool:
        """Whether there were so many places."""
        return self._left == 0

    def __enter__(self) -> Error:
        self._before = sys.getprofile()
        sys.setprofile(self._come_by)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> bool:
        sys.setprofile(self._before)
        return kind is self._error

    def _come_by(self, frame: FrameType, event: str, argument: Any) -> None:
        place = event in ("call", "return", "c_return")
        if place and self._left > 0 and frame.f_code.co_filename.startswith(_PACKAGE):
            self._left -= 1
            if self._left == 0:
                raise self._error
