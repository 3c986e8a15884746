"""The store that `ksmpy run` has made for all processes below it."""

from __future__ import annotations

import errno
import logging
import os

from ksmpy.errors import KsmpyError
from ksmpy.store.store import Store

__all__ = ["FOLLOW", "common_store", "place_of"]

_log = logging.getLogger("ksmpy")

# The environment variable that tells a process of the common store: where to open the descriptor of
# the one that the supervisor made, and which file that is, or "named" if KSMPY_STORE names one.
FOLLOW = "KSMPY_FOLLOW"


def place_of(store: Store) -> str:
    """What a process below this one finds a store without a name by."""
    return f"/proc/{os.getpid()}/fd/{store.fileno()}:{_identity(os.fstat(store.fileno()))}"


def _identity(info: os.stat_result) -> str:
    return f"{info.st_dev}:{info.st_ino}"


def common_store() -> Store | None:
    """The store that the supervisor made for all below it; None without one, or when it is gone.

    Or when this process is another user's, or has less rights than the supervisor.
    """
    place, _, identity = os.environ.get(FOLLOW, "").partition(":")
    if not place.startswith("/proc/"):
        return None
    try:
        fd = _open(place, identity)
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


def _open(place: str, identity: str) -> int:
    """The descriptor of that very file. By now the supervisor may have ended, and another process
    have its number, in which another file has the descriptor's: that one is looked at, not opened.
    """
    found = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        if _identity(os.fstat(found)) != identity:
            raise FileNotFoundError(errno.ENOENT, "the supervisor has ended", place)
        return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(found)
