"""The engine of a process that `ksmpy run` has started, and that has not asked for one."""

from __future__ import annotations

import logging

from ksmpy import native, threads
from ksmpy.engine import notices, registry
from ksmpy.whole.enable import enable_unasked, enabled_engine, stop_adopting

__all__ = ["begin", "end"]

_log = logging.getLogger("ksmpy")
# Python prints warnings to stderr where nobody has said what is to become of them.
_log.addHandler(logging.NullHandler())


def _unnoted(_: logging.LogRecord) -> bool:
    threads.forget_current()
    return True


_log.addFilter(_unnoted)
if enabled_engine() is None:
    notices.keep_apart()


def begin(package_bytes: int = 0) -> bool:
    """enable() on the common store, or go on with an inherited engine; whether there is one now.
    `package_bytes`: the memory that importing ksmpy took here.

    The program does not know, so it hears of no failure either.
    """
    threads.hide()
    try:
        return enable_unasked(package_bytes)
    except Exception as error:
        _log.debug("this process is left alone: %s", error)
        return False


def end() -> None:
    """Do what exit handlers do: those that begin() registers are not called when it is late."""
    stop_adopting()
    registry.stop_all()
    native.interpreter_ends()
