"""What the engines of a process have noted, read from outside: see engine.history."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ksmpy import proc
from ksmpy.engine.history import FILE_NAME, Past, birth, read_past
from ksmpy.watch.observe import descriptors

__all__ = ["counters", "full_stores", "own_tables", "package_bytes", "pasts"]

_ATTEMPTS = 5


def pasts(
    pid: int, opened: Iterable[tuple[str, str]] | None = None, *, sampled: bool = True
) -> list[Past]:
    """What each engine of a process has noted, except those that it has inherited by fork; its
    samples only if they are wanted (`sampled`). `opened`: what descriptors() has told.

    OSError when the process is gone, or may not be looked at.
    """
    found = []
    for entry, file in descriptors(pid) if opened is None else opened:
        try:
            past = _read(entry, sampled) if file.startswith(FILE_NAME) else None
        except OSError:
            continue  # the process has closed it meanwhile
        if past is not None and (past.pid, past.birth) == (_own_pid(pid), birth(pid)):
            found.append(past)
    return found


def counters(past: Past) -> dict[str, int]:
    """Those of an engine, by their names."""
    found = past.facts.get("stats", {})
    return found if isinstance(found, dict) else {}


def own_tables(past: Past) -> int:
    """What the engine takes beside a store that it shares, whose tables lie in its file."""
    noted = counters(past)
    common = noted.get("store_metadata_bytes", 0) if past.facts.get("shared_store") else 0
    return max(0, noted.get("metadata_bytes", 0) - common)


def package_bytes(past: Past) -> int:
    """What ksmpy has taken to be imported there; 0 where that is not known."""
    taken = past.facts.get("package_bytes", 0)
    return taken if isinstance(taken, int) else 0


def full_stores(noted: Iterable[Past]) -> list[int]:
    """The numbers of the files of stores that were full when these were noted."""
    found = (past.facts.get("full_store") for past in noted)
    return sorted({number for number in found if isinstance(number, int) and number})


def _own_pid(pid: int) -> int:
    """The pid that a process has in its own namespace, in a container for example."""
    for line in proc.read("status", pid).splitlines():
        if line.startswith(b"NSpid:"):
            return int(line.split()[-1])
    return pid


def _read(entry: str, sampled: bool) -> Past | None:
    descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            past = read_past(os.pread(descriptor, 1 << 17, 0), sampled=sampled)
            if past is not None:
                return past
        return None
    finally:
        os.close(descriptor)
