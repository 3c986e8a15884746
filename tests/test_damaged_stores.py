"""Stores that cannot be used, or only in part: no crash, no wrong bytes, nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import ksmpy
from conftest import EACH_FREEZE
from ksmpy import Store, StoreError, native
from ksmpy.cli import main
from ksmpy.proc import command
from ksmpy.watch.savings import observe
from support.layout import LOCK_AT, frame_memory
from support.nursery import Nursery, Peer
from support.oracle import PAGE
from support.patience import patience, until
from support.procs import python
from support.sharer import PAGES

pytestmark = pytest.mark.timeout(200)
OPTIONS = next(mode for mode in EACH_FREEZE if not mode.missing()).options
SECONDS = float(os.environ.get("KSMPY_FUZZ_SECONDS", "0"))
SHAPE = "<QIIQIIIIQQ"  # struct store_shape, up to its own checksum
SLOTS = 1024


def sharer(nursery: Nursery, store: Store, seed: int = 1) -> Peer:
    """A process with merged pages."""
    peer = nursery.born(store)
    peer.call("attach", OPTIONS)
    peer.call("add", seed)
    peer.call("scan", 3)
    peer.call("check")
    return peer


# ---- bytes ------------------------------------------------------------------------------------


@pytest.mark.timeout(300 + SECONDS)
@pytest.mark.parametrize("neighbour", ["alive", pytest.param("dead", marks=pytest.mark.rest)])
def test_any_byte_may_be_wrong(neighbour: str) -> None:
    """In the header or the index: a refused store, or right bytes for everybody.

    KSMPY_FUZZ_SECONDS makes it longer, with other bytes each time.
    """
    seed = time.time_ns() % 10**6 if SECONDS else 1
    arguments = [str(seed), "75", str(SECONDS), neighbour]
    done = python("-m", "support.damage", *arguments, seconds=280 + SECONDS)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not seen["problems"], (seed, seen, done.stderr)
    assert seen["right"] and (seen["refused"] or neighbour == "dead"), seen


def _shape_with(store: Store, index: int, change: Callable[[int], int], *, summed: bool) -> None:
    fields = list(struct.unpack(SHAPE, os.pread(store.fileno(), 56, 0)))
    fields[index] = change(fields[index])
    text = struct.pack(SHAPE, *fields)
    os.pwrite(store.fileno(), text, 0)
    if summed:
        os.pwrite(store.fileno(), struct.pack("<Q", native.checksum(text.ljust(64, b"\0"))), 56)


def test_a_lock_that_is_none_any_more(nursery: Nursery, store: Store) -> None:
    """Somebody writes over it: what needs the store is refused, nobody ends, all bytes stay."""
    peers = [sharer(nursery, store), sharer(nursery, store)]
    mutex = os.pread(store.fileno(), 40, LOCK_AT)
    os.pwrite(store.fileno(), b"\x7f" * 40, LOCK_AT)
    for peer in peers:
        for work in ("scan", "stats", "whole_stats"):
            number, text, _ = peer.call("refused", work)
            assert number == errno.EUCLEAN and "is damaged" in text, work
        peer.call("compare")
    peers[0].call("unmerge")
    peers[0].call("compare")
    os.pwrite(store.fileno(), mutex, LOCK_AT)
    assert peers[1].call("refused", "scan")[0] == errno.EUCLEAN, "who saw it believes nothing"
    for peer in peers:
        peer.call("close")
        peer.call("compare")
    sharer(nursery, store).call("close")
    assert store.stats().frame_bytes == 0 == frame_memory(store)


FIELDS = [
    "magic", "version", "page size", "checksum", "nodes", "span", "slots", "record", "size",
    "mutex",
]  # fmt: skip


@pytest.mark.parametrize("field", range(len(FIELDS)), ids=FIELDS)
def test_another_layout_is_refused(nursery: Nursery, store: Store, field: int) -> None:
    """By EPROTO, if its maker says so; what nobody would have written is damaged: EUCLEAN."""
    first = sharer(nursery, store)
    newcomer = nursery.born(store)
    shape = os.pread(store.fileno(), 64, 0)
    _shape_with(store, field, lambda value: value ^ 1, summed=False)
    damaged = errno.EPROTO if field == 0 else errno.EUCLEAN
    assert newcomer.call("refusal", OPTIONS) == damaged
    for change in (lambda value: value ^ 1, lambda value: value * 2 % 2**64, lambda value: 0):
        os.pwrite(store.fileno(), shape, 0)
        _shape_with(store, field, change, summed=True)
        if field or os.pread(store.fileno(), 8, 0) != bytes(8):
            assert newcomer.call("refusal", OPTIONS) == errno.EPROTO
    os.pwrite(store.fileno(), shape, 0)
    assert newcomer.call("refusal", OPTIONS) == 0
    first.call("scan", 2)
    first.call("check")


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("size", [10, PAGE, 1 << 20, -PAGE, 0], ids=str)
def test_another_size_is_refused(nursery: Nursery, store: Store, used: bool, size: int) -> None:
    """A file that was cut, or made longer (0); once nobody uses it, it can be removed."""
    first = sharer(nursery, store)
    if not used:
        first.kill()
    whole = os.fstat(store.fileno()).st_size
    os.ftruncate(store.fileno(), size if size > 0 else whole + (size or PAGE))
    newcomer = nursery.born(store)
    assert newcomer.call("refusal", OPTIONS) in (errno.EUCLEAN, errno.EPROTO)
    with pytest.raises(StoreError):
        store.stats()
    first.kill()
    assert store.unlink(unused_only=True)
    assert newcomer.call("refusal", OPTIONS) == errno.ESTALE


# ---- no room ----------------------------------------------------------------------------------


@contextmanager
def small_tmpfs(path: Path, size: str) -> Iterator[Path]:
    """A file system of that size, gone afterwards; skips where it cannot be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("size", ["16k", "64k", "128k", "256k", "1m", "5m"])
