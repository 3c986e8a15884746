"""analyze(): a live process seen from outside, by mapping, with nothing changed in it."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ksmpy
from ksmpy import proc
from ksmpy.watch import analyze
from ksmpy.watch.analyze import MappingEstimate
from support.patience import until

pytest.importorskip("mmh3")
pytest.importorskip("numpy")  # here, as it starts threads of its own when it is imported first
pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/pagemap"), reason="needs /proc/PID/pagemap"
)

PAGE = 4096

# Between PROT_NONE neighbours, so that no other mapping of the process merges with it.
PRELUDE = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
P = 4096

def memory(pages):
    at = libc.mmap(None, (pages + 2) * P, 0, 0x22, -1, 0) + P
    assert libc.mprotect(at, pages * P, 3) == 0
    libc.madvise(at, pages * P, 15)  # no huge pages: the counts of present pages must be exact
    return at

def put(at, page, data):
    ctypes.memmove(at + page * P, data, len(data))

def tell(*numbers):
    print(*numbers, flush=True)
    sys.stdin.read(1)
"""


@contextlib.contextmanager
def child(code: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that made memory as `code` says, and the numbers it told; it waits meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()


def row(estimate: ksmpy.Estimate, start: int) -> MappingEstimate:
    for found in estimate.buffers:
        assert isinstance(found, MappingEstimate)
        if found.start == start:
            return found
    raise AssertionError(f"no mapping starts at {start:#x}")


def test_duplicates_are_counted_in_the_mapping_that_has_them() -> None:
    """Pages equal to an earlier one count where they lie; zero pages and unique ones are told
    apart.
    """
    code = """
a, b = sorted((memory(16), memory(16)))
unique = os.urandom(8 * P)
put(a, 0, unique)
put(b, 0, unique[: 4 * P])
put(b, 4, os.urandom(4 * P))
for page in range(8, 16):
    put(a, page, b"\\0" * P)
tell(a, b)
"""
    with child(code) as (process, (a, b)):
        estimate = ksmpy.analyze(process.pid)
        first, second = row(estimate, a), row(estimate, b)
    assert (first.pages, first.zero_pages) == (16, 8)
    assert first.duplicate_pages >= 7  # of eight zero pages, all when the process has others
    assert (second.pages, second.zero_pages, second.duplicate_pages) == (8, 0, 4)
    assert second.saved_bytes == 4 * PAGE
    assert estimate.total_pages == sum(part.pages for part in estimate.buffers)
    assert estimate.duplicate_pages == sum(part.duplicate_pages for part in estimate.buffers)
    assert estimate.total_bytes == estimate.total_pages * PAGE


def test_holes_stay_holes() -> None:
    """Memory that was never touched is neither counted nor brought into being."""
    code = """
a = memory(1 << 18)
put(a, 1000, os.urandom(P))
tell(a)
"""
    with child(code) as (process, (a,)):
        assert row(ksmpy.analyze(process.pid), a).pages == 1
        smaps = Path(f"/proc/{process.pid}/smaps").read_text()
    assert smaps.partition(f"{a:x}-")[2].partition("Rss:")[2].split()[0] == "4"


def test_pages_read_but_never_written_cost_nothing_and_count_for_nothing() -> None:
    """The kernel's own zero page is not memory that could be saved."""
    code = """
a = memory(64)
ctypes.string_at(a, 64 * P)
tell(a)
"""
    with child(code) as (process, (a,)):
        found = row(ksmpy.analyze(process.pid), a)
    assert (found.pages, found.zero_pages) == (0, 0)


def test_swapped_pages_are_left_in_swap(tmp_path: Path) -> None:
    """Pages in swap are counted apart, and are there still afterwards."""
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        pytest.skip("this machine has no swap switched on")
    code = """
a = memory(64)
put(a, 0, os.urandom(64 * P))
libc.madvise(a, 64 * P, 21)  # MADV_PAGEOUT
tell(a)
"""
    with child(code) as (process, (a,)):
        first = row(ksmpy.analyze(process.pid), a)
        if not first.swapped_pages:
            pytest.skip("the kernel did not swap the pages out")
        assert first.pages + first.swapped_pages == 64
        assert row(ksmpy.analyze(process.pid), a).swapped_pages == first.swapped_pages


def test_marks_of_write_tracking_are_not_in_swap() -> None:
    """They lie in the place of untouched pages, with the bit that those in swap have."""
    code = """
import ksmpy
array = ksmpy.empty(1 << 22, "uint8")
array[:P] = 1
engine = ksmpy.Engine()
engine.register(array)
engine.scan(2)
tell(0)
"""
    with child(code) as (process, _):
        if "VmSwap:\t       0 kB" not in Path(f"/proc/{process.pid}/status").read_text():
            pytest.skip("something of it is in swap")
        found = ksmpy.analyze(process.pid)
    assert not found.skipped


def test_files_and_shared_memory_are_left_out() -> None:
    """Only private anonymous memory can be merged, so only that is looked at."""
    with mmap.mmap(-1, 64 * PAGE) as shared:
        shared[:] = b"x" * len(shared)
        estimate = ksmpy.analyze(os.getpid())
    for found in estimate.buffers:
        assert isinstance(found, MappingEstimate)
        assert found.permissions.endswith("p")
        assert not found.name.startswith("/")


def test_progress_goes_from_nothing_to_all() -> None:
    """The callback gets growing numbers that end at the total."""
    told: list[tuple[int, int]] = []
    ksmpy.analyze(os.getpid(), progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0


def test_neighbouring_overlays_and_memory_are_one_row() -> None:
    """A merged array is many mappings of the store and some of its own: one row."""
    text = (
        "1000-3000 rw-p 00000000 00:00 0 \n"
        "3000-4000 rw-p 00007000 00:01 77                         /memfd:ksmpy (deleted)\n"
        "4000-6000 rw-p 00000000 00:00 0 \n"
        "6000-7000 r--p 00000000 00:00 0 \n"
        "8000-9000 rw-s 00000000 00:01 77                         /memfd:ksmpy (deleted)\n"
        "9000-a000 rw-p 00000000 08:01 9                          /usr/lib/libc.so.6\n"
        "b000-c000 rw-p 00000000 00:00 0                          [heap]\n"
        "d000-e000 ---p 00000000 00:00 0 \n"
        "ffff0000-ffff1000 r--p 00000000 00:00 0                  [vvar]\n"
    )
    found = analyze._rows(proc.parse(text.encode()))
    rows = [(each.start, each.end, each.name, len(each.parts)) for each in found]
    assert rows == [(0x1000, 0x6000, "", 3), (0x6000, 0x7000, "", 1), (0xB000, 0xC000, "[heap]", 1)]


def test_no_such_process() -> None:
    """A pid that nobody has is named."""
    with pytest.raises(ksmpy.KsmpyError, match="no process 999999999"):
        ksmpy.analyze(999999999)


@pytest.mark.skipif(not os.path.exists("/proc/2/maps"), reason="no kernel threads to be seen here")
def test_a_kernel_thread_has_no_memory() -> None:
    """Process 2 is the kernel's: there is nothing to read, and it is said."""
    with pytest.raises(ksmpy.KsmpyError, match="process 2"):
        ksmpy.analyze(2)


def test_a_zombie_is_said_to_have_ended() -> None:
    """A process that ended and was not waited for has no memory left."""
    with child("tell(1)\n") as (process, _):
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ksmpy.KsmpyError, match="has ended"):
            ksmpy.analyze(process.pid)


def test_a_process_that_ends_meanwhile_is_an_error() -> None:
    """Killed in the middle of the reading: one clear error, no half result."""
    code = """
areas = [memory(64) for _ in range(64)]
for at in areas:
    put(at, 0, os.urandom(64 * P))
tell(*areas)
"""
    with child(code) as (process, _):

        def kill(done: int, total: int) -> None:
            if done < total // 2 and process.poll() is None:
                process.kill()
                process.wait()

        with pytest.raises(ksmpy.KsmpyError, match="ended while it was being read"):
            ksmpy.analyze(process.pid, progress=kill)


def test_memory_that_goes_away_meanwhile_is_passed_over() -> None:
    """A mapping that is gone by the time it is read is left out; the rest is reported."""
    code = """
areas = [memory(64) for _ in range(64)]
for at in areas:
    put(at, 0, os.urandom(64 * P))
tell(*areas)
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for at in areas:
    libc.munmap(at, 64 * P)
tell(0)
"""
    with child(code) as (process, areas):
        assert process.stdin is not None and process.stdout is not None
        state = {"gone": False}

        def unmap(done: int, total: int) -> None:
            if not state["gone"]:
                state["gone"] = True
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("x")
                process.stdin.flush()
                process.stdout.readline()

        estimate = ksmpy.analyze(process.pid, progress=unmap)
    assert sum(row(estimate, at).pages for at in areas) <= 64


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's process, so root")
def test_without_permission_the_way_out_is_told() -> None:
    """An ordinary user who looks at root's process is told what would allow it."""
    code = (
        "import os, ksmpy, ksmpy.watch.analyze, mmh3, numpy\n"
        f"os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"ksmpy.analyze({os.getpid()})\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 1
    assert "no permission" in told.stderr and "ptrace_scope" in told.stderr


def test_nothing_is_left_open() -> None:
    """Neither a result nor an error leaves a descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    ksmpy.analyze(os.getpid())
    for pid in (999999999, 2):
        with contextlib.suppress(ksmpy.KsmpyError):
            ksmpy.analyze(pid)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_process_goes_on_meanwhile() -> None:
    """Nothing is stopped: a counter in the process advances while it is read again and again."""
    code = """
import threading
a = memory(1)
value = ctypes.c_uint64.from_address(a)
def count():
    while True:
        value.value += 1
threading.Thread(target=count, daemon=True).start()
tell(a)
"""
    with child(code) as (process, (a,)):
        with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:

            def counter() -> int:
                return int.from_bytes(os.pread(memory.fileno(), 8, a), sys.byteorder)

            start = counter()
            ksmpy.analyze(process.pid)
            until(lambda: counter() != start, "the process does not go on")
