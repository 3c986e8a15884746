"""Every native function, called again and again: nothing grows.

Descriptors and mappings are counted exactly. Memory is judged by the resident set size and by
malloc's own books, after a warm-up that fills the caches of both.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ksmpy._ksmpy import ffi, lib

import ksmpy
from conftest import Mode
from support import memory, oracle
from support.memory import Bytes
from support.procs import in_child

pytestmark = pytest.mark.timeout(120)

WARM_UP, ROUNDS = 15, 25
_DONTDUMP = 16
#: Growth that is noise, in bytes, over ROUNDS rounds.
SLACK = 512 << 10


def _declared() -> set[str]:
    """The functions of ksmpy.cdef.h, by name."""
    header = Path(__file__).parent.parent / "csrc" / "ksmpy.cdef.h"
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="ascii"), flags=re.DOTALL)
    return set(re.findall(r"^\w[\w ]*?\b\*?(ksmpy_\w+)\(", text, flags=re.MULTILINE))


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        .split()
    ]  # fmt: skip


def _heap_bytes() -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * oracle.PAGE


def _grows(work: Callable[[], None]) -> bool:
    heap, resident = _heap_bytes(), _resident_bytes()
    for _ in range(ROUNDS):
        work()
    gc.collect()
    return _heap_bytes() - heap >= SLACK or _resident_bytes() - resident >= 4 * SLACK


def _nothing_grows(work: Callable[[], None]) -> None:
    for _ in range(WARM_UP):
        work()
    gc.collect()
    descriptors, mappings = len(os.listdir("/proc/self/fd")), len(oracle.mappings())
    # What leaks grows every time. A table of the interpreter's that has got too small grows once,
    # and so does what other tests have left in pieces.
    assert not all(_grows(work) for _ in range(4))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(oracle.mappings()) <= mappings + 4


class _Native:
    """One engine by its C interface, without any of the Python above it."""

    def __init__(self, mode: Mode) -> None:
        from ksmpy.native import FREEZES, TRACKINGS

        options = ffi.new("struct ksmpy_options *")
        options.freeze, options.tracking = (
            FREEZES.index(mode.freeze), TRACKINGS.index(mode.tracking)
        )  # fmt: skip
        options.nodes, options.node_ids = 2, ffi.NULL
        out = ffi.new("ksmpy_engine **")
        assert lib.ksmpy_engine_new(options, out) == 0
        self.engine = out[0]
        self.model = memory.distinct(16)
        self.buffers = [self.model, memory.twin(self.model), memory.filled([0] * 4)]
        self.regions = [self.register(buffer) for buffer in self.buffers]
        self.result = ffi.new("struct ksmpy_scan_result *")

    def register(self, buffer: Any) -> int:
        """Register a whole array."""
        out = ffi.new("uint32_t *")
        assert lib.ksmpy_register(self.engine, *memory.span(buffer), 0, out) == 0
        return int(out[0])

    def scan(self, flags: int = 3) -> None:
        """One eager pass."""
        assert lib.ksmpy_scan(self.engine, 1 << 20, flags, self.result) == 0

    def close(self) -> None:
        """Release and close."""
        for region in self.regions:
            assert lib.ksmpy_release(self.engine, region, 0) == 0
        assert lib.ksmpy_engine_close(self.engine) == 0

    # one method for each function of the header, named after it

    def ksmpy_probe(self) -> None:
        """Probing opens and closes all kinds of things."""
        assert lib.ksmpy_probe(ffi.new("struct ksmpy_caps *")) == 0

    def ksmpy_has_devices(self) -> None:
        """It looks through all descriptors."""
        assert lib.ksmpy_has_devices() in (0, 1)

    def ksmpy_try_huge_frames(self) -> None:
        """It makes a file, and looks at a huge page of it."""
        assert lib.ksmpy_try_huge_frames() <= 0

    def ksmpy_own_memory(self) -> None:
        """The list gets no longer by engines that come and go."""
        before = lib.ksmpy_own_memory(ffi.NULL, 0)
        self.ksmpy_engine_new()
        assert lib.ksmpy_own_memory(ffi.NULL, 0) == before > 5

    def ksmpy_memory_left(self) -> None:
        """With the name of what allows the least, and without."""
        assert lib.ksmpy_memory_left(ffi.new("char[]", 200), 200) > 0
        assert lib.ksmpy_memory_left(ffi.NULL, 0) > 0

    def ksmpy_engine_new(self) -> None:
        """A second engine."""
        options = ffi.new("struct ksmpy_options *")
        options.freeze, options.tracking = 0, 0
        options.nodes, options.node_ids = 1, ffi.NULL
        out = ffi.new("ksmpy_engine **")
        assert lib.ksmpy_engine_new(options, out) == 0
        assert lib.ksmpy_engine_close(out[0]) == 0

    def ksmpy_engine_close(self) -> None:
        """Refused while regions are registered."""
        assert lib.ksmpy_engine_close(self.engine) < 0

    def ksmpy_engine_freeze(self) -> None:
        """A getter."""
        assert lib.ksmpy_engine_freeze(self.engine) > 0

    def ksmpy_engine_tracking(self) -> None:
        """A getter."""
        assert lib.ksmpy_engine_tracking(self.engine) > 0

    def ksmpy_engine_forked(self) -> None:
        """A getter; and a child, now and then."""
        assert lib.ksmpy_engine_forked(self.engine) == 0

    def ksmpy_register(self) -> None:
        """Refused: overlaps."""
        out = ffi.new("uint32_t *")
        assert lib.ksmpy_register(self.engine, *memory.span(self.model), 0, out) < 0
        assert lib.ksmpy_register(self.engine, 4097, 4096, 0, out) < 0

    def ksmpy_release(self) -> None:
        """Release one region, register it again; no such region is an error."""
        assert lib.ksmpy_release(self.engine, self.regions[0], 0) == 0
        assert lib.ksmpy_release(self.engine, 12345, 0) < 0
        self.regions[0] = self.register(self.model)

    def ksmpy_find_region(self) -> None:
        """Where there is one, and where there is none."""
        assert lib.ksmpy_find_region(self.engine, *memory.span(self.model)) >= 0
        assert lib.ksmpy_find_region(self.engine, 4096, 4096) < 0

    def ksmpy_set_vma_flags(self) -> None:
        """Of a region that there is, of one that lies elsewhere, and of one that there is not."""
        address = memory.address_of(self.model)
        number = lib.ksmpy_find_region(self.engine, *memory.span(self.model))
        assert lib.ksmpy_set_vma_flags(self.engine, number, address, 0) == 0
        assert lib.ksmpy_set_vma_flags(self.engine, number, address + oracle.PAGE, 0) < 0
        assert lib.ksmpy_set_vma_flags(self.engine, 12345, address, 0) < 0

    def ksmpy_find_lost(self) -> None:
        """Nothing is lost."""
        assert lib.ksmpy_find_lost(self.engine, ffi.new("uint32_t[4]"), 4) == 0

    def ksmpy_unmerge_region(self) -> None:
        """One region."""
        self.scan()
        assert lib.ksmpy_unmerge_region(self.engine, self.regions[1]) == 0

    def ksmpy_unmerge(self) -> None:
        """Everything."""
        self.scan()
        assert lib.ksmpy_unmerge(self.engine) == 0

    def ksmpy_scan(self) -> None:
        """Merges, writes, merges again."""
        self.scan()
        self.model[:: oracle.PAGE] ^= 1
        self.scan()
        self.model[:: oracle.PAGE] ^= 1
        self.scan()

    def ksmpy_interrupt(self) -> None:
        """Interrupts nobody."""
        lib.ksmpy_interrupt(self.engine)
        self.scan()

    def ksmpy_knob_set(self) -> None:
        """Every knob, to what it is, and to what it cannot be."""
        value = ffi.new("uint64_t *")
        for knob in range(lib.KSMPY_KNOB_COUNT):
            assert lib.ksmpy_knob_get(self.engine, knob, value) == 0
            lib.ksmpy_knob_set(self.engine, knob, value[0])
        assert lib.ksmpy_knob_set(self.engine, 99, 1) < 0

    def ksmpy_knob_get(self) -> None:
        """No such knob."""
        assert lib.ksmpy_knob_get(self.engine, 99, ffi.new("uint64_t *")) < 0

    def ksmpy_refresh(self) -> None:
        """Merged pages that were written come apart."""
        self.scan()
        self.model[:: oracle.PAGE] ^= 1
        assert lib.ksmpy_refresh(self.engine) == 0
        self.model[:: oracle.PAGE] ^= 1

    def ksmpy_exact_stats(self) -> None:
        """All counters, after merged pages that were written have come apart."""
        assert lib.ksmpy_exact_stats(self.engine, ffi.new("struct ksmpy_stats *")) == 0

    def ksmpy_stats(self) -> None:
        """All counters."""
        assert lib.ksmpy_stats(self.engine, ffi.new("struct ksmpy_stats *")) == 0

    def ksmpy_counters(self) -> None:
        """All but one."""
        assert lib.ksmpy_counters(self.engine, ffi.new("struct ksmpy_stats *")) == 0

    def ksmpy_store_full(self) -> None:
        """A store of its own has no others to be full with, one with room is not full."""
        assert lib.ksmpy_store_full(self.engine) == 0
        with self.on_a_store() as (_, engine):
            assert lib.ksmpy_store_full(engine) == 0

    def ksmpy_region_stats(self) -> None:
        """A region's counters."""
        out, whole = ffi.new("struct ksmpy_region_stats *"), ffi.new("struct ksmpy_stats *")
        assert lib.ksmpy_region_stats(self.engine, self.regions[1], out, whole) == 0
        assert lib.ksmpy_region_stats(self.engine, 12345, out, whole) < 0

    def ksmpy_shares(self) -> None:
        """Pairs of regions."""
        self.scan()
        assert lib.ksmpy_shares(self.engine, ffi.new("struct ksmpy_share[8]"), 8) > 0

    def ksmpy_set_nodes(self) -> None:
        """All pages of a region on the second node, and back."""
        for node in (1, 0):
            nodes = ffi.new("uint8_t[16]", bytes([node] * 16))
            assert lib.ksmpy_set_nodes(self.engine, self.regions[1], nodes, 16) == 0
            self.scan()

    def ksmpy_check(self) -> None:
        """The structure checker."""
        text = ffi.new("char[]", 200)
        assert lib.ksmpy_check(self.engine, text, 200) == 0, ffi.string(text)

    @contextmanager
    def on_a_store(self) -> Iterator[tuple[int, Any]]:
        """A descriptor of a shared store, and an engine that is attached to it."""
        fd = os.memfd_create("ksmpy-store")
        options = ffi.new("struct ksmpy_options *")
        options.nodes, options.node_ids, options.store_fd = 1, ffi.NULL, fd
        out = ffi.new("ksmpy_engine **")
        assert lib.ksmpy_engine_new(options, out) == 0
        yield fd, out[0]
        assert lib.ksmpy_engine_close(out[0]) == 0
        os.close(fd)

    def ksmpy_store_stats(self) -> None:
        """Counters of a store in use."""
        with self.on_a_store() as (fd, _):
            assert lib.ksmpy_store_stats(fd, ffi.new("struct ksmpy_store_stats *")) == 0

    def ksmpy_store_holder(self) -> None:
        """Nobody has it locked."""
        with self.on_a_store() as (fd, _):
            assert lib.ksmpy_store_holder(fd) == 0

    def ksmpy_store_processes(self) -> None:
        """The one process that there is."""
        out = ffi.new("struct ksmpy_store_process[2]")
        with self.on_a_store() as (fd, _):
            assert lib.ksmpy_store_processes(fd, out, 2) == 1 and out[0].pid == os.getpid()

    def ksmpy_store_retire(self) -> None:
        """Refused while the store is used, done on an empty one."""
        with self.on_a_store() as (fd, _):
            assert lib.ksmpy_store_retire(fd) == -errno.EBUSY
        fd = os.memfd_create("ksmpy-store")
        assert lib.ksmpy_store_retire(fd) == 0
        os.close(fd)

    def ksmpy_revive(self) -> None:
        """A child makes the engine its own; the parent has it already."""

        def revive() -> None:
            assert lib.ksmpy_revive(self.engine) == -errno.EPERM, "a private store"
            assert lib.ksmpy_revive(engine) == 0
            assert lib.ksmpy_engine_forked(engine) == 0

        with self.on_a_store() as (_, engine):
            assert lib.ksmpy_revive(engine) == 0
            in_child(revive)

    def ksmpy_fix_key(self) -> None:
        """The stores that are made from now on have keys at random, as ever."""
        lib.ksmpy_fix_key(0)

    def ksmpy_find_owners(self) -> None:
        """Looks at memory, and keeps nothing."""
        start = ffi.cast("uintptr_t", ffi.from_buffer(self.model))
        out = ffi.new("struct ksmpy_owned[8]")
        assert lib.ksmpy_find_owners(start, int(start) + 4096, 0, out, 8) >= 0

    def ksmpy_next_in_memory(self) -> None:
        """Looks at page tables, and keeps nothing."""
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(self.model)))
        assert lib.ksmpy_next_in_memory(start, start + 4096) >= start

    def ksmpy_checksum(self) -> None:
        """A pure function."""
        lib.ksmpy_checksum(ffi.from_buffer(self.model), 4096)

    def ksmpy_read_only(self) -> None:
        """A pure function."""
        lib.ksmpy_read_only(ffi.from_buffer(self.model), 4096)


