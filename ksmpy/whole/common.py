"""The store that `ksmpy run` has made for all processes below it."""

from __future__ import annotations

import logging
import os

from ksmpy.errors import KsmpyError
from ksmpy.store.store import Store

__all__ = ["FOLLOW", "common_store"]

_log = logging.getLogger("ksmpy")

# The environment variable that tells a process of the common store: where to open the descriptor of
# the one that the supervisor made, or "named" if KSMPY_STORE names one.
FOLLOW = "KSMPY_FOLLOW"


def common_store() -> Store | None:
    """The store that the supervisor made for all below it; None without one, or when it is gone.

    Or when this process is another user's, or has less rights than the supervisor.
    """
    place = os.environ.get(FOLLOW, "")
    if not place.startswith("/proc/"):
        return None
    try:
        fd = os.open(place, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        _log.debug("no store to share with the other processes: %s", error)
        return None
    try:
        return Store.from_fd(fd)
    except KsmpyError as error:
        _log.debug("no store to share with the other processes: %s", error)
        return None
    finally:
        os.close(fd)
