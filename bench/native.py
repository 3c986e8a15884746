"""The loops of native.c, compiled when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from .data import Bytes, whole_pages

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


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "native.so")
        source = Path(__file__).with_suffix(".c")
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))


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
