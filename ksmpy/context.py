"""Ends of blocks: what is a context manager here, and what becomes of errors at its end."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType

__all__ = ["Ending", "unless_scarce"]


class Ending:
    """A context manager's end: _leave(), whatever the block has raised."""

    __slots__ = ()

    def _leave(self) -> None:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()


def unless_scarce(give_back: Callable[[], None], say: Callable[[str], None]) -> None:
    """Give pages back where nobody can act on an error: without memory for them they stay merged,
    and right, and `say` is called with the system's words. Other errors are raised.
    """
    try:
        give_back()
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        say(error.strerror or "")
