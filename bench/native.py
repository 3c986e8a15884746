"""The loops of native.c, index.c and holds.c, compiled when they are first needed."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ksmpy.native import FREEZES, TRACKINGS

from .data import Bytes, whole_pages

_HERE = Path(__file__).parent
_ENGINE = _HERE.parent / "csrc"
_BUCKET_NS = 100
_BUCKETS = 200_000


class Latencies(ctypes.Structure):
    """How long single reads took: struct latencies of native.c."""

    _fields_ = (
        ("touches", ctypes.c_uint64),
        ("longest_ns", ctypes.c_uint64),
        ("bucket", ctypes.c_uint32 * _BUCKETS),
    )

    def percentile(self, percent: float, *, above_ns: int = 0) -> float:
        """Seconds that `percent` of the reads slower than `above_ns` did not exceed, to 100 ns."""
        counts = np.frombuffer(self.bucket, dtype=np.uint32).astype(np.uint64)
        counts[: above_ns // _BUCKET_NS] = 0
        total = int(counts.sum())
        if not total:
            return 0.0
        reached = np.searchsorted(np.cumsum(counts), total * percent / 100)
        return (int(reached) + 1) * _BUCKET_NS / 1e9

    def slower_than(self, nanoseconds: int) -> int:
        """How many reads took longer."""
        return int(np.frombuffer(self.bucket, dtype=np.uint32)[nanoseconds // _BUCKET_NS :].sum())


def _compiled(*sources: Path) -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "native.so")
        flags = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC")
        strict = ("-Wall", "-Wextra", "-Werror")
        command = (compiler, *flags, *strict, f"-I{_ENGINE}", *map(str, sources), "-o", str(target))
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(target))


@functools.cache
def _library() -> ctypes.CDLL:
    return _compiled(_HERE / "native.c")


@functools.cache
def _index_library() -> ctypes.CDLL:
    # index.c has stable.c in it.
    parts = ("base/rbtree", "os/arena", "os/clock", "os/files", "os/map", "os/own_memory")
    return _compiled(_HERE / "index.c", *(_ENGINE / f"{part}.c" for part in parts))


def touch_pages(array: Bytes, stop: ctypes.c_int, out: Latencies) -> None:
    """Read single bytes all over the array's pages until `stop` is not 0."""
    address, count = whole_pages(array)
    _library().touch_pages(
        ctypes.c_void_p(address), ctypes.c_uint64(count), ctypes.byref(stop), ctypes.byref(out)
    )


def write_words(array: Bytes, count: int) -> None:
    """Write `count` words at random places of the array's pages."""
    address, pages = whole_pages(array)
    _library().write_words(
        ctypes.c_void_p(address), ctypes.c_uint64(pages * 512), ctypes.c_uint64(count)
    )


def write_each_page(array: Bytes) -> None:
    """Write one byte of every page of the array."""
    address, pages = whole_pages(array)
    _library().write_each_page(ctypes.c_void_p(address), ctypes.c_uint64(pages))


INDEXES = ("red-black tree", "stable index", "hash table", "sorted array")


class IndexTimes(ctypes.Structure):
    """Seconds for one operation, bytes for one entry: struct index_times of index.c."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("build", "insert", "find", "miss", "remove")),
        ("bytes", ctypes.c_double),
        ("wrong", ctypes.c_uint64),
    )


def _distinct_keys(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    """Random numbers of 64 bits in random order, none of them twice."""
    keys = np.unique(rng.integers(0, 2**64, count + count // 1000 + 10, dtype=np.uint64))
    return rng.permutation(keys)[:count]


def measure_index(index: str, count: int, some: int) -> IndexTimes:
    """Build an index of `count` random keys, look all up, and `some` more operations."""
    rng = np.random.default_rng(1)
    keys = _distinct_keys(rng, 2 * count)
    order = rng.permutation(count).astype(np.uint32)
    out = IndexTimes()
    _index_library().measure_index(
        ctypes.c_int(INDEXES.index(index)),
        ctypes.c_void_p(keys.ctypes.data),
        ctypes.c_void_p(keys[count:].ctypes.data),
        ctypes.c_void_p(order.ctypes.data),
        ctypes.c_uint32(count),
        ctypes.c_uint32(some),
        ctypes.byref(out),
    )
    return out


_WRAPPED = ("pthread_mutex_lock", "pthread_mutex_unlock")


@functools.cache
def _holds_program() -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    target = Path(tempfile.mkdtemp(), "holds")
    atexit.register(shutil.rmtree, target.parent)
    sources = [path for path in sorted(_ENGINE.glob("*/*.c")) if path.parent.name != "python"]
    flags = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-pthread", f"-I{_ENGINE}")
    wrap = [f"-Wl,--wrap={name}" for name in _WRAPPED]
    files = map(str, (_HERE / "holds.c", *sources))
    subprocess.run((compiler, *flags, *files, *wrap, "-o", str(target)), check=True)
    return target


def measure_holds(
    freeze: str, tracking: str, untouched: int, equal: int
) -> list[tuple[str, float, float]]:
    """(what an engine did, longest time its lock was held meanwhile, that in processor time), with
    so many bytes that nobody has touched, and twice as many equal ones.
    """
    modes = (FREEZES.index(freeze), TRACKINGS.index(tracking), untouched >> 20, equal >> 20)
    command = [str(_holds_program()), *map(str, modes)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    split = (line.split(maxsplit=2) for line in lines)
    return [(what, int(wall) / 1e9, int(cpu) / 1e9) for wall, cpu, what in split]
