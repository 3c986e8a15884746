"""Handles of stores: what they are worth, and how they get to another process."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import mmap
import multiprocessing
import multiprocessing.resource_sharer
import multiprocessing.resource_tracker
import os
import pickle
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ksmpy
from ksmpy import RegionError, Store, StoreError, StoreProcess
from ksmpy.store.files import is_shared_store, is_store
from ksmpy.store.store import attach
from ksmpy.watch.observe import users
from ksmpy.watch.savings import observe
from support import memory
from support.libc import libc
from support.oracle import PAGE
from support.procs import in_child, python_ok


@pytest.fixture(autouse=True, scope="module")
def resource_tracker() -> None:
    """Multiprocessing's helper process stays from its first use on: it is no test's leftover."""
    multiprocessing.resource_tracker.ensure_running()


# ---- handles ------------------------------------------------------------------------------


def test_a_closed_store_is_of_no_use(place: Path) -> None:
    """close() gives the descriptor back, once; everything else raises StoreError (EBADF)."""
    store = Store.open("name")
    fd = store.fileno()
    store.close()
    store.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    uses: list[Callable[[], object]] = [
        store.fileno, store.stats, store.processes, store.unlink, store.__enter__,
        lambda: pickle.dumps(store), lambda: ksmpy.Engine(store=store),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(StoreError, match="the store 'name' is closed") as caught:
            use()
        assert caught.value.errno == errno.EBADF
    assert store.closed and store.name == "name" and (place / "name.ksmpy").exists()
    assert "closed" in repr(store)


def test_a_forgotten_store_gives_its_descriptor_back(place: Path) -> None:
    """No handle keeps a file open for longer than it lives."""
    store = Store.open("name")
    fd = store.fileno()
    del store
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_store_is_never_a_standard_file(place: Path) -> None:
    """Where they are closed, a store takes a higher descriptor: no print ends up in it."""

    def look() -> None:
        os.closerange(0, 3)
        with Store.open("name") as named, Store.anonymous() as other:
            assert named.fileno() > 2 and other.fileno() > 2
            for fd in range(3):
                with pytest.raises(OSError):
                    os.fstat(fd)

    in_child(look)


def test_equal_handles_are_of_one_store(place: Path) -> None:
    """Two handles of a name are equal, those of two names or of two memfds are not."""
    with Store.open("a") as a, Store.open("a") as again, Store.open("b") as b:
        assert a == again and hash(a) == hash(again) and a != b and a != "a"
        with Store.from_fd(a.fileno()) as by_fd:
            assert by_fd == a and by_fd.fileno() != a.fileno() and by_fd.name is None
    with Store.anonymous() as one, Store.anonymous() as other:
        assert one != other and one.name is None and one.path is None
        assert "without a name" in repr(one)


def test_unlink_removes_the_name_only(place: Path) -> None:
    """Handles go on with their file; the name gives a new one; twice is no error."""
    with Store.open("name") as old:
        os.pwrite(old.fileno(), b"old", 0)
        assert old.unlink() is True
        assert not os.listdir(place)
        assert os.pread(old.fileno(), 3, 0) == b"old"
        assert old.unlink() is True
        with Store.open("name") as new:
            assert new != old and os.pread(new.fileno(), 3, 0) == b""
            assert old.unlink() is True, "the name is another store's by now"
            assert os.listdir(place) == ["name.ksmpy"]
        shutil.rmtree(place)
        assert old.unlink() is True


def test_unlink_never_removes_a_store_that_took_the_name(place: Path) -> None:
    """Who removes a name waits for another who does, and looks again at whose it is."""
    with Store.open("name") as old:
        folder = os.open(place, os.O_DIRECTORY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        late = threading.Thread(target=old.unlink)
        late.start()
        late.join(0.2)
        assert late.is_alive()
        (place / "name.ksmpy").unlink()
        Store.open("name").close()
        os.close(folder)
        late.join()
    assert os.listdir(place) == ["name.ksmpy"]


def test_an_anonymous_store_has_nothing_to_unlink() -> None:
    """unlink() on it is no error, and it goes on."""
    with Store.anonymous() as store:
        assert store.unlink() is True
        assert os.pwrite(store.fileno(), b"x", 0) == 1


def test_attaching_opens_a_retired_name_anew(place: Path) -> None:
    """ESTALE by name: the retired file goes, even if who retired it died; a Store stays refused."""
    Store.open("name").close()
    retired = {os.stat(place / "name.ksmpy").st_ino}

    def make(fd: int) -> int:
        if os.fstat(fd).st_ino in retired:
            raise OSError(errno.ESTALE, "stale")
        return os.fstat(fd).st_ino

    with Store.open("name") as old:
        inode, handle = attach("name", make)
        assert handle is not None and handle.fileno() != old.fileno()
        with handle:
            assert inode == os.stat(place / "name.ksmpy").st_ino and inode not in retired
        with pytest.raises(StoreError, match="open it again by its name"):
            attach(old, make)


@pytest.mark.parametrize(
    "number",
    ["EUCLEAN", "EPROTO", "EUSERS", "ENOSPC", "EXDEV", "EREMOTE", "ETIMEDOUT", "ESTALE", "EIO"],
)
def test_a_store_that_cannot_be_attached_to_is_named(place: Path, number: str) -> None:
    """The StoreError has the native errno and the store's name, and nothing stays open."""
    seen: list[int] = []

    def make(fd: int) -> int:
        seen.append(fd)
        raise OSError(getattr(errno, number), "not this time")

    with pytest.raises(StoreError) as caught:
        attach("name", make)
    for fd in seen:
        with pytest.raises(OSError):
            os.fstat(fd)
    assert caught.value.errno == getattr(errno, number)
    assert caught.value.strerror.startswith("the store 'name' ")


