"""Random lives of many buffers, against plain bytes as the model and the kernel as the oracle.

Hypothesis invents sequences of registering, writing, scanning, unmerging, releasing, forking,
dying, moving between nodes and turning knobs. After every step each buffer holds what the model
holds, the engine's structures are sound, a saving that is claimed exists in the page tables, and
pages of different nodes do not share if they must not.

KSMPY_MACHINE_EXAMPLES sets how many sequences are tried for each mode (default 25).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ksmpy
from conftest import MODES, Mode
from ksmpy.engine.knobs import KNOBS, PAGES_TO_SCAN
from support import memory, oracle
from support.knobs import refused
from support.model import GOOD, RULES, Buffer, Lodger, Places, frames_by_page
from support.oracle import PAGE, Frame
from support.patience import until
from support.procs import PATIENCE, in_child

EXAMPLES = int(os.environ.get("KSMPY_MACHINE_EXAMPLES", "25"))
STEPS = 30
MAX_PAGES = 12
MAX_NODES = 8
MAX_LODGERS = 2

page_lists = st.lists(st.integers(0, memory.ALPHABET - 1), min_size=1, max_size=MAX_PAGES)


class Machine(RuleBasedStateMachine):
    """One engine and its buffers."""

    mode: Mode
    buffers: Bundle[Buffer] = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.engine: Any = None
        self.all: list[Buffer] = []
        self.lodgers: list[Lodger] = []
        self.settled = True

    # ---- buffers -----------------------------------------------------------------------

    @initialize(target=buffers, nodes=st.integers(1, MAX_NODES), across=st.integers(0, 1))
    def first(self, nodes: int, across: int) -> Buffer:
        """Some duplicates to begin with, on so many nodes."""
        self.places = Places(nodes)
        self.engine = ksmpy.Engine(topology=self.places, **self.mode.options)  # type: ignore[arg-type]
        self.knobs = self.engine.knobs.asdict()
        self.turn("merge_across_nodes", across)
        return self.adopt([0, 1, 2, 3, 1, 2, 3, 4], "pages")

    @rule(target=buffers, kinds=page_lists, shape=st.sampled_from(["pages", "heap", "bytearray"]))
    def register(self, kinds: list[int], shape: str) -> Buffer:
        """A new buffer comes."""
        return self.adopt(kinds, shape)

    def adopt(self, kinds: list[int], shape: str) -> Buffer:
        """Make a buffer and register it."""
        buffer = Buffer(kinds, shape)
        buffer.region = self.engine.register(buffer.array)
        self.all.append(buffer)
        return buffer

    @rule(buffer=buffers)
    def register_again(self, buffer: Buffer) -> None:
        """Registered: refused. Released: welcome."""
        if buffer.region is None:
            buffer.region = self.engine.register(buffer.array)
            return
        with pytest.raises(ksmpy.RegionError):
            self.engine.register(buffer.array)

    @rule(buffer=buffers, overlap=st.booleans())
    def register_a_part(self, buffer: Buffer, overlap: bool) -> None:
        """A view of registered memory overlaps it, and is refused."""
        if buffer.region is not None:
            part = buffer.array[PAGE // 2 :] if overlap else buffer.array[:]
            with pytest.raises(ksmpy.RegionError):
                self.engine.register(part)

    @rule(buffer=consumes(buffers))
    def die(self, buffer: Buffer) -> None:
        """The owner goes away without a word."""
        self.all.remove(buffer)
        count = len(self.engine.regions())
        registered = buffer.region is not None
        self.places.forget(*buffer.span())
        del buffer.array, buffer.region
        assert len(self.engine.regions()) == count - registered

    @rule(buffer=buffers)
    def release(self, buffer: Buffer) -> None:
        """Released: nothing of it maps the store; a second time does nothing."""
        if buffer.region is None:
            return
        region, buffer.region = buffer.region, None
        region.release()
        region.release()
        self.places.forget(*buffer.span())
        assert not oracle.maps_store(*buffer.span())

    @rule(buffer=buffers)
    def unmerge_region(self, buffer: Buffer) -> None:
        """Its pages come apart, the others' stay."""
        if buffer.region is not None:
            buffer.region.unmerge()
            assert not oracle.maps_store(*buffer.span())
            assert buffer.region.stats().merging_pages == 0

    # ---- writing and reading -------------------------------------------------------------

    @rule(buffer=buffers, at=st.integers(0, 2**20), data=st.binary(min_size=1, max_size=40))
    def write(self, buffer: Buffer, at: int, data: bytes) -> None:
        """A few bytes anywhere."""
        at %= len(buffer.model) - len(data)
        buffer.array[at : at + len(data)] = np.frombuffer(data, dtype=np.uint8)
        buffer.model[at : at + len(data)] = data
        self.settled = False

    @rule(buffer=buffers, at=st.integers(0, 2**20), kind=st.integers(0, memory.ALPHABET - 1))
    def write_page(self, buffer: Buffer, at: int, kind: int) -> None:
        """A whole page of the alphabet: it may merge again, or hold the same bytes as before."""
        start, nbytes = buffer.span()
        at = start - memory.address_of(buffer.array) + at % (nbytes // PAGE) * PAGE
        buffer.array[at : at + PAGE] = np.frombuffer(memory.content(kind), dtype=np.uint8)
        buffer.model[at : at + PAGE] = memory.content(kind)
        self.settled = False

    # ---- the engine ------------------------------------------------------------------------

    @rule(passes=st.integers(1, 3), eager=st.booleans())
    def scan(self, passes: int, eager: bool) -> None:
        """Whole passes."""
        self.engine.scan(passes, eager=eager)
        self.settled = True

    @rule(pages=st.integers(1, 20), eager=st.booleans())
    def scan_a_few(self, pages: int, eager: bool) -> None:
        """A pass that stops in the middle."""
        self.engine.scan(eager=eager, max_pages=pages)
        self.settled = False

    @precondition(lambda self: self.knobs["pages_to_scan"])
    @rule()
    def ksmd(self) -> None:
        """The background thread, for a pass or more."""
        before = self.engine.stats().full_scans
        self.engine.knobs.run = 1
        until(
            lambda: self.engine.stats().full_scans != before,
            "the background thread does nothing",
            limit=PATIENCE,
        )
        self.engine.knobs.run = 0
        self.settled = False

    @rule()
    def look(self) -> None:
        """Counters are made exact in the middle of a pass, or after it."""
        self.engine.stats()

    @rule()
    def unmerge(self) -> None:
        """Everything comes apart; what is left are the frames that children were born with."""
        self.engine.unmerge()
        assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)
        stats = self.engine.stats()
        assert stats.pages_sharing == stats.pages_shared == 0
        kept = len(set().union(*(lodger.frames for lodger in self.lodgers)))
        returned = sum(lodger.stale for lodger in self.lodgers)
        assert kept <= stats.stale_frames <= kept + returned
        assert stats.frame_bytes == stats.stale_frames * PAGE

    @rule()
    def run_two(self) -> None:
        """The same by the kernel's knob; scanning goes on afterwards."""
        self.engine.knobs.run = 2
        assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)
        self.engine.knobs.run = 0

    @rule(buffer=buffers, at=st.integers(0, MAX_PAGES), count=st.integers(1, MAX_PAGES),
          node=st.integers(0, MAX_NODES))  # fmt: skip
    def move(self, buffer: Buffer, at: int, count: int, node: int) -> None:
        """Pages that are not merged go to another node."""
        address, nbytes = buffer.span()
        first = at % (nbytes // PAGE) * PAGE
        self.places.move(address + first, min(count * PAGE, nbytes - first), node)
        self.settled = False

    # ---- knobs -------------------------------------------------------------------------------

    @rule(name=st.sampled_from(sorted(GOOD)), data=st.data())
    def any_knob(self, name: str, data: st.DataObject) -> None:
        """A value that it takes."""
        self.turn(name, data.draw(GOOD[name]))

    @rule(name=st.sampled_from(RULES), data=st.data())
    def rule_knob(self, name: str, data: st.DataObject) -> None:
        """The same for those that may refuse, which is what this is about."""
        self.turn(name, data.draw(GOOD[name]))

    @rule(word=st.sampled_from(["none", "scan-time"]))
    def advisor_mode(self, word: str) -> None:
        """A mode starts from a rate of its own."""
        self.engine.knobs.advisor_mode = word
        if word != self.knobs["advisor_mode"]:
            advised = self.knobs["advisor_min_pages_to_scan"] if word != "none" else PAGES_TO_SCAN
            self.knobs |= {"advisor_mode": word, "pages_to_scan": advised}

    def turn(self, name: str, value: int) -> None:
        """Set a knob; EBUSY exactly while frames of the old rule are shared, or a child has one."""
        self.engine.stats()
        held = frames_by_page(self.all) or any(lodger.frames for lodger in self.lodgers)
        wanted, ruled = 0, name in RULES and value != self.knobs[name]
        if ruled and held:
            wanted = errno.EBUSY
        elif name == "pages_to_scan" and self.knobs["advisor_mode"] != "none":
            wanted = errno.EINVAL
        try:
            setattr(self.engine.knobs, name, value)
        except OSError as error:
            if ruled and any(lodger.stale for lodger in self.lodgers):
                wanted = errno.EBUSY  # a frame that is shared again counts as theirs, too
            assert error.errno == wanted, f"{name} = {value}: {error!r}"
        else:
            assert not wanted, f"{name} = {value}: {errno.errorcode[wanted]} was due"
            self.knobs[name] = value

    @rule(name=st.sampled_from(sorted(KNOBS)), above=st.booleans())
    def bad_knob(self, name: str, above: bool) -> None:
        """A value that the kernel would refuse."""
        knob = KNOBS[name]
        value = knob.high + 1 if above else knob.low - 1
        refused(self.engine, name, value, errno.EINVAL)

    # ---- children ------------------------------------------------------------------------------

    @precondition(lambda self: self.all)
    @rule(engine_too=st.booleans())
    def fork(self, engine_too: bool) -> None:
        """A child has the same bytes, writes for itself, may merge with an engine of its own."""
        in_child(lambda: self.child(engine_too))

    def child(self, engine_too: bool) -> None:
        """What a child does."""
        self.bytes_are_the_models()
        if engine_too:
            with ksmpy.Engine(**self.mode.options) as engine:  # type: ignore[arg-type]
                for buffer in self.all:
                    engine.register(buffer.array)
                engine.scan(2, eager=True)
                self.bytes_are_the_models()
                engine._core.check()
        for buffer in self.all:
            buffer.array[:] = 0x33
        assert all((buffer.array == 0x33).all() for buffer in self.all)

    @precondition(lambda self: len(self.lodgers) < MAX_LODGERS)
    @rule()
    def lodge(self) -> None:
        """A child is born, and stays."""
        stale = self.engine.stats().stale_frames
        frames = {frame for _, frame in frames_by_page(self.all).values()}
        self.lodgers.append(Lodger(lambda: self.child(False), frames, stale))

    @precondition(lambda self: self.lodgers)
    @rule(which=st.integers(0, MAX_LODGERS))
    def leave(self, which: int) -> None:
        """It finds the bytes that it was born with, and ends."""
        self.lodgers.pop(which % len(self.lodgers)).leave()

    # ---- what always holds ---------------------------------------------------------------------

    @invariant()
    def bytes_are_the_models(self) -> None:
        """Every byte is what was written last."""
        for index, buffer in enumerate(self.all):
            assert buffer.array.tobytes() == buffer.model, f"buffer {index} has wrong bytes"

    @invariant()
    def structures_are_sound(self) -> None:
        """The native checker finds nothing."""
        self.engine._core.check()

    @invariant()
    def knobs_are_the_models(self) -> None:
        """What was refused changed nothing, and what was not is there."""
        now = self.engine.knobs.asdict()
        if now["advisor_mode"] != "none":  # the advisor changes it as it likes
            self.knobs["pages_to_scan"] = now["pages_to_scan"]
        assert now == self.knobs

    @invariant()
    def savings_are_real(self) -> None:
        """A page that is said to be saved is saved, and no frame has too many."""
        stats = self.engine.stats() if self.settled else None
        merged = frames_by_page(self.all)
        users = Counter(frame for _, frame in merged.values())
        assert all(count <= self.knobs["max_page_sharing"] for count in users.values()), users
        self.nodes_are_apart({page: frame for page, (_, frame) in merged.items()})
        if stats is None:
            return
        saved = users.total() - len(users)
        assert stats.pages_sharing == saved, f"{stats} but {saved} pages are saved"
        assert stats.pages_shared == len(users), f"{stats} but {len(users)} frames are mapped"
        if not stats.stale_frames:
            self.chains_are_real(merged, stats)
        if oracle.sees_pfns():
            spans = [buffer.span() for buffer in self.all if buffer.region is not None]
            assert stats.ksm_zero_pages <= sum(oracle.zero_pages(*span) for span in spans)

    def nodes_are_apart(self, merged: dict[int, Frame]) -> None:
        """With merge_across_nodes 0 all pages of a frame were on one node, and asked about."""
        if self.knobs["merge_across_nodes"] or self.places.count == 1:
            return
        homes: dict[Frame, set[int | None]] = {}
        for page, frame in merged.items():
            homes.setdefault(frame, set()).add(self.places.told.get(page))
        assert all(len(nodes) == 1 and None not in nodes for nodes in homes.values()), homes

    def chains_are_real(self, merged: dict[int, tuple[Buffer, Frame]], stats: Any) -> None:
        """Frames of the same bytes and tree are one chain."""
        apart = not self.knobs["merge_across_nodes"] and self.places.count > 1
        contents = {
            frame: (buffer.page(page), self.places.told[page] if apart else 0)
            for page, (buffer, frame) in merged.items()
        }
        chains = [count for count in Counter(contents.values()).values() if count > 1]
        assert (stats.stable_node_chains, stats.stable_node_dups) == (len(chains), sum(chains))

    def teardown(self) -> None:
        """Closing gives everything back; children outlive the engine."""
        if self.engine is None:
            return
        try:
            self.engine.close()
            self.bytes_are_the_models()
            assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)
        finally:
            for lodger in self.lodgers:
                lodger.leave()


@pytest.mark.timeout(120 + 6 * EXAMPLES)
@pytest.mark.parametrize("chosen", MODES, ids=str)
def test_random_lives(chosen: Mode) -> None:
    """No sequence of steps loses a byte, leaves an overlay or claims what is not saved."""
    reason = chosen.missing()
    if reason is not None:
        pytest.skip(reason)
    machine = type("Machine", (Machine,), {"mode": chosen})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            print_blob=True,
        ),
    )
