"""What `ksmpy run` makes ready: the store, the environment, and a first engine to see that one can
be made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksmpy.errors import KsmpyError, Unsupported
from ksmpy.store.store import Store
from ksmpy.whole.common import FOLLOW, place_of
from ksmpy.whole.enable import disable, enable

__all__ = ["check_threshold", "checked_store", "environment"]

_SITE = str(Path(__file__).parent / "site")

#: glibc takes no larger M_MMAP_THRESHOLD on 64-bit machines (mallopt(3)).
_THRESHOLD_MAX = 32 << 20

#: How the child that tries an engine ends: none can be made, or not with these options.
_FAILED, _WRONG = 1, 2

Options = Mapping[str, int | str]


def checked_store(options: Options) -> Store:
    """The named store, or a new one, which goes with the last process that uses it.

    An engine is tried on it first. Raises KsmpyError for options that cannot be, and Unsupported
    where everything else is in the way: limits of this process, the store's file, the kernel.
    """
    name = options.get("store")
    try:
        store = Store.anonymous() if name is None else Store.open(str(name))
        _check(store, options)
    except OSError as error:
        if name is not None and error.errno == errno.EINVAL:
            raise
        raise Unsupported(getattr(error, "strerror", None) or str(error)) from None
    return store


def check_threshold(threshold: int | None) -> None:
    """Raises KsmpyError where no malloc() takes such a threshold."""
    if threshold is None:
        return
    if threshold > _THRESHOLD_MAX:
        raise KsmpyError(
            f"--mmap-threshold: {threshold} bytes are more than glibc's malloc() takes: "
            f"{_THRESHOLD_MAX >> 20}M at most"
        )
    try:
        known = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:
        known = False
    if not known:
        raise KsmpyError("--mmap-threshold: the C library here is not glibc: leave it out")


def environment(
    store: Store, options: Options, mmap_threshold: int | None = None
) -> dict[str, str]:
    """What the program and all below it find in their environment."""
    environ = dict(os.environ)
    environ.pop("KSMPY_REPORT", None)
    environ.update({f"KSMPY_{name.upper()}": str(value) for name, value in options.items()})
    # Processes below open an anonymous store by the supervisor's /proc/PID/fd. They inherit no
    # descriptor of it, which a program could close, or pass on to others.
    own = store.name is None
    environ[FOLLOW] = place_of(store) if own else "named"
    if mmap_threshold is not None:
        # A block in a mapping of its own begins 16 bytes behind a page's start, in every process.
        # In the heap it begins wherever the one before it has ended.
        environ["MALLOC_MMAP_THRESHOLD_"] = str(mmap_threshold)
    path = [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each != _SITE]
    environ["PYTHONPATH"] = os.pathsep.join([_SITE, *filter(None, path)])
    return environ


def _check(store: Store, options: Options) -> None:
    """Make an engine as the program's processes will, in a child, so that this one stays small.

    Raises KsmpyError or Unsupported with what it said, OSError where there can be no child.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = _FAILED
        try:
            _try(store, options)
            status = 0
        except (KsmpyError, OSError, ValueError) as error:
            if isinstance(error, ValueError) and getattr(error, "errno", None) != errno.EBUSY:
                status = _WRONG
            os.write(writing, str(getattr(error, "strerror", None) or error).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == _WRONG:
        raise KsmpyError(said)
    if status != 0:
        raise Unsupported(said or "no engine can be made (ksmpy doctor says why)")


def _try(store: Store, options: Options) -> None:
    known: dict[str, Any] = {name: value for name, value in options.items() if name != "store"}
    enable(**{**known, "adopt": False, "run": 0}, store=store)
    disable()
