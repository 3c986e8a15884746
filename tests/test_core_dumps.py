"""A crash leaves a core that holds the bytes which were in memory, merged or not."""

from __future__ import annotations

import re
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ksmpy
from conftest import MODES, Mode
from support import memory
from support.procs import python

pytestmark = pytest.mark.timeout(120)

Crash = Callable[[Mode, str, str], "tuple[list[int], Path]"]

CRASH = """
import os, resource, sys
import ksmpy
from support import memory

freeze, tracking, kind, chosen = sys.argv[1:]
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
with open("/proc/self/coredump_filter", "w") as file:
    file.write(chosen)
store = ksmpy.Store.anonymous() if kind == "shared" else None

def size():
    return os.fstat(store.fileno()).st_blocks * 512 if store else 0

if not os.fork():
    model = memory.distinct(64)
    arrays = [model, memory.twin(model), memory.twin(model)]
    arrays[2].base.obj.madvise(16)  # MADV_DONTDUMP
    engine = ksmpy.Engine(store=store, freeze=freeze, tracking=tracking)
    for array in arrays:
        engine.register(array)
    engine.scan(2, eager=True)
    assert engine.stats().merging_pages == 3 * 64
    with open("model", "wb") as file:
        file.write(model)
    print(*(memory.address_of(array) for array in arrays), size(), flush=True)
    os.abort()
assert os.waitstatus_to_exitcode(os.wait()[1]) == -6
print(size())
"""


def _segments(core: Path) -> Iterator[tuple[int, int, int]]:
    """(address, bytes in the file, their offset) of what an ELF64 core holds (elf(5))."""
    with core.open("rb") as file:
        head = file.read(64)
        assert head[:5] == b"\x7fELF\x02"
        (table,) = struct.unpack_from("=Q", head, 32)
        size, count = struct.unpack_from("=HH", head, 54)
        for i in range(count):
            file.seek(table + i * size)
            kind, _, offset, address, _, nbytes = struct.unpack("=IIQQQQ", file.read(40))
            if kind == 1:  # PT_LOAD
                yield address, nbytes, offset


def _dumped(core: Path, address: int, nbytes: int) -> bytes:
    """The bytes of a range, as far as the core has them."""
    found = b""
    with core.open("rb") as file:
        for start, size, offset in _segments(core):
            first, last = max(address, start), min(address + nbytes, start + size)
            if first < last:
                file.seek(offset + first - start)
                found += file.read(last - first)
    return found


def _refusal() -> str | None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if pattern.startswith(("|", "/")) or "%" in pattern:
        return f"cores go elsewhere here: {pattern}"
    if not resource.getrlimit(resource.RLIMIT_CORE)[1]:
        return "no cores may be written here"
    return None


@pytest.fixture
def crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crash:
    """Crashes a process with merged pages; what it printed, and its core."""
    if reason := _refusal():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)

    def run(mode: Mode, kind: str, chosen: str) -> tuple[list[int], Path]:
        if reason := mode.missing():
            pytest.skip(reason)
        done = python("-c", CRASH, *mode, kind, chosen)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()], next(tmp_path.glob("core*"))

    return run


def test_a_core_holds_merged_pages(mode: Mode, crash: Crash) -> None:
    """All bytes that it held without the engine, and none that were not to be in it."""
    (*arrays, hidden, _, _), core = crash(mode, "private", "0x33")
    model = Path("model").read_bytes()
    for address in arrays:
        assert _dumped(core, address, len(model)) == model
    assert _dumped(core, hidden, len(model)) == b""


def test_a_core_leaves_a_shared_store_as_it_is(crash: Crash) -> None:
    """The index is sparse: to dump it would fill it."""
    (address, _, _, before, after), core = crash(MODES[0], "shared", "0x33")
    model = Path("model").read_bytes()
    assert _dumped(core, address, len(model)) == model
    assert after <= before + (1 << 20)


def _reserved() -> dict[int, int]:
    """Address space that a debugger would write into a core: nobody may read it, and there is
    nothing. glibc's for threads, of which it is known that nothing was promised (nr), are not ours.
    """
    found = {}
    for text in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        start, end = (int(word, 16) for word in text.split(" ", 1)[0].split("-"))
        flags = text[text.index("VmFlags:") :].split()
        if text.split()[1] == "---p" and not {"dd", "nr"} & set(flags):
            found[start] = end - start
    return found


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_what_an_engine_reserves_is_in_no_core(kind: str) -> None:
    """Gdb's gcore reads and writes all of it, 2.6 GiB of zeros on a machine with 24 GiB."""
    before = _reserved()
    store = ksmpy.Store.anonymous() if kind == "shared" else None
    with ksmpy.Engine(store=store) as engine:
        array = memory.distinct(64)
        engine.register(array)
        engine.scan()
        more = {start: size for start, size in _reserved().items() if start not in before}
        assert all(size < 16 << 20 for size in more.values()), more


def test_a_core_that_was_to_hold_no_memory_holds_none(crash: Crash) -> None:
    """Who has chosen to leave private memory out gets no merged pages."""
    (address, *_), core = crash(MODES[0], "private", "0x10")
    assert _dumped(core, address, 1 << 16) == b""
