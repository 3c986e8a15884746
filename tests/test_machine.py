"""Random lives of many buffers, against plain bytes as the model and the kernel as the oracle.

Hypothesis invents sequences of registering, writing, scanning, unmerging, releasing, forking,
dying and turning knobs. After every step each buffer holds what the model holds, the engine's
structures are sound, and a saving that is claimed exists in the page tables.

KSMPY_MACHINE_EXAMPLES sets how many sequences are tried for each mode (default 25).
"""

from __future__ import annotations

import errno
import os
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
from support import memory, oracle
from support.oracle import PAGE
from support.procs import in_child

EXAMPLES = int(os.environ.get("KSMPY_MACHINE_EXAMPLES", "25"))
STEPS = 30
MAX_PAGES = 12

page_lists = st.lists(st.integers(0, memory.ALPHABET - 1), min_size=1, max_size=MAX_PAGES)


class Buffer:
    """An array, the bytes it must hold, and its region while it has one."""

    def __init__(self, kinds: list[int], shape: str) -> None:
        size = len(kinds) * PAGE
        if shape == "pages":
            self.array = memory.pages(len(kinds))
        elif shape == "heap":
            self.array = np.empty(size + 2 * PAGE, dtype=np.uint8)[: size + PAGE]
        else:
            self.array = np.frombuffer(bytearray(size + PAGE), dtype=np.uint8)
        start, _ = memory.span(self.array)
        head = start - memory.address_of(self.array)
        self.array[:] = 0x77
        self.array[head : head + size] = np.frombuffer(memory.contents(kinds), dtype=np.uint8)
        self.model = bytearray(self.array.tobytes())
        self.region: Any = None

    def span(self) -> tuple[int, int]:
        """Address and size of its whole pages."""
        return memory.span(self.array)


class Machine(RuleBasedStateMachine):
    """One engine and its buffers."""

    mode: Mode
    buffers: Bundle[Buffer] = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.engine = ksmpy.Engine(**self.mode.options)  # type: ignore[arg-type]
        self.all: list[Buffer] = []
        self.settled = True

    # ---- buffers -----------------------------------------------------------------------

    @initialize(target=buffers)
    def first(self) -> Buffer:
        """Some duplicates to begin with."""
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

    @rule()
    def unmerge(self) -> None:
        """Everything comes apart."""
        self.engine.unmerge()
        assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)
        stats = self.engine.stats()
        assert stats.pages_sharing == stats.pages_shared == 0

    @rule()
    def run_two(self) -> None:
        """The same by the kernel's knob; scanning goes on afterwards."""
        self.engine.knobs.run = 2
        assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)
        self.engine.knobs.run = 0

    @rule(
        knob=st.sampled_from(["use_zero_pages", "smart_scan", "merge_across_nodes"]),
        value=st.integers(0, 1),
    )
    def switch(self, knob: str, value: int) -> None:
        """On and off; merge_across_nodes only while nothing is shared."""
        self.turn(knob, value)

    @rule(value=st.sampled_from([2, 3, 256]))
    def max_page_sharing(self, value: int) -> None:
        """Chains of duplicates with a small one."""
        self.turn("max_page_sharing", value)

    def turn(self, knob: str, value: int) -> None:
        """Set a knob; EBUSY is fine while pages are shared."""
        busy = False
        try:
            setattr(self.engine.knobs, knob, value)
        except OSError as error:
            assert error.errno == errno.EBUSY
            busy = True
        assert not busy or self.engine.stats().pages_shared > 0
        assert busy or getattr(self.engine.knobs, knob) == value

    @rule(value=st.sampled_from([-1, 2**33, 7]))
    def bad_knob(self, value: int) -> None:
        """A value that the kernel would refuse changes nothing."""
        before = self.engine.knobs.asdict()
        for knob in ("run", "use_zero_pages", "merge_across_nodes"):
            with pytest.raises(OSError) as caught:
                setattr(self.engine.knobs, knob, value)
            assert caught.value.errno == errno.EINVAL
        assert self.engine.knobs.asdict() == before

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
                engine.check()
        for buffer in self.all:
            buffer.array[:] = 0x33
        assert all((buffer.array == 0x33).all() for buffer in self.all)

    # ---- what always holds ---------------------------------------------------------------------

    @invariant()
    def bytes_are_the_models(self) -> None:
        """Every byte is what was written last."""
        for index, buffer in enumerate(self.all):
            assert buffer.array.tobytes() == buffer.model, f"buffer {index} has wrong bytes"

    @invariant()
    def structures_are_sound(self) -> None:
        """The native checker finds nothing."""
        self.engine.check()

    @invariant()
    def savings_are_real(self) -> None:
        """After a whole pass without writes since, a page that is said to be saved is saved."""
        if not self.settled:
            return
        stats = self.engine.stats()
        spans = [buffer.span() for buffer in self.all if buffer.region is not None]
        users = oracle.shared_pages(spans)
        saved = users.total() - len(users)
        assert stats.pages_sharing == saved, f"{stats} but {saved} pages are saved"
        assert stats.pages_shared == len(users), f"{stats} but {len(users)} frames are mapped"
        limit = self.engine.knobs.max_page_sharing
        assert all(count <= limit for count in users.values()), users
        if oracle.sees_pfns():
            zero = sum(oracle.zero_pages(*span) for span in spans)
            assert stats.ksm_zero_pages <= zero

    def teardown(self) -> None:
        """Closing gives everything back."""
        self.engine.close()
        self.bytes_are_the_models()
        assert not any(oracle.maps_store(*buffer.span()) for buffer in self.all)


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
