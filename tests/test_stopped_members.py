"""A process is stopped with a store's lock, as by a signal, a debugger or a freezer: the others go
on with what need not wait, and are told who stands in the way of the rest.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import EACH_FREEZE, Mode
from ksmpy import Store, StoreError
from support.layout import frame_memory
from support.nursery import Nursery, Peer
from support.patience import patience, until
from support.sharer import PAGES

pytestmark = pytest.mark.timeout(200)
EACH = pytest.mark.parametrize("mode", EACH_FREEZE, ids=str)

#: How long what does not wait may take, in seconds. The limit of what waits is 5 seconds.
SOON = patience(4)
#: Pages of a run for which the index needs memory, so that it is stopped with the lock.
LONG = 1200


@pytest.fixture
def mode() -> Mode:
    """The first way of freezing that this machine has; tests that are marked run in each."""
    return next(mode for mode in EACH_FREEZE if not mode.missing())


class Stopped:
    """Processes on one store, of which the holder is stopped with the lock."""

    def __init__(self, nursery: Nursery, store: Store, mode: Mode) -> None:
        self.nursery, self.store, self.mode = nursery, store, mode
        self.holder, self.member = self.born(), self.born()
        self.member.call("add", 2, 2)
        self.member.call("scan", 2)
        self.holder.call("add", 7, 2, LONG)

    def born(self) -> Peer:
        """One more process, with the bytes that all have."""
        peer = self.nursery.born(self.store)
        peer.call("attach", self.mode.options)
        peer.call("add", 1)
        peer.call("scan", 3)
        return peer

    def stop(self) -> None:
        """From now on the lock is held."""
        self.holder.stop("fallocate", 1, True, "scan", 1)

    def go_on(self) -> None:
        """The holder comes to its end of the scan, and all structures are sound."""
        self.holder.go_on()
        self.holder.call("check")


@pytest.fixture
def stopped(nursery: Nursery, store: Store, mode: Mode) -> Iterator[Stopped]:
    """A holder that is about to be stopped, and a member."""
    if reason := mode.missing():
        pytest.skip(reason)
    yield Stopped(nursery, store, mode)


@EACH
def test_forks_and_frees_do_not_wait(stopped: Stopped) -> None:
    """Deaths of arrays, forks, registering, unmerging and close: each at once, no byte is wrong,
    and the store is told as soon as the lock is to be had.
    """
    member = stopped.member
    stopped.stop()
    for work in ("drop", "fork_and_wait", "drop", "unmerge", "fork_and_wait"):
        assert member.call("seconds", work) < SOON, work
    assert member.call("seconds", "add", 3) < SOON
    member.call("compare")
    assert stopped.store.processes(), "who is on the store is told without its lock"
    stopped.go_on()
    assert member.call("stats").merging_pages == 0
    pages = {int(p): p.merging_pages for p in stopped.store.processes()}
    assert pages[member.pid] == 0
    member.call("scan", 3)
    member.call("check")
    member.call("close")
    member.call("compare")
    stopped.holder.call("close")
    stopped.holder.call("compare")
    assert stopped.store.stats().frame_bytes == 0 == frame_memory(stopped.store)
    assert stopped.store.stats().deaths == 0


def test_close_does_not_wait(stopped: Stopped) -> None:
    """Who leaves meanwhile is reaped afterwards: nothing of its is left in the store."""
    stopped.stop()
    assert stopped.member.call("seconds", "close") < SOON
    stopped.member.call("compare")
    stopped.go_on()
    stopped.holder.call("scan", 1)
    pages = {int(p): p.merging_pages for p in stopped.store.processes()}
    assert set(pages) == {stopped.holder.pid}
    stopped.holder.call("close")
    assert stopped.store.stats().frame_bytes == 0 == frame_memory(stopped.store)


def test_what_asks_the_store_is_told_who_has_it(stopped: Stopped) -> None:
    """Scans, counters, knobs, checks and newcomers: ETIMEDOUT, and the holder's process id; forks
    of the same process do not wait meanwhile.
    """
    asked = {
        "scan": (), "stats": (), "whole_stats": (), "check": (),
        "set_knob": ("use_zero_pages", 1), "attach": (stopped.mode.options,),
    }  # fmt: skip
    peers = {work: stopped.born() for work in asked}
    stopped.stop()
    for work, arguments in asked.items():
        peers[work].start("refused", work, *arguments)
    with pytest.raises(StoreError) as caught:
        stopped.store.stats()
    assert caught.value.errno == errno.ETIMEDOUT
    for work, peer in peers.items():
        number, text, longest = peer.answer()
        assert number == errno.ETIMEDOUT, work
        assert "the anonymous store" in text and f"process {stopped.holder.pid};" in text, work
        assert longest < SOON, work
    stopped.go_on()
    for peer in peers.values():
        peer.call("scan")
        peer.call("check")


def test_who_waits_goes_on_when_the_holder_does(stopped: Stopped) -> None:
    """A scan that found the store locked ends its pass once it is not."""
    stopped.member.call("add", 9)
    stopped.stop()
    stopped.member.start("scan", 2)
    assert not stopped.member.answered(0.5)
    stopped.go_on()
    assert stopped.member.answer() < SOON
    assert stopped.member.call("on_frames") == (3 * PAGES, 6 * PAGES)
    stopped.member.call("check")


def test_who_was_stopped_itself_has_not_waited(stopped: Stopped) -> None:
    """A whole fleet that was paused goes on, whoever had the lock: that was nobody's patience."""
    stopped.stop()
    stopped.member.start("scan", 1)
    time.sleep(0.5)
    os.kill(stopped.member.pid, signal.SIGSTOP)
    time.sleep(5.5)
    os.kill(stopped.member.pid, signal.SIGCONT)
    time.sleep(0.5)
    stopped.go_on()
    stopped.member.answer()
    stopped.member.call("check")