# ---- to other processes -----------------------------------------------------------------------


def test_pickles_of_a_named_store_open_it_again(
    above: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and directory, wherever the other process stands; made anew when it is gone."""
    monkeypatch.chdir(above)
    with Store.open("name", directory="here") as store, pickle.loads(pickle.dumps(store)) as twin:
        assert twin == store and twin.fileno() != store.fileno() and twin.name == "name"
        monkeypatch.chdir("/")
        text = pickle.dumps(store)
        with pickle.loads(text) as far, copy.copy(store) as copied:
            assert far == store == copied
        store.unlink()
        with pickle.loads(text) as new:
            assert new != store and new.path == str(above / "here" / "name.ksmpy")


def _write(store: Store, text: bytes) -> None:
    assert not os.get_inheritable(store.fileno())
    os.pwrite(store.fileno(), text, 0)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("kind", ["named", "anonymous"])
def test_stores_go_to_children_of_multiprocessing(place: Path, method: str, kind: str) -> None:
    """As an argument of a Process: what the child writes, the parent reads."""
    context: Any = multiprocessing.get_context(method)
    with Store.open("name") if kind == "named" else Store.anonymous() as store:
        child = context.Process(target=_write, args=(store, b"by the child"))
        child.start()
        child.join()
        assert child.exitcode == 0
        child.close()
        assert os.pread(store.fileno(), 12, 0) == b"by the child"
        if method == "forkserver":
            multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _take_and_write(queue: Any) -> None:
    _write(queue.get(), b"from a queue")


def test_an_anonymous_store_goes_through_a_queue() -> None:
    """A running child gets a descriptor too."""
    context = multiprocessing.get_context("spawn")
    with Store.anonymous() as store:
        queue = context.SimpleQueue()
        child = context.Process(target=_take_and_write, args=(queue,))
        child.start()
        queue.put(store)
        child.join()
        assert child.exitcode == 0
        child.close()
        queue.close()
        assert os.pread(store.fileno(), 12, 0) == b"from a queue"
    multiprocessing.resource_sharer.stop(timeout=10)


def test_an_anonymous_store_goes_over_a_unix_socket() -> None:
    """fileno() on one side, from_fd() on the other."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Store.anonymous() as store:

        def receive() -> None:
            _, (fd,), _, _ = socket.recv_fds(theirs, 1, 1)
            with Store.from_fd(fd) as received:
                os.close(fd)
                assert received == store
                _write(received, b"by socket")

        socket.send_fds(ours, [b"."], [store.fileno()])
        in_child(receive)
        assert os.pread(store.fileno(), 9, 0) == b"by socket"


def test_descriptors_that_are_no_stores_are_refused() -> None:
    """Closed, a pipe, read-only, on huge pages: StoreError, and the descriptor stays open."""
    read, write = os.pipe()
    with Store.anonymous() as store:
        only = os.open(f"/proc/self/fd/{store.fileno()}", os.O_RDONLY)
        for fd, number in ((read, errno.EINVAL), (only, errno.EACCES)):
            with pytest.raises(StoreError, match=f"descriptor {fd} ") as caught:
                Store.from_fd(fd)
            assert caught.value.errno == number
            os.close(fd)
    os.close(write)
    with pytest.raises(StoreError, match=f"descriptor {write} is not open") as caught:
        Store.from_fd(write)
    assert caught.value.errno == errno.EBADF
    try:
        huge = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError:  # not in this kernel
        return
    with pytest.raises(StoreError, match="not on tmpfs"):
        Store.from_fd(huge)
    os.close(huge)


def test_opening_a_store_imports_little(place: Path) -> None:
    """Neither multiprocessing, which only sending needs, nor numpy."""
    told = python_ok(
        "-c",
        "import sys, ksmpy\n"
        "ksmpy.Store.open('name').close()\n"
        "print({'multiprocessing', 'numpy', 'socket'} & set(sys.modules))",
    )
    assert told == "set()\n"


# ---- seen from outside --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "store", "shared"),
    [
        ("/memfd:ksmpy (deleted)", True, False),
        ("/memfd:ksmpy-store (deleted)", True, True),
        ("/dev/shm/ksmpy-0/two words.ksmpy", True, True),
        ("/dev/shm/ksmpy-0/name.ksmpy (deleted)", True, True),
        ("/dev/shm/ksmpy-0/name", False, False),
        ("/usr/lib/ksmpy/_ksmpy.abi3.so", False, False),
        ("/memfd:other (deleted)", False, False),
        ("", False, False),
    ],
)
def test_paths_of_stores(path: str, store: bool, shared: bool) -> None:
    """Named ones by the end of their path, unlinked or not; memfds by their name."""
    assert (is_store(path), is_shared_store(path)) == (store, shared)


