"""Readers of memory that is merged, and what it costs them. With "uffd-wp" nobody who only reads
is held up, or fails: no thread, no system call, no other process, whoever the user is. Each test of
that asserts that pages were merged and given back meanwhile.
"""

from __future__ import annotations

import os
import resource
from typing import Any

import numpy as np
import pytest

from conftest import Mode
from support import memory, oracle
from support.memory import HUGE
from support.oracle import PAGE
from support.procs import python_ok
from support.torture import duration

pytestmark = pytest.mark.timeout(120 + 4 * duration())

NOBODY = 65534

# Everything is imported before the privileges go: the interpreter may lie where nobody can look.
READERS = """
import ctypes, os, socket, sys, threading, time
import numpy as np, numpy.random, ksmpy
import ksmpy.engine.engine
from support import memory, oracle
from support.nobody import become
tracking, uid, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
become(uid or os.geteuid())

SIZE = 2 << 20
one = memory.distinct(SIZE // 4096, seed=8)
two = memory.twin(one)
wanted = one.tobytes()
view, pieces = memoryview(two).cast("B"), [slice(at, at + 65536) for at in range(0, SIZE, 65536)]
files = {name: os.memfd_create(name) for name in ("pwrite", "pwritev")}
stop, calls, failed = False, {}, []

def reader(name, call):
    def run():
        while not stop:
            for piece in pieces:
                try:
                    done = call(piece)
                except OSError as error:
                    done = error
                calls[name] = calls.get(name, 0) + 1
                if done != 65536:
                    failed.append((name, piece.start // 4096, done))
                elif files.get(name) and os.pread(files[name], 65536, piece.start) != wanted[piece]:
                    failed.append((name, piece.start // 4096, "other bytes"))
    return threading.Thread(target=run, daemon=True)

here, there = socket.socketpair()
def drain():
    while there.recv(1 << 20):
        pass

threads = [
    reader("pwrite", lambda piece: os.pwrite(files["pwrite"], view[piece], piece.start)),
    reader("pwritev", lambda piece: os.pwritev(files["pwritev"], [view[piece]], piece.start)),
    reader("sendmsg", lambda piece: here.sendmsg([view[piece]])),
    threading.Thread(target=drain, daemon=True),
]
class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]

def look_from_outside(parent, ready):
    buffer = ctypes.create_string_buffer(SIZE)
    to, at = Iovec(ctypes.addressof(buffer), SIZE), Iovec(two.ctypes.data, SIZE)
    looks = 0
    os.write(ready, b"1")
    while os.getppid() == parent:
        got = libc.process_vm_readv(parent, ctypes.byref(to), 1, ctypes.byref(at), 1, 0)
        if got < 0 and os.getppid() != parent:
            break
        if got != SIZE or buffer.raw != wanted:
            os.write(ready, b"x")
            break
        looks += 1
    os._exit(0)

libc.prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: anybody, where Yama asks
ready, tell = os.pipe()
parent = os.getpid()
child = os.fork()
if not child:
    look_from_outside(parent, tell)
assert os.read(ready, 1) == b"1"
os.set_blocking(ready, False)

merged = rounds = 0
with ksmpy.Engine(freeze="uffd-wp", tracking=tracking) as engine:
    regions = [engine.register(array) for array in (one, two)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end or rounds < 3:
        merged += engine.scan(2, eager=True).merged
        two[:: 8 * 4096] ^= 0  # written, and the same
        merged += engine.scan(eager=True).merged
        regions[rounds % 2].unmerge()
        merged += engine.scan(eager=True).merged
        regions[rounds % 2].release()
        regions[rounds % 2] = engine.register((one, two)[rounds % 2])
        merged += engine.scan(2, eager=True).merged
        if rounds % 4 == 0:
            if (pid := os.fork()) == 0:
                os._exit(two.tobytes() != wanted)
            assert os.waitpid(pid, 0)[1] == 0
        engine.unmerge()
        rounds += 1
    stop = True
    for thread in threads[:3]:
        thread.join()
    here.shutdown(socket.SHUT_RDWR)
    threads[3].join()
try:
    seen = os.read(ready, 1)
except BlockingIOError:
    seen = b""
os.kill(child, 9)
os.waitpid(child, 0)
assert not failed, (len(failed), failed[:5])
assert not seen, "process_vm_readv failed, or read a wrong byte"
assert one.tobytes() == wanted == two.tobytes()
assert merged > SIZE // 4096 and min(calls.values()) > 100 and len(calls) == 3, (merged, calls)
"""


@pytest.mark.parametrize(
    ("user", "tracking"),
    [
        ("this user", "wp-async"),
        ("nobody", "checksum"),
        pytest.param("this user", "checksum", marks=pytest.mark.rest),
        pytest.param("nobody", "wp-async", marks=pytest.mark.rest),
    ],
)
def test_reading_calls_never_fail(user: str, tracking: str) -> None:
    """System calls that read merged memory succeed, through merging and all the ways back."""
    reason = Mode("uffd-wp", tracking).missing()
    if reason is not None:
        pytest.skip(reason)
    if user == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become nobody; as another user the other test is this one")
    python_ok("-c", READERS, tracking, str(NOBODY if user == "nobody" else 0), str(duration()))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def test_what_was_merged_takes_no_faults(engine: Any, mode: Mode) -> None:
    """What no entry of the page tables can map as a whole is faulted in before it comes to its
    place, many pages at a fault.
    """
    one, room = memory.distinct(1024, seed=9), memory.pages(1024 + 2)
    in_step = (memory.address_of(room) - memory.address_of(one)) % (HUGE * PAGE) == 0
    two = room[PAGE:-PAGE] if in_step else room[: -2 * PAGE]
    two[:] = one
    regions = [engine.register(array) for array in (one, two)]
    before = _faults()
    assert engine.scan(eager=True).merged == 2 * 1024
    merging = _faults() - before
    before = _faults()
    # Elsewhere `one`, which may lie on a huge page's entry, comes to its place in smaller pieces.
    read = (one, two) if mode.freeze == "uffd-wp" else (two,)
    sums = {int(array[::PAGE].sum()) for array in read}
    assert _faults() - before < 64
    assert len(sums) == 1
    assert merging < 1024, "a page at a fault"
    del regions


def test_frames_that_nobody_has_joined_get_no_memory(engine: Any, mode: Mode) -> None:
    """The frames of neighbours may be in no row: to touch what lies between would fill holes."""
    one, two = memory.pages(128), memory.pages(128)
    one[:] = memory.distinct(128, seed=10)
    order = np.random.default_rng(4).permutation(32)
    two.reshape(-1, 4 * PAGE)[:] = one.reshape(-1, 4 * PAGE)[order]
    regions = [engine.register(array) for array in (one, two)]
    engine.scan(3, eager=True)
    assert engine.stats().pages_sharing == 128
    frames = engine.stats().frame_bytes
    assert oracle.store_bytes() == frames
    engine.unmerge()
    assert oracle.store_bytes() == 0
    del regions