def test_who_cannot_mend_leaves_it_to_others(stopped: Stopped) -> None:
    """The holder dies in the middle of a change, and who comes upon that has had its files closed:
    it is refused, keeps its bytes, and the next one makes the index anew.
    """
    other = stopped.born()
    stopped.stop()
    stopped.member.call("close_files")
    stopped.holder.kill()
    assert stopped.member.call("asked") == errno.EBADF
    stopped.member.call("compare")
    other.call("scan", 2)
    other.call("check")
    assert stopped.store.stats().rebuilds == 1
    stopped.member.call("compare")


def test_frames_that_could_not_be_told_of_outlive_their_maker(
    stopped: Stopped, tmp_path: Path
) -> None:
    """A process has mapped frames that are not in the index yet, forks, and is killed: the child
    keeps its bytes, and the frames go when it does.
    """
    member, told = stopped.member, tmp_path / "told"
    member.call("add", 9)
    member.stop("mmap(MAP_FIXED)", 1, False, "refused_then_fork", str(told))
    stopped.stop()
    assert member.go_on() > 0
    member.kill()
    stopped.go_on()
    stopped.holder.call("scan", 2)
    told.touch()
    until(lambda: told.read_text() == "right", told.read_text)
    until(lambda: stopped.store.processes() == [stopped.holder.pid], stopped.store.processes)
    stopped.holder.call("close")
    assert stopped.store.stats().frame_bytes == 0 == frame_memory(stopped.store)


def test_a_stopped_newcomer_keeps_the_attach_lock(
    nursery: Nursery, store: Store, mode: Mode
) -> None:
    """Others that want in are refused after a while; who is in goes on, and forks."""
    inside = nursery.born(store)
    inside.call("attach", mode.options)
    inside.call("add", 1)
    newcomer = nursery.born(store)
    newcomer.stop("fallocate", 1, True, "attach", mode.options)
    number, _, longest = inside.call("refused", "attach", mode.options)
    assert number == errno.ETIMEDOUT and longest < SOON
    os.kill(newcomer.pid, signal.SIGCONT)
    newcomer.answer()
    inside.call("scan", 2)
    inside.call("check")
