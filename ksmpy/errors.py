"""The exceptions that ksmpy raises on purpose."""

from __future__ import annotations

__all__ = ["CommandError", "KnobError", "KsmpyError", "RegionError", "StoreError", "Unsupported"]


class KsmpyError(Exception):
    """Base of every error of ksmpy's own; a closed engine raises it as it is."""


class RegionError(KsmpyError, ValueError):
    """A buffer that cannot be merged; the message says why."""


class Unsupported(KsmpyError, RuntimeError):
    """The machine lacks what was asked for; the message says what."""


class KnobError(OSError, ValueError):
    """A value that a knob does not take: `errno` is the kernel's, EINVAL or EBUSY.

    No KsmpyError, as it is no error of ksmpy's own.
    """


class StoreError(KsmpyError, OSError):
    """A store that cannot be opened, used or trusted."""


class CommandError(Exception):
    """A failure that is shown as one line, with a hint at the way out."""

    def __init__(self, message: str, hint: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code
