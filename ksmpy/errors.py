"""The exceptions that ksmpy raises on purpose."""

from __future__ import annotations

__all__ = ["KnobError", "KsmpyError", "RegionError", "StoreError", "Unsupported"]


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
