"""The program closes every descriptor it finds, and opens files of its own that get their numbers.

Daemonizers do that, and programs that fork without exec. Nothing of the program's is read, written,
locked or closed then; what is merged stays as it is, and the engine says why it does no more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from pathlib import Path

import pytest

import ksmpy
from conftest import EACH_FREEZE, Mode
from ksmpy.store.store import Store
from support import memory, oracle
from support.oracle import PAGE
from support.procs import in_child, python_ok

RECYCLED = """
import errno
import os
import sys
from pathlib import Path

import ksmpy
from support import memory

PAGE = 4096
PAGES = 64
folder = Path(sys.argv[1])
engine = ksmpy.Engine(freeze=sys.argv[2], tracking=sys.argv[3])
one, more = memory.distinct(PAGES), memory.distinct(PAGES, seed=5)
arrays = [one, memory.twin(one), more, memory.twin(more)]
wanted = [array.tobytes() for array in arrays]
for array in arrays[:2]:
    engine.register(array)
engine.scan(eager=True)
assert engine.stats().pages_sharing == PAGES
for array in arrays[2:]:
    engine.register(array)

os.closerange(3, 256)
text = b"mine" * (64 * PAGE)
files = []
for number in range(24):
    path = folder / str(number)
    path.write_bytes(text)
    files.append(os.open(path, os.O_RDWR))


def nothing_happened():
    assert [array.tobytes() for array in arrays] == wanted
    for number, file in enumerate(files):
        assert os.fstat(file).st_size == len(text), number
        assert os.lseek(file, 0, os.SEEK_CUR) == 0, number
        assert (folder / str(number)).read_bytes() == text, number


def attempt(what):
    try:
        what()
    except OSError as error:
        assert error.errno in (errno.EBADF, errno.EBUSY, errno.ENOTTY), error
        return str(error)


assert "closed the engine's descriptors" in attempt(lambda: engine.scan(2, eager=True))
nothing_happened()
one[5] ^= 1
one[5] ^= 1
attempt(engine.unmerge)
nothing_happened()
pid = os.fork()
if not pid:
    nothing_happened()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
attempt(engine.close)
nothing_happened()
os._exit(0)
"""

LIKE_OURS = """
import os
import sys

import ksmpy
from support import memory

engine, idle = (ksmpy.Engine(freeze=sys.argv[1], tracking=sys.argv[2]) for _ in range(2))
one = memory.distinct(64)
two, wanted = memory.twin(one), one.tobytes()
for array in (one, two):
    engine.register(array)
engine.scan(eager=True)
numbers = [int(name) for name in os.listdir("/proc/self/fd")]
like = {
    number: os.readlink(f"/proc/self/fd/{number}")
    for number in numbers
    if number > 2 and os.path.lexists(f"/proc/self/fd/{number}")
}
os.closerange(3, 256)


def another(number, path):
    # What takes the number of ours: the same file, opened by the program.
    if "eventfd" in path:
        fd = os.eventfd(5, os.EFD_NONBLOCK)
    else:
        fd = os.open(path if path.startswith("/proc/") else "/dev/null", os.O_RDONLY)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)


for number, path in like.items():
    another(number, path)
known = {number: os.fstat(number) for number in like}
for what in (lambda: engine.scan(2, eager=True), engine.stats, engine.close, idle.close):
    try:
        what()
    except (OSError, ksmpy.KsmpyError):
        pass
for number, path in like.items():
    assert os.fstat(number).st_ino == known[number].st_ino, (number, path, "was closed")
    if "eventfd" in path:
        assert os.eventfd_read(number) == 5, (number, path, "was read or written")
    elif path.startswith("/proc/"):
        assert os.lseek(number, 0, os.SEEK_CUR) == 0, (number, path, "was read")
assert one.tobytes() == wanted == two.tobytes()
print(sum("eventfd" in path or path.startswith("/proc/") for path in like.values()), flush=True)
os._exit(0)
"""

DAEMON = """
import os
import sys
from pathlib import Path

import ksmpy
from ksmpy.store.store import Store
from support import memory

folder = Path(sys.argv[1])
store = Store.anonymous()
engine = ksmpy.Engine(store=store)
one = memory.distinct(64)
two, wanted = memory.twin(one), one.tobytes()
for array in (one, two):
    engine.register(array)
engine.scan(eager=True)
pid = os.fork()
if not pid:
    os.closerange(3, 256)
    paths = [folder / str(number) for number in range(24)]
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    for what in (engine.stats, lambda: engine.scan(eager=True), engine.unmerge):
        try:
            what()
        except (OSError, ksmpy.KsmpyError):
            pass
    assert not any(os.fstat(file).st_size for file in files)
    assert one.tobytes() == wanted == two.tobytes()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert engine.stats().pages_sharing == 64
engine._core.check()
engine.close()
assert one.tobytes() == wanted == two.tobytes()
"""


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_an_engine_whose_descriptors_are_gone(chosen: Mode, tmp_path: Path) -> None:
    """It touches no file of the program's, and loses no byte."""
    if reason := chosen.missing():
        pytest.skip(reason)
    python_ok("-c", RECYCLED, str(tmp_path), *chosen)


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_descriptors_that_look_like_ours(chosen: Mode) -> None:
    """What the program opened itself is its own, also where it has the inode of what ours was."""
    if reason := chosen.missing():
        pytest.skip(reason)
    done = python_ok("-c", LIKE_OURS, *chosen)
    assert int(done) >= 6


def test_a_daemon_that_closes_everything(tmp_path: Path) -> None:
    """A child of a process on a shared store, whose log files get the store's numbers."""
    python_ok("-c", DAEMON, str(tmp_path))


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_what_is_printed_without_standard_files(chosen: Mode, shared: bool) -> None:
    """Where those are closed, no descriptor of ours takes their numbers, nor text a frame."""
    if reason := chosen.missing():
        pytest.skip(reason)

    def child() -> None:
        os.closerange(0, 3)
        one = memory.distinct(64)
        two, wanted = memory.twin(one), one.tobytes()
        store = Store.anonymous() if shared else None
        engine = ksmpy.Engine(store=store, **chosen.options)  # type: ignore[arg-type]
        for array in (one, two):
            engine.register(array)
        engine.scan(2, eager=True)
        sharing = engine.stats().pages_sharing
        held = {
            fd: os.readlink(f"/proc/self/fd/{fd}")
            for fd in range(3)
            if os.path.lexists(f"/proc/self/fd/{fd}")
        }
        for fd in held:
            with contextlib.suppress(OSError):
                os.write(fd, b"a library warns" * (64 * PAGE))
        assert sharing == 64 and one.tobytes() == wanted == two.tobytes()
        assert not held, held

    in_child(child)


@pytest.mark.parametrize("chosen", EACH_FREEZE, ids=str)
def test_no_descriptor_is_left(chosen: Mode) -> None:
    """Everything is given back all the same, and what threads read is looked at without one."""
    if reason := chosen.missing():
        pytest.skip(reason)

    def child() -> None:
        one = memory.distinct(1024)
        two, wanted = memory.twin(one), one.tobytes()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        engine = ksmpy.Engine(**chosen.options)  # type: ignore[arg-type]
        for array in (one, two):
            engine.register(array)
        engine.scan(eager=True)
        for _ in range(2):
            one[::PAGE] ^= 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        engine.close()
        for fd in held:
            os.close(fd)
        assert not any(oracle.maps_store(*memory.span(array)) for array in (one, two))
        assert one.tobytes() == wanted == two.tobytes()

    in_child(child)
