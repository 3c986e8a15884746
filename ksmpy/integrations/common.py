"""An engine in each of a program's workers, and the store that they share when nobody names one.

Somebody else starts these workers, and they are to work in any case: where no engine can be made, a
line in the log says why.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

from ksmpy.store.store import Store
from ksmpy.whole.common import common_store
from ksmpy.whole.enable import enable

__all__ = ["chosen_store", "enable_if_can", "enable_on"]

_log = logging.getLogger("ksmpy")


def chosen_store() -> Store | None:
    """A new one without a name, for the children of this process; None where KSMPY_STORE or ksmpy
    run has chosen another, as enable() finds it, and where none can be made.
    """
    if _is_chosen():
        return None
    try:
        return Store.anonymous()
    except OSError as error:
        _log.error("no store for the workers of this process: %s", error)
        return None


def enable_if_can(**options: Any) -> None:
    """enable(); where limits, the store's file or the kernel do not let it make an engine, a line
    in the log says so. Options that cannot be are errors, as with enable().
    """
    try:
        enable(**options)
    except (OSError, MemoryError, RuntimeError) as error:  # Unsupported is a RuntimeError
        if isinstance(error, ValueError) or getattr(error, "errno", None) == errno.EINVAL:
            raise
        _log.error("nothing is merged in process %d: %s", os.getpid(), error)


def enable_on(name: str, options: dict[str, Any]) -> None:
    """enable_if_can() in a worker that has nothing of its parent's: on the store of this name,
    unless the options, KSMPY_STORE or ksmpy run have chosen another.
    """
    if options.get("store") is None and not _is_chosen():
        options = {**options, "store": name}
    enable_if_can(**options)


def _is_chosen() -> bool:
    if os.environ.get("KSMPY_STORE"):
        return True
    found = common_store()
    if found is not None:
        found.close()
    return found is not None