def test_a_full_file_system(nursery: Nursery, tmp_path: Path, size: str) -> None:
    """ENOSPC to who comes, or as many frames as there is room for; never a SIGBUS."""
    with ExitStack() as stack:
        place = stack.enter_context(small_tmpfs(tmp_path / "small", size))
        store = stack.enter_context(Store.open("name", directory=place / "stores"))
        stack.callback(nursery.reap_all)
        first, second = nursery.born(store), nursery.born(store)
        refused = first.call("refusal", OPTIONS)
        assert refused in ((0, errno.ENOSPC) if size != "5m" else (0,))
        if refused:
            return
        first.call("add", 5, 2, 2000)
        first.call("scan", 3)
        first.call("check")
        if second.call("refusal", OPTIONS) == 0:
            second.call("add", 5, 2, 2000)
            second.call("scan", 3)
            second.call("check")
            second.call("close")
        frames, pages = first.call("on_frames")
        assert frames < 2000 and (pages > 0 or size != "5m")
        first.call("unmerge")
        first.call("scan", 1)
        first.call("close")
        first.call("compare")
        assert store.stats().frame_bytes == 0 == frame_memory(store)


FULL = 12 << 20  # of a file system that the arrays below fill
TOO_MANY = 5000  # pages


@pytest.fixture
def small_store(nursery: Nursery, tmp_path: Path) -> Iterator[Store]:
    """A store that is full before all frames have found room."""
    with ExitStack() as stack:
        place = stack.enter_context(small_tmpfs(tmp_path / "small", str(FULL)))
        store = stack.enter_context(Store.open("name", directory=place / "stores"))
        stack.callback(nursery.reap_all)
        yield store


def _holders(nursery: Nursery, store: Store, seed: int, count: int) -> list[Peer]:
    peers = [nursery.born(store) for _ in range(count)]
    for peer in peers:
        peer.call("attach", OPTIONS)
        peer.call("add", seed, 1, TOO_MANY)
    return peers


def _merge_in_turn(peers: list[Peer], passes: int) -> None:
    for _ in range(passes):
        for peer in peers:
            peer.call("scan", 1)


def test_what_fits_is_shared_by_all(nursery: Nursery, small_store: Store) -> None:
    """In a full store each frame has all sharers that there are for it, a newcomer's too."""
    peers = _holders(nursery, small_store, 1, 3)
    _merge_in_turn(peers, 6)
    peers += _holders(nursery, small_store, 1, 1)
    _merge_in_turn(peers, 3)
    stats = small_store.stats()
    assert stats.full
    assert [peer.call("on_frames")[0] for peer in peers] == [stats.pages_shared] * 4
    assert stats.pages_sharing == 3 * stats.pages_shared
    assert stats.pages_shared > FULL // PAGE * 0.8
    for peer in peers:
        peer.call("check")


