"""The fleet seen from outside: all of its processes at rest, and what each of them maps.

Nothing here believes a counter of the store: ``/proc/PID/maps`` and ``pagemap`` say which pages
read frames, and SEEK_DATA says which frames the store's file still has.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ksmpy import Store
from tests.support import oracle
from tests.support.layout import LOCK_AT, extents
from tests.support.oracle import PAGE
from tests.support.procs import state_and_parent

#: What the first word of a store's lock holds: pthread_mutex_t of glibc.
TID_MASK = 0x3FFFFFFF
#: How long all processes may take to come to rest, in seconds.
PATIENCE = 2.0


def family() -> set[int]:
    """The processes alive that descend from this one, which must be a subreaper."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = state_and_parent(name)
        except OSError:  # it is gone
            continue
        if state not in "ZX":
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    ask = [os.getpid()]
    while ask:
        born = children.get(ask.pop(), [])
        found.update(born)
        ask += born
    return found


def _rests(pid: int) -> bool:
    """Whether every thread of a process has stopped, or is gone."""
    try:
        threads = [f"{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
        states = [state_and_parent(thread)[0] for thread in threads]
    except OSError:
        return not Path(f"/proc/{pid}").exists()
    return all(state in "TZX" for state in states)


def send(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@contextmanager
def at_rest() -> Iterator[set[int] | None]:
    """All processes stopped, each at whatever it was doing; they go on afterwards.

    None if that cannot be now: a thread in mremap() waits for a stopped one to read the event.
    """
    told: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            quiet = all(map(_rests, told))
            new = family() - told  # looked for when nobody who was told can fork any more
            if quiet and not new:
                yield told
                return
            if time.monotonic() > deadline:
                yield None
                return
            for pid in new:
                send(pid, signal.SIGSTOP)
            told |= new
            time.sleep(0.001)
    finally:
        for pid in told:
            send(pid, signal.SIGCONT)


def lock_holder(store: Store, pids: set[int]) -> int | None:
    """Which of these processes has the store's lock now."""
    word = os.pread(store.fileno(), 4, LOCK_AT)
    thread = struct.unpack("=I", word)[0] & TID_MASK if len(word) == 4 else 0
    if not thread:
        return None
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return None
    pid = int(status.partition("Tgid:")[2].split(maxsplit=1)[0])
    return pid if pid in pids else None


def held(store: Store, start: int) -> set[int]:
    """The offsets of the pages from `start` on for which the store's file has memory."""
    fd = store.fileno()
    parts = extents(fd, start, os.fstat(fd).st_size)
    return {offset for begin, end in parts for offset in range(begin, end, PAGE)}


class View:
    """What one process maps of a store."""

    def __init__(self, pid: int | str, inode: int) -> None:
        self.pages = 0
        self.frames: set[int] = set()
        self.leases = 0
        self.frames_begin: int | None = None
        for mapping in oracle.store_mappings(pid):
            if mapping.inode != inode:
                continue
            if mapping.perms.endswith("p"):
                offsets = oracle.offsets_read(mapping, pid)
                self.pages += len(offsets)
                self.frames.update(offsets)
            elif mapping.perms == "---s":
                self.leases += 1
            elif mapping.perms == "r--s":
                self.frames_begin = mapping.offset


class Outside:
    """What all processes map, while they rest."""

    def __init__(self, store: Store, pids: set[int]) -> None:
        self._store = store
        self._inode = os.fstat(store.fileno()).st_ino
        self.views: dict[int, View] = {}
        for pid in pids:
            try:
                self.views[pid] = View(pid, self._inode)
            except (FileNotFoundError, ProcessLookupError):  # killed
                continue
        self.frames = set[int]().union(*(view.frames for view in self.views.values()))
        self.pages = sum(view.pages for view in self.views.values())

    def check_allocated(self) -> None:
        """No frame that anyone maps has been freed."""
        lost = self.frames - held(self._store, min(self.frames, default=0))
        if lost:
            who = {pid: len(view.frames & lost) for pid, view in self.views.items()}
            raise AssertionError(f"{len(lost)} mapped frames were freed: {sorted(lost)[:9]}, {who}")

    def check_counted(self) -> None:
        """The store knows of all memory and all pages: call it while an engine is open here.

        A process joins frames before it maps them and leaves them after that, so at any moment it
        maps no more than the store has counted; but what it inherited and has not looked at.
        """
        here = View("self", self._inode)
        assert here.frames_begin is not None, "no engine here"
        memory = len(held(self._store, here.frames_begin)) * PAGE
        counted = self._store.stats().frame_bytes
        assert memory <= counted, f"{memory} bytes of frames, and {counted} are known"
        known: dict[int, list[int]] = {}
        for process in self._store.processes():
            if not process.inherited:
                known.setdefault(int(process), []).append(process.merging_pages)
        for pid, view in self.views.items():
            if view.leases == len(known.get(pid, [])):
                assert view.pages <= sum(known.get(pid, [])), (
                    f"process {pid} maps {view.pages} pages, and counts {known.get(pid)}"
                )