def test_every_native_function_is_in_the_list() -> None:
    """A new function of the interface cannot be forgotten here."""
    assert len(_declared()) > 15
    assert _declared() <= {name for name in dir(_Native) if name.startswith("ksmpy_")}


@pytest.mark.parametrize("name", sorted(n for n in vars(_Native) if n.startswith("ksmpy_")))
def test_native_function_leaks_nothing(name: str) -> None:
    """One function over and over on one engine."""
    native = _Native(Mode("uffd-remap", "checksum"))
    _nothing_grows(getattr(native, name))
    native.close()


def test_native_lives_leak_nothing(mode: Mode) -> None:
    """Whole engines, from new to close, each calling every function."""

    def life() -> None:
        native = _Native(mode)
        try:
            for name in sorted(_declared()):
                getattr(native, name)()
        finally:
            native.close()

    _nothing_grows(life)


def test_python_lives_leak_nothing(mode: Mode) -> None:
    """The same through Python, buffers dying in the end."""
    model = np.random.default_rng(1).integers(0, 256, 1 << 18, dtype=np.uint8)

    def life() -> None:
        with ksmpy.Engine(**mode.options) as engine:  # type: ignore[arg-type]
            arrays = [model.copy() for _ in range(3)]
            for array in arrays:
                engine.register(array)
            engine.scan(2, eager=True)
            del arrays, array
            engine.regions()
            engine.knobs.run = 1
            engine.knobs.run = 2

    _nothing_grows(life)


