"""What `ksmpy run` makes ready: the store, the environment, and a first engine to see that one can
be made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksmpy.errors import KsmpyError
from ksmpy.store.store import Store
from ksmpy.whole.common import FOLLOW
from ksmpy.whole.enable import disable, enable

__all__ = ["check", "check_threshold", "environment", "open_store"]

_SITE = str(Path(__file__).parent / "site")

#: glibc takes no larger M_MMAP_THRESHOLD on 64-bit machines (mallopt(3)).
_THRESHOLD_MAX = 32 << 20

Options = Mapping[str, int | str]


def open_store(name: int | str | None) -> Store:
    """The named store, or a new one, which goes with the last process that uses it."""
    return Store.anonymous() if name is None else Store.open(str(name))


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
    environ[FOLLOW] = f"/proc/{os.getpid()}/fd/{store.fileno()}" if own else "named"
    if mmap_threshold is not None:
        # A block in a mapping of its own begins 16 bytes behind a page's start, in every process.
        # In the heap it begins wherever the one before it has ended.
        environ["MALLOC_MMAP_THRESHOLD_"] = str(mmap_threshold)
    path = [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each != _SITE]
    environ["PYTHONPATH"] = os.pathsep.join([_SITE, *filter(None, path)])
    return environ


def check(store: Store, options: Options) -> None:
    """Make an engine as the program's processes will, in a child, so that this one stays small.

    Raises KsmpyError with what it said.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _try(store, options)
            status = 0
        except (KsmpyError, OSError, ValueError) as error:
            os.write(writing, str(getattr(error, "strerror", None) or error).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise KsmpyError(said or "no engine can be made here (ksmpy doctor says why)")


def _try(store: Store, options: Options) -> None:
    known: dict[str, Any] = {name: value for name, value in options.items() if name != "store"}
    enable(**{**known, "adopt": False, "run": 0}, store=store)
    disable()
