"""Processes on one store die at bad moments; what others map stays as it was."""

from __future__ import annotations

import pytest

from support.layout import LOCK_AT
from support.procs import python

pytestmark = pytest.mark.timeout(120)

PAGES = 200

_PRELUDE = f"""
import ctypes, mmap, os, resource, signal, sys, time
import numpy as np
from ksmpy._ksmpy import ffi, lib
LIBC = ctypes.CDLL(None, use_errno=True)
SIZE, LOCK_AT = {PAGES} * 4096, {LOCK_AT}
fd = os.memfd_create("store")
data = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)

def engine():
    options = ffi.new("struct ksmpy_options *")
    options.nodes, options.store_fd = 1, fd
    out = ffi.new("ksmpy_engine **")
    assert lib.ksmpy_engine_new(options, out) == 0
    return out[0]

def scan(e):
    result = ffi.new("struct ksmpy_scan_result *")
    for _ in range(1000):
        assert lib.ksmpy_scan(e, 1 << 20, 1, result) == 0
        if result.full:
            return
    raise AssertionError("no pass ends")

def buffer(e, content):
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    array[:] = content
    region = ffi.new("uint32_t *")
    assert lib.ksmpy_register(e, array.ctypes.data, SIZE, 0, region) == 0
    return array

def pair(e, content):
    both = buffer(e, content), buffer(e, content)
    scan(e), scan(e)
    stats = ffi.new("struct ksmpy_stats *")
    assert lib.ksmpy_stats(e, stats) == 0 and stats.merging_pages == 2 * {PAGES}
    return both

def spawn(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(60)
        work()
        os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)

def die_in_lock():
    head = mmap.mmap(fd, 4096)
    at = ctypes.addressof(ctypes.c_char.from_buffer(head)) + LOCK_AT
    assert LIBC.pthread_mutex_lock(ctypes.c_void_p(at)) == 0
    os.kill(os.getpid(), signal.SIGKILL)

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

class Gate:
    def __init__(self):
        self.ends = os.pipe()
    def open(self):
        os.write(self.ends[1], b".")
    def wait(self):
        assert os.read(self.ends[0], 1) == b"."
    def wait_for_others(self):  # fails when nobody is left who could open it
        os.close(self.ends[1])
        self.wait()

class Witness:
    # A child that inherits arrays, and looks at them when it is asked to.
    def __init__(self):
        self.there, self.asked, self.right = Gate(), Gate(), Gate()
    def testify(self, arrays):
        self.there.open(), self.asked.wait()
        if all((array == data).all() for array in arrays):
            self.right.open()
    def ask(self):
        self.asked.open()
        self.right.wait_for_others()
"""


def _run(script: str) -> None:
    """In an interpreter of its own: it dies in the store's lock, and runs out of descriptors."""
    done = python("-c", _PRELUDE + script, seconds=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rebuild_keeps_what_a_child_of_the_dead_maps() -> None:
    """A parent dies with the lock: its frames had their last sharer in it, and its child stays."""
    _run("""
witness, die = Witness(), Gate()
def parent():
    both = pair(engine(), data)
    spawn(lambda: witness.testify(both))
    die.wait()
    die_in_lock()
pid = spawn(parent)
witness.there.wait()
e = engine()
die.open()
assert status(pid) == -signal.SIGKILL
scan(e), scan(e)
witness.ask()
""")


def test_a_child_without_a_slot_keeps_the_store() -> None:
    """No descriptor is left for a child's lease: the store is not laid out anew beneath it."""
    _run("""
witness = Witness()
def parent():
    both = pair(engine(), data)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    try:
        while True:
            os.dup(0)
    except OSError:
        spawn(lambda: witness.testify(both))
assert status(spawn(parent)) == 0
witness.there.wait()
scan(engine())
witness.ask()
""")


def test_a_revive_that_fails_unmaps_nothing_of_the_child() -> None:
    """What lies in the child where the parent's counts were is the child's."""
    _run("""
e = engine()
pair(e, data)
inode = str(os.fstat(fd).st_ino)
lines = [line.split() for line in open("/proc/self/maps")]
counts = max((int(l[2], 16), l[0]) for l in lines if l[4] == inode and l[1] == "rw-s")[1]
start, end = (int(x, 16) for x in counts.split("-"))
def child():
    LIBC.mmap.restype = ctypes.c_void_p
    noreplace = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000
    size = ctypes.c_size_t(end - start)
    at = LIBC.mmap(ctypes.c_void_p(start), size, 3, noreplace, -1, ctypes.c_long(0))
    assert at == start
    live_frames = 144
    os.pwrite(fd, b"\\1" * 8, live_frames)
    assert lib.ksmpy_revive(e) < 0
    ctypes.memset(at, 1, 4096)
assert status(spawn(child)) == 0
""")


def test_frames_that_a_newcomer_freed_are_not_freed_again() -> None:
    """It attaches after a death, then another rebuilds the index and uses those frames anew."""
    _run("""
merge, merged, attach, attached, lock, finish, finished = (Gate() for _ in range(7))
def victim():
    merge.wait()
    e = engine()
    keep = pair(e, data)
    merged.open()
    time.sleep(60)
def holder():
    lock.wait()
    die_in_lock()
def newcomer():
    attach.wait()
    e = engine()
    attached.open(), finish.wait()
    buffer(e, data)
    scan(e)
    finished.open()
first, second, third = spawn(victim), spawn(holder), spawn(newcomer)
e = engine()
merge.open(), merged.wait()
os.kill(first, signal.SIGKILL)
status(first)
attach.open(), attached.wait()
lock.open()
status(second)
scan(e)
other = data ^ 255
a, b = pair(e, other)
finish.open()
finished.wait_for_others()
assert (a == other).all() and (b == other).all()
assert status(third) == 0
text = ffi.new("char[]", 256)
assert lib.ksmpy_check(e, text, 256) == 0, ffi.string(text)
""")


def test_a_child_that_came_after_the_pins_keeps_no_frame_of_the_dead() -> None:
    """A page went out of its parent's sight and is gone: the child had nothing to inherit of it."""
    _run("""
there = Gate()
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_void_p
def give_back(e, arrays):
    for region, array in enumerate(arrays):
        assert lib.ksmpy_release(e, region, 1) == 0
        assert LIBC.munmap(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(SIZE)) == 0
    there.open()
    time.sleep(60)
def parent():
    e = engine()
    both = pair(e, data)
    page, size = ctypes.c_void_p(both[1].ctypes.data + 10 * 4096), ctypes.c_size_t(4096)
    anywhere, fixed = 0x22, 0x32
    moved = ctypes.c_void_p(LIBC.mmap(None, size, 0, anywhere, -1, ctypes.c_long(0)))
    assert LIBC.mremap(page, size, size, 3, moved) == moved.value
    assert LIBC.mmap(page, size, 3, fixed, -1, ctypes.c_long(0)) == page.value
    assert lib.ksmpy_unmerge_region(e, 1) == 0
    scan(e)
    assert LIBC.munmap(moved, size) == 0
    for _ in range(8):
        scan(e)
    children.append(spawn(lambda: give_back(e, both)))
    there.wait()
    os.write(names[1], b"%d" % children[0])
children, names = [], os.pipe()
e = engine()
assert status(spawn(parent)) == 0
child = int(os.read(names[0], 20))
for _ in range(3):
    scan(e)
stats = ffi.new("struct ksmpy_store_stats *")
assert lib.ksmpy_store_stats(fd, stats) == 0
os.kill(child, 0), os.kill(child, signal.SIGKILL)
assert stats.deaths == 1 and stats.frame_bytes == 0
""")