def test_python_lives_on_a_store_leak_nothing(mode: Mode, place: Path) -> None:
    """Engines that come and go on a named store, with children that go on with them."""
    model = memory.distinct(64)

    with ksmpy.Store.open("name") as store:

        def life() -> None:
            with ksmpy.Engine(store="name", **mode.options) as engine:  # type: ignore[arg-type]
                arrays = [memory.twin(model) for _ in range(2)]
                for array in arrays:
                    engine.register(array)
                engine.scan(2, eager=True)
                in_child(lambda: engine.stats() and None)
                assert len(store.processes()) == 1

        _nothing_grows(life)
        with ksmpy.Engine(store=store) as engine:
            engine.scan()  # takes back what the last child held, which ended without a close()
            assert store.stats().frame_bytes == 0


@contextmanager
def _merging(mode: Mode, count: int) -> Iterator[tuple[ksmpy.Engine, tuple[Bytes, Bytes]]]:
    """An engine with two equal arrays of so many pages."""
    one = memory.distinct(count)
    pair = one, memory.twin(one)
    with ksmpy.Engine(**mode.options) as engine:  # type: ignore[arg-type]
        for array in pair:
            engine.register(array)
        yield engine, pair


def test_forks_leak_nothing(mode: Mode) -> None:
    """An engine that goes on while children come and go keeps nothing for each of them."""
    with _merging(mode, 16) as (engine, _):

        def work() -> None:
            engine.scan(2, eager=True)
            in_child(lambda: None)
            engine.unmerge()

        _nothing_grows(work)
        engine._core.check()


def test_ranges_of_several_mappings_leak_nothing(mode: Mode) -> None:
    """Pages side by side in two mappings cannot be frozen at once; to find out costs no window."""
    with _merging(mode, 64) as (engine, pair):
        libc = ctypes.CDLL(None)

        def work() -> None:
            for array in pair:
                address = ctypes.c_void_p(memory.address_of(array) + 24 * oracle.PAGE)
                assert libc.madvise(address, ctypes.c_size_t(16 * oracle.PAGE), _DONTDUMP) == 0
            engine.scan(2, eager=True)
            assert engine.stats().pages_sharing == 64
            engine.unmerge()

        _nothing_grows(work)
