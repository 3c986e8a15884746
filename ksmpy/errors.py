"""The exceptions that ksmpy raises on purpose."""

from __future__ import annotations

__all__ = ["KsmpyError", "RegionError", "StoreError", "Unsupported"]


class KsmpyError(Exception):
    """Base of every error of ksmpy's own; a closed engine raises it as it is."""


class RegionError(KsmpyError, ValueError):
    """A buffer that cannot be merged; the message says why."""


class Unsupported(KsmpyError, RuntimeError):
    """The machine lacks what was asked for; the message says what."""


class StoreError(KsmpyError, OSError):
    """A store that cannot be opened, used or trusted."""
