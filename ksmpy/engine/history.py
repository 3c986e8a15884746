"""What an engine tells of itself to whoever looks at its process from outside, and since when.

It lies in a memfd that the process keeps open, so whoever may look at /proc/PID/fd can open it
there, and it goes with the process, however that ends. It is written through a mapping only: if the
program has closed the descriptor and opened a file of its own under that number, a write by number
would go into that file. Most of a sample's time goes into /proc/self/smaps_rollup, which takes long
in a large process, so the next sample waits a thousand times as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass

from ksmpy import limits, proc, threads
from ksmpy.own import own
from ksmpy.store.files import close_own, make_memfd

__all__ = ["FILE_NAME", "History", "Past", "Sample", "birth", "read_past"]

#: How /proc names the file, followed by " (deleted)". It must not look like a store's name.
FILE_NAME = "/memfd:ksm-history"

_BYTES = 64 << 10
_BODY = 4096
# As json.dumps(), for which the program's tests may let something else stand in.
_encode = json.JSONEncoder().encode
_HEAD = struct.Struct("<8sIIQIII")  # magic, version, pid, birth, samples, bytes of facts, sum
_MAGIC, _VERSION = b"ksmhist\0", 1
_SAMPLE = struct.Struct("<d7Q")
_SAMPLES = 320
# Between the head and the body: the regions that have ended since the last sample.
_ENDED, _ENDED_AT = struct.Struct("<QQ"), 256
_MOST_ENDED = (_BODY - _ENDED_AT) // _ENDED.size
_FACT_BYTES = _BYTES - _BODY - _SAMPLES * _SAMPLE.size
_NAME_LETTERS = 60

# Samples take a thousandth of a core at most, and come once a second at most.
_COST_FACTOR = 1000
_MIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """How the process did at a moment; bytes, but for the time since 1970 in seconds."""

    time: float
    pss: int
    rss: int
    saved: int
    merged: int
    zero: int
    scan_microseconds: int
    """Processor time that its scans had taken until then."""
    mappings: int


@dataclass(frozen=True, slots=True)
class Past:
    """What there is to be read of an engine."""

    pid: int
    """As the process itself knows it."""
    birth: int
    samples: tuple[Sample, ...]
    facts: dict[str, object]
    """Its `regions` are those that had not ended when this was read; `more_ended`: more may
    have than there was room to note.
    """


def birth(pid: int | str = "self") -> int:
    """When a process began, in ticks since the machine did: pids are used again."""
    return int(proc.stat(pid)[19])


def read_past(data: bytes, *, sampled: bool = True) -> Past | None:
    """What the file holds, its samples only if they are wanted (`sampled`); None where it is none,
    of another version, or being written.
    """
    if len(data) != _BYTES:
        return None
    magic, version, pid, born, count, size, total = _HEAD.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION) or count > _SAMPLES or size > _FACT_BYTES:
        return None
    body = data[_BODY : _BODY + count * _SAMPLE.size + size]
    if zlib.crc32(body) != total:
        return None
    split = count * _SAMPLE.size
    noted = _SAMPLE.iter_unpack(body[:split]) if sampled else ()
    samples = tuple(Sample(*each) for each in noted)
    facts = json.loads(body[split:])
    ended = set(_ENDED.iter_unpack(data[_ENDED_AT:_BODY]))
    facts["more_ended"] = _UNKNOWN in ended
    facts["regions"] = [each for each in facts["regions"] if tuple(each[:2]) not in ended]
    return Past(pid, born, samples, facts)


#: In the last place: more regions have ended than there is room for.
_UNKNOWN = (1, 1)


class History:
    """The samples of one engine, half as many to the hour whenever there are too many."""

    def __init__(self) -> None:
        self.scan_seconds = 0.0
        """Processor time of its scans."""
        self.facts: Callable[[], Mapping[str, object]] = dict
        """What else is to be told, asked at each sample."""
        self._lock = threads.Lock()
        self._samples: list[Sample] = []
        self._interval = _MIN_SECONDS
        self._due = 0.0
        self._seconds = 0.0
        self._file: _File | None = None
        self._closed = False
        self._places = itertools.count()

    def ended(self, address: int, nbytes: int) -> None:
        """A region has ended, which is told beside the last sample until the next one: that may
        never come, and its memory would be taken for the engine's. May be called in the middle of
        note(), by the end of an array.
        """
        file = self._file
        if file is None or file.pid != own.getpid():  # inherited past Python's hooks
            return
        place, entry = next(self._places), (address, nbytes)
        if place >= _MOST_ENDED - 1:
            place, entry = _MOST_ENDED - 1, _UNKNOWN
        with contextlib.suppress(OSError):  # it was closed meanwhile
            file.write(_ENDED_AT + place * _ENDED.size, _ENDED.pack(*entry))

    def due(self) -> bool:
        """Whether it is time for a sample."""
        return own.monotonic() >= self._due

    def note(
        self,
        counters: Mapping[str, int],
        saved: Callable[[], int],
        regions: Callable[[], Iterable[tuple[int, int, str]]],
        facts: Mapping[str, object],
    ) -> None:
        """Take a sample and publish it; where that is not possible, do nothing.

        `saved` is asked when the sample is taken, and what that costs counts as the history's.
        `regions` gives (address, bytes, name) of each. If another thread is at it, nothing is done.
        """
        if not self._lock.acquire(blocking=False):
            return
        begin = own.thread_time()
        try:
            if self._closed:  # closed since this thread asked the engine for its counters
                return
            self._take(counters, saved())
            self._publish({**facts, "stats": dict(counters)}, self.facts(), regions)
        except OSError:
            pass  # no /proc, no descriptor, no memory: an engine does without
        finally:
            spent = own.thread_time() - begin
            self._seconds += spent
            self._due = own.monotonic() + max(self._interval, spent * _COST_FACTOR)
            self._lock.release()

    def close(self) -> None:
        """Take the file away; nothing is noted from now on."""
        with self._lock:
            self._closed = True
            self._drop()

    def inherit(self) -> None:
        """In a forked child: begin anew, since what was noted is about the parent."""
        self._lock = threads.Lock()
        self._samples, self._due, self._seconds, self.scan_seconds = [], 0.0, 0.0, 0.0
        self._drop()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _take(self, counters: Mapping[str, int], saved: int) -> None:
        sizes = proc.rollup()
        if len(self._samples) == _SAMPLES:
            del self._samples[1::2]
            self._interval *= 2
        self._samples.append(
            Sample(
                own.time(),
                sizes["Pss"],
                sizes["Rss"],
                saved,
                counters["merging_pages"] * 4096,
                counters["ksm_zero_pages"] * 4096,
                int(self.scan_seconds * 1e6),
                counters["vmas"],
            )
        )

    def _publish(
        self,
        facts: dict[str, object],
        more: Mapping[str, object],
        regions: Callable[[], Iterable[tuple[int, int, str]]],
    ) -> None:
        """Write what fits into the file: `more` and the smallest regions are left out first."""
        self._file = self._file or _File()
        # What ends from now on is told anew; what has ended is not among the regions any more.
        self._file.write(_ENDED_AT, bytes(_BODY - _ENDED_AT))
        self._places = itertools.count()
        named = sorted(regions(), key=lambda region: -region[1])
        facts["history"] = {"seconds": self._seconds, "interval": self._interval, "bytes": _BYTES}
        if len(_encode({**facts, **more})) < _FACT_BYTES // 2:
            facts.update(more)
        room = _FACT_BYTES - len(_encode(facts)) - 64
        listed = []
        for address, nbytes, name in named:
            entry = [address, nbytes, name[:_NAME_LETTERS]]
            room -= len(_encode(entry)) + 2
            if room < 0:
                break
            listed.append(entry)
        text = _encode({**facts, "regions": listed, "unlisted": len(named) - len(listed)})
        samples = b"".join(_SAMPLE.pack(*astuple(each)) for each in self._samples)
        body = samples + text.encode()
        head = _HEAD.pack(
            _MAGIC, _VERSION, own.getpid(), birth(), len(self._samples), len(text), zlib.crc32(body)
        )
        self._file.write(_BODY, body)
        self._file.write(0, head)


class _File:
    """The memfd, by its mapping."""

    def __init__(self) -> None:
        """OSError when there is no room for it. Its memory is taken at once: no write fails."""
        if not limits.allow_file_of(_BYTES):  # to try is to get a signal (SIGXFSZ)
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self.pid = own.getpid()
        self._fd = make_memfd(FILE_NAME.partition(":")[2])
        try:
            os.posix_fallocate(self._fd, 0, _BYTES)
            status = os.fstat(self._fd)
            self._identity = status.st_dev, status.st_ino
            self._address = _map(self._fd)
            # A call by ctypes would hide a RecursionError, or Ctrl-C, in an error of its own.
            self._bytes = memoryview((ctypes.c_char * _BYTES).from_address(self._address)).cast("B")
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, offset: int, data: bytes) -> None:
        if not self._address:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if offset + len(data) > _BYTES:  # the mapping ends there, and the program's memory follows
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._bytes[offset : offset + len(data)] = data

    def close(self) -> None:
        """Idempotent, as Ctrl-C may come in the middle of it."""
        libc = _libc()
        address, self._address = self._address, 0
        if address:
            libc.munmap(address, _BYTES)
        close_own(self._fd, self._identity)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _map(fd: int) -> int:
    """The address of the file. The module mmap would keep a descriptor of its own, by number."""
    import mmap

    address = _libc().mmap(None, _BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)