def test_sharers_are_counted_where_nothing_is_left(nursery: Nursery, small_store: Store) -> None:
    """Who was there before others took the rest of the file system joins all frames."""
    first, second, third = _holders(nursery, small_store, 1, 3)
    _merge_in_turn([first, second], 6)
    peers = [first, second, third, *_holders(nursery, small_store, 1, 1)]
    with open(Path(str(small_store.directory)) / "filler", "wb", buffering=0) as filler:
        with suppress(OSError):
            while filler.write(bytes(1 << 16)):
                pass
        with suppress(OSError):
            while filler.write(bytes(PAGE)):
                pass
        _merge_in_turn(peers, 3)
        frames = small_store.stats().pages_shared
        assert frames and [peer.call("on_frames")[0] for peer in peers] == [frames] * 4


def test_a_full_store_is_told_of_once(
    nursery: Nursery,
    small_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the log; and for as long as there is no room by doctor(), in whatever process, and by
    `ksmpy store list`.
    """
    first, second = _holders(nursery, small_store, 1, 2)
    assert first.call("doctor", "room in stores")[0] and first.call("warnings") == []
    _merge_in_turn([first, second], 6)
    first.call("add", 3, 2, 100)
    _merge_in_turn([first], 6)
    (said,) = [text for text in first.call("warnings") if "> is full" in text]
    ok, detail, hint = first.call("doctor", "room in stores")
    assert not ok and "none left in <Store" in detail
    assert "shm-size" in hint and "shm-size" in said
    monkeypatch.setenv("KSMPY_STORE_DIR", str(small_store.directory))
    (room,) = [check for check in ksmpy.doctor() if check.name == "room in stores"]
    assert not room.ok and "none left in name" in room.detail  # which no engine of ours uses
    assert main(["store", "list"]) == 0
    assert "in use, full" in " ".join(capsys.readouterr().out.split())
    second.kill()
    first.call("unmerge")
    first.call("scan", 2)
    assert first.call("doctor", "room in stores")[0]


def test_who_looks_from_outside_is_told_of_a_full_store(
    nursery: Nursery,
    small_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By `ksmpy export` and `ksmpy report`: as its engines have noted where nobody here knows it by
    its name.
    """
    pytest.importorskip("prometheus_client")
    pytest.importorskip("bokeh")
    from prometheus_client import CollectorRegistry

    from ksmpy.watch.metrics import Collector

    registry = CollectorRegistry()
    registry.register(Collector())
    peer, _ = peers = _holders(nursery, small_store, 1, 2)

    def noted() -> int:
        _merge_in_turn(peers, 1)
        return len(observe(peer.pid).full_stores)

    def told() -> tuple[bool, str]:
        page = tmp_path / "page.html"
        assert main(["report", str(peer.pid), "--json", "-o", str(page)]) == 0
        (store,) = json.loads(capsys.readouterr().out)["stores"]
        assert ("is full: what is in it" in page.read_text()) == store["full"]
        return store["full"], store["name"]

    assert told() == (False, "without a name")
    until(lambda: noted() == 1, "a full store is not noted")
    assert told() == (True, "without a name")
    assert main(["report", str(peer.pid), "-o", str(tmp_path / "page.html")]) == 0
    assert "the store without a name is full" in capsys.readouterr().out
    labels = {"pid": str(peer.pid), "command": command(peer.pid)}
    assert registry.get_sample_value("ksmpy_process_full_stores", labels) == 1
    monkeypatch.setenv("KSMPY_STORE_DIR", str(small_store.directory))
    assert told() == (True, "name")
    assert registry.get_sample_value("ksmpy_store_full", {"store": "name"}) == 1


def test_frames_that_nobody_joins_make_room(nursery: Nursery, small_store: Store) -> None:
    """What others have as well comes into a store that was full of one process's pages."""
    first, second = _holders(nursery, small_store, 1, 2)
    _merge_in_turn([first, second], 6)
    before = small_store.stats().pages_shared
    second.kill()
    others = _holders(nursery, small_store, 2, 2)
    _merge_in_turn([first, *others], 10)
    assert [peer.call("on_frames")[0] for peer in others] == [small_store.stats().pages_shared] * 2
    assert first.call("on_frames")[0] == 0
    assert small_store.stats().pages_shared > before * 0.9
    for peer in others:
        peer.kill()
    first.call("scan", 3)
    assert not small_store.stats().full
    first.call("check")


def test_no_descriptors(nursery: Nursery, store: Store) -> None:
    """Attaching with ever more of them is EMFILE until it works, and leaves nothing behind."""
    first = sharer(nursery, store)
    newcomer = nursery.born(store)
    seen = newcomer.call("refusals_without_descriptors", OPTIONS)
    assert len(seen) > 4 and set(seen) <= {errno.EMFILE, errno.EOPNOTSUPP}, seen
    assert store.processes() == [first.pid, newcomer.pid]
    newcomer.call("add", 1)
    newcomer.call("scan", 3)
    assert store.stats().pages_sharing == 3 * PAGES


def test_ten_thousand_stores(place: Path) -> None:
    """They cost a file each, and no descriptor once closed."""
    before = len(os.listdir("/proc/self/fd"))
    begin = time.monotonic()
    for number in range(10_000):
        with Store.open(f"store-{number}") as store:
            if number % 100 == 0:
                assert store.stats().frame_bytes == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir(place)) == 10_000
    for number in range(10_000):
        with Store.open(f"store-{number}", create=False) as store:
            assert store.unlink()
    assert os.listdir(place) == []
    assert time.monotonic() - begin < patience(60)


