"""Which limit an error comes from, and the way out: one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from ksmpy import proc

if sys.platform != "win32":
    import resource  # here, since a process that is out of mappings can load no library any more

__all__ = ["MemoryLeft", "allow_file_of", "is_passing", "mappings", "why"]

MemoryLeft = Callable[[], "tuple[int, str]"]
"""Bytes that this process may still take, and what allows no more."""

_MIB = 1 << 20
#: Bytes. With so little memory left unmerging may fail, wholly or in part, for want of it.
_SCARCE = 256 * _MIB

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY)


def is_passing(error: Exception) -> bool:
    """Whether all descriptors or all memory were in use, or a file by which nothing can be given
    back: it may be let go of again.
    """
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING


def why(number: int, memory_left: MemoryLeft) -> str:
    """What follows an error's own words, beginning with ": "; empty for other errors, and where
    there is no memory to find it out.
    """
    reasons = {
        errno.ENOMEM: lambda: _no_memory(memory_left),
        errno.EMFILE: _no_descriptors,
        errno.ENFILE: lambda: "the whole system's file table is full: raise fs.file-max (root)",
        errno.EFBIG: _file_size,
        errno.ENOENT: _no_proc,
        errno.EACCES: _not_dumpable,
    }
    try:
        reason = reasons.get(number, lambda: "")()
    except (MemoryError, OSError):
        reason = ""
    return f": {reason}" if reason else ""


def _no_proc() -> str:
    if os.path.exists("/proc/self"):
        return ""
    return "/proc is not mounted here, by which memory is given back: mount -t proc proc /proc"


def _not_dumpable() -> str:
    try:
        with open("/proc/self/pagemap", "rb"):
            return ""
    except PermissionError:
        return (
            "this process may not read its own /proc/self/pagemap, since it has changed its user:"
            " start it as that user, or call prctl(PR_SET_DUMPABLE, 1)"
        )


def _limit(name: str) -> int | None:
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _no_descriptors() -> str:
    limit = _limit("RLIMIT_NOFILE")
    return f"all {limit} descriptors of RLIMIT_NOFILE are in use: close some, or ulimit -n higher"


def allow_file_of(size: int) -> bool:
    """Whether a file of so many bytes may be written (RLIMIT_FSIZE)."""
    limit = _limit("RLIMIT_FSIZE")
    return limit is None or size <= limit


def _file_size() -> str:
    limit = _limit("RLIMIT_FSIZE")
    return (
        f"RLIMIT_FSIZE allows files of {limit} bytes, and merged pages are kept in one in memory:"
        " raise it (ulimit -f unlimited)"
    )


def _no_memory(memory_left: MemoryLeft) -> str:
    if not sys.platform.startswith("linux"):
        return ""
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        limit = _limit(name)
        if limit is None:
            continue
        left = max(limit - _used(name), 0)
        # Any RLIMIT_AS may be too low, however much is left: an engine reserves address space for
        # records of several times as many pages as the machine has.
        if name == "RLIMIT_AS" or left < _SCARCE:
            return (
                f"{name} allows {limit // _MIB} MiB, of which {left // _MIB} MiB are left:"
                f" raise it (ulimit {option})"
            )
    used, limit = mappings()
    if used > limit * 9 // 10:
        return f"{used} of {limit} mappings (vm.max_map_count) are in use: raise it (root)"
    left, which = memory_left()
    return (
        f"{left // _MIB} MiB are left in {which}: free memory, or raise its limit, and try again"
        if which and left < _SCARCE
        else ""
    )


def _used(name: str) -> int:
    """Bytes that count against a limit (proc_pid_statm(5)): all that is mapped, or the data."""
    words = _read("/proc/thread-self/statm").split()
    index = 0 if name == "RLIMIT_AS" else 5
    return int(words[index]) * resource.getpagesize() if words else 0


def mappings() -> tuple[int, int]:
    """How many mappings this process has, and may have: vm.max_map_count, 65530 unless told.

    OSError without /proc.
    """
    limit = _read("/proc/sys/vm/max_map_count")
    return proc.count_mappings(), int(limit) if limit else 65530


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