def test_overlays_of_a_named_store_are_known(place: Path) -> None:
    """Merged pages of it count as merged for stats and analyze, and are no buffer to register."""
    array, other = memory.distinct(8), memory.distinct(8, seed=5)
    address, nbytes = memory.span(array)
    with Store.open("name") as store:
        os.pwrite(store.fileno(), other.tobytes(), 0)
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | 0x10  # MAP_FIXED
        assert libc.mmap(address, nbytes, prot, flags, store.fileno(), 0) == address
        array[0] ^= 1
        for _ in ("named", "unlinked"):
            seen = observe(os.getpid())
            assert (seen.merged_bytes, seen.written_bytes) == (8 * PAGE, PAGE)
            assert seen.stores == [os.fstat(store.fileno()).st_ino]
            assert seen.frame_bytes == os.fstat(store.fileno()).st_blocks * 512
            assert os.getpid() in users()
            with ksmpy.Engine() as engine, pytest.raises(RegionError, match="merged already"):
                engine.register(array)
            store.unlink()
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
    assert libc.mmap(address, nbytes, prot, anonymous, -1, 0) == address


def test_a_process_is_its_pid() -> None:
    """StoreProcess counts, compares and prints as an int, and keeps the rest through a pickle."""
    process = StoreProcess(12, True, 34)
    assert process == 12 and [process] == [12] and {12: "x"}[process] == "x"
    assert f"{process}" == str(process) == "12"
    twin = pickle.loads(pickle.dumps(process))
    assert (twin, twin.pid, twin.inherited, twin.merging_pages) == (12, 12, True, 34)
    assert repr(twin) == "StoreProcess(pid=12, inherited=True, merging_pages=34)"


def test_what_has_the_descriptors_number_is_the_programs(tmp_path: Path) -> None:
    """Whoever closes every descriptor finds files of his own neither cut, nor used, nor closed."""

    def look() -> None:
        text = b"mine" * 5000
        (tmp_path / "file").write_bytes(text)
        store = Store.anonymous()
        fd = store.fileno()
        for content in (text, b""):
            own = os.open(tmp_path / "file", os.O_RDWR)
            os.truncate(own, len(content))
            os.dup2(own, fd)
            for what in (
                store.fileno,
                store.stats,
                store.processes,
                lambda: store.unlink(unused_only=True),
                lambda: ksmpy.Engine(store=store),
            ):
                with pytest.raises(StoreError, match="has closed the descriptor"):
                    what()
            assert os.fstat(fd).st_size == len(content)
            assert os.pread(fd, len(text), 0) == content
        store.close()
        assert store.closed and os.path.sameopenfile(fd, own)

    in_child(look)