@contextmanager
def all_slots_taken(store: Store) -> Iterator[None]:
    """The slots that are free are held by their locks, as by processes that just come."""
    fd = os.open(f"/proc/self/fd/{store.fileno()}", os.O_RDWR)
    held = 0
    try:
        for slot in range(SLOTS):
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1 + slot, 1, 0)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
                held += 1
            except BlockingIOError:
                continue
        assert held >= SLOTS - 3
        yield
    finally:
        os.close(fd)


def test_no_slot_is_left(nursery: Nursery, store: Store) -> None:
    """Newcomers are refused by EUSERS, who is there goes on; room is used once there is some."""
    first = sharer(nursery, store)
    newcomer = nursery.born(store)
    with all_slots_taken(store):
        assert newcomer.call("refusal", OPTIONS) == errno.EUSERS
        assert store.processes() == [first.pid]
        first.call("add", 2)
        first.call("scan", 2)
        first.call("check")
    assert newcomer.call("refusal", OPTIONS) == 0


def test_a_fork_with_no_slot_left(nursery: Nursery, store: Store, tmp_path: Path) -> None:
    """The child cannot be waited for: the frames of that time are kept, later ones are freed."""
    first = sharer(nursery, store)
    told = tmp_path / "told"
    with all_slots_taken(store):
        first.call("fork", str(told))
    first.call("unmerge")
    first.call("scan", 1)
    first.call("unmerge")
    assert store.stats().stale_frames == PAGES
    assert frame_memory(store) == PAGES * PAGE
    told.touch()
    assert first.call("child_ended") == 0, "the child's bytes are wrong"
    first.call("add", 2)
    first.call("scan", 3)
    first.call("unmerge")
    first.call("check")
    assert store.stats().frame_bytes == PAGES * PAGE
    first.call("close")
    again = sharer(nursery, store)
    assert store.stats().frame_bytes == PAGES * PAGE == frame_memory(store)
    again.call("close")
    assert frame_memory(store) == 0


# ---- names and clocks -------------------------------------------------------------------------


def test_a_store_is_removed_while_in_use(nursery: Nursery, place: Path) -> None:
    """Two go on merging with each other; who opens the name from now on gets a new store."""
    with ExitStack() as stack:
        store = stack.enter_context(Store.open("name"))
        stack.callback(nursery.reap_all)
        first, second = sharer(nursery, store), sharer(nursery, store)
        assert not store.unlink(unused_only=True)
        assert store.unlink() and os.listdir(place) == []
        new = stack.enter_context(Store.open("name"))
        assert new != store
        third = sharer(nursery, new, seed=2)
        for peer in (first, second, first, second):
            peer.call("add", 2, 1)
            peer.call("scan", 2)
            peer.call("check")
        seen = store.stats()
        assert (seen.pages_shared, seen.pages_sharing) == (2 * PAGES, 6 * PAGES)
        assert new.processes() == [third.pid] and new.stats().pages_shared == PAGES
        first.call("close")
        second.call("close")
        assert frame_memory(store) == 0


def test_no_clock_that_jumps_is_asked(nursery: Nursery, store: Store) -> None:
    """Setting the time of day changes nothing: a whole life looks at CLOCK_MONOTONIC only."""
    sharer(nursery, store)
    assert nursery.born(store).call("clocks", "live", OPTIONS) == {"clock monotonic"}
