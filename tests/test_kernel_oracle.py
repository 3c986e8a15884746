"""The kernel as oracle: one sequence of fills, writes and passes, on its KSM and on the engine.

Three equal buffers get the same bytes at the same time: the kernel's KSM merges the first, the
engine the other two, with and without write tracking. Whenever all of them have settled, their
counters are compared. What may differ, and why, stands in docs/differences.md.

The kernel ends a batch at the end of a pass, however many pages it may scan, and begins the next
one when sleep_millisecs is changed: so it takes exactly the passes that it is told to take.
KSMPY_ORACLE_SEEDS chooses how many sequences run for each choice of knobs (2).
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import ksmpy
from conftest import Mode
from ksmpy.watch import kernel
from support import memory, oracle
from support.knobs import LONE_PAGE, visits
from support.memory import Bytes
from support.oracle import PAGE
from support.patience import patience, until

SEEDS = int(os.environ.get("KSMPY_ORACLE_SEEDS", "2"))
PAGES = 96
STEPS = 24
#: Passes without a fill after which nothing changes any more: one finds a merged page written, with
#: tracking the next one finds the memory that it got for that written, one finds it at rest, one
#: merges it, and what had no room then finds it in two more.
SETTLING = 6

#: Equal once both have settled.
EXACT = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
)
PFN_MASK = (1 << 55) - 1
CHAINS = ("stable_node_chains", "stable_node_dups")

pytestmark = [
    pytest.mark.skipif(not kernel.available(), reason=str(kernel.available())),
    pytest.mark.timeout(300 + 30 * SEEDS),
]


#: Milliseconds, never the same twice: ksmd may see a change late, and must not see it undone.
_sleeps = itertools.count(600_000 + os.getpid())


class KernelScanner:
    """The kernel's KSM, one whole pass at a time: run stays 1, and ksmd sleeps in between."""

    def __init__(self) -> None:
        begun = kernel.read()["full_scans"]
        kernel.write("sleep_millisecs", next(_sleeps))
        kernel.write("run", 1)
        self._wait_for_rest(begun)

    def _wait_for_rest(self, begun: kernel.Value) -> None:
        """However deep ksmd slept before: it has ended a pass, and begins no other."""
        now, since = kernel.read()["full_scans"], time.monotonic()
        while now == begun or time.monotonic() < since + 0.1:
            assert time.monotonic() < since + 30, "the kernel's scanner does not run"
            time.sleep(0.005)
            if kernel.read()["full_scans"] != now:
                now, since = kernel.read()["full_scans"], time.monotonic()

    def scan(self) -> None:
        """One pass: changing how long ksmd sleeps wakes it."""
        begun = int(kernel.read()["full_scans"])
        kernel.write("sleep_millisecs", next(_sleeps))
        until(
            lambda: int(kernel.read()["full_scans"]) != begun,
            "the kernel's scanner does not run",
            limit=patience(30),
        )

    def unmerge(self) -> None:
        """Run 2; ksmd sleeps on."""
        kernel.write("run", 2)
        kernel.write("run", 1)

    def counters(self) -> dict[str, int]:
        """Those that are compared."""
        now = kernel.read()
        return {name: int(now[name]) for name in EXACT + CHAINS}


@dataclass
class World:
    """The buffers, and who merges them."""

    kernel: KernelScanner
    buffers: list[Bytes]
    engines: list[ksmpy.Engine]
    pages: list[bytes] = field(default_factory=lambda: [bytes(PAGE)] * PAGES)
    #: Pages that get fresh bytes before every pass.
    volatile: set[int] = field(default_factory=set)
    fresh: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    sharing: int = 256  # max_page_sharing
    scanned: bool = False  # since the last unmerge
    left: bool = False  # whether a merged page was written since the last unmerge
    log: list[str] = field(default_factory=list)

    def put(self, page: int, data: bytes) -> None:
        """The same bytes to the same page of all buffers."""
        self.left |= self.scanned and self.pages.count(self.pages[page]) > 1
        self.pages[page] = data
        for buffer in self.buffers:
            buffer[page * PAGE : (page + 1) * PAGE] = np.frombuffer(data, np.uint8)

    def unique(self) -> bytes:
        """A page that there never was."""
        return np.random.default_rng(next(self.fresh)).bytes(PAGE)

    def scan(self, passes: int = 1) -> None:
        """Passes of everybody; volatile pages change before each."""
        self.scanned = True
        for _ in range(passes):
            for page in self.volatile:
                self.put(page, self.unique())
            self.kernel.scan()
            for engine in self.engines:
                engine.scan()

    def unmerge(self) -> None:
        """Run 2: nothing is merged, and nothing is known of any page."""
        self.kernel.unmerge()
        for engine in self.engines:
            engine.unmerge()
        self.left = self.scanned = False

    def set_zero_pages(self, value: int) -> None:
        """The knob that may be changed at any time."""
        kernel.write("use_zero_pages", value)
        for engine in self.engines:
            engine.knobs.use_zero_pages = value

    def compare(self) -> None:
        """All bytes and, once everybody has settled, all counters."""
        self.scan(SETTLING)
        wanted = b"".join(self.pages)
        for buffer in self.buffers:
            assert buffer.tobytes() == wanted
        truth = self.kernel.counters()
        problems = []
        for engine, buffer in zip(self.engines, self.buffers[1:], strict=True):
            engine._core.check()
            ours = _counters(engine)
            wrong = self.differences(truth, ours, buffer)
            if wrong:
                problems.append(f"{engine.tracking}: (kernel, ksmpy) {wrong}")
            problems += self.missed(engine, buffer)
        assert not problems, "\n".join([*problems, *self.log])

    def differences(
        self, truth: dict[str, int], ours: dict[str, int], buffer: Bytes
    ) -> dict[str, tuple[int, int]]:
        """Counters that should be equal and are not."""
        if self.left:
            _count_alone(ours, truth, self.buffers[0], buffer)
        exact: tuple[str, ...] = EXACT + CHAINS
        if self.left:
            exact = EXACT if self.sharing > PAGES else ("pages_volatile", "ksm_zero_pages")
        wrong = {name for name in exact if truth[name] != ours[name]}
        wrong |= {"seen"} if _seen(truth) != _seen(ours) else set()
        both = truth | {"seen": _seen(truth)}, ours | {"seen": _seen(ours)}
        return {name: (both[0][name], both[1][name]) for name in sorted(wrong)}

    def missed(self, engine: ksmpy.Engine, buffer: Bytes) -> list[str]:
        """Pages that wait although there is an equal one, or room on a frame with their bytes."""
        users = oracle.shared_pages([memory.span(buffer)])
        zero_pages = engine.knobs.use_zero_pages or engine.stats().ksm_zero_pages
        waiting: Counter[bytes] = Counter()
        room: dict[bytes, int] = {}
        for data, frame in zip(self.pages, oracle.frames_of(*memory.span(buffer)), strict=True):
            if frame is not None:
                room[data] = max(room.get(data, 0), self.sharing - users[frame])
            elif data != bytes(PAGE) or not zero_pages:
                waiting[data] += 1
        return [
            f"{engine.tracking}: {count} equal pages wait, room for {room.get(data, 0)}"
            for data, count in waiting.items()
            if count > 1 or room.get(data, 0)
        ]


def _work(counter: str) -> int:
    return int(kernel.read()[counter])


def _seen(counters: dict[str, int]) -> int:
    return sum(counters[name] for name in EXACT[:-1])


def _counters(engine: ksmpy.Engine) -> dict[str, int]:
    stats = engine.stats()
    return {name: int(getattr(stats, name)) for name in EXACT + CHAINS}


def _frames_in_common(buffer: Bytes) -> int:
    """How many page frames back more than one page of a buffer that the kernel merges."""
    entries = oracle.pagemap(*memory.span(buffer))
    users = Counter(entry & PFN_MASK for entry in entries)
    zero = {entry & PFN_MASK for entry in oracle.pagemap(*memory.span(memory.pages(1)))}
    return sum(count > 1 and pfn not in zero for pfn, count in users.items())


def _count_alone(ours: dict[str, int], truth: dict[str, int], merged: Bytes, other: Bytes) -> None:
    """Pages that are alone on a frame may count as unshared: see docs/differences.md."""
    alone = list(oracle.shared_pages([memory.span(other)]).values()).count(1)
    alone_there = truth["pages_shared"] - _frames_in_common(merged)
    more = ours["pages_shared"] - truth["pages_shared"]
    if -alone_there <= more <= alone:
        ours["pages_shared"] -= more
        ours["pages_unshared"] += more


def _fill(world: World, rng: np.random.Generator) -> None:
    """A stretch of pages gets one content, or each one of the alphabet."""
    first = int(rng.integers(PAGES))
    end = min(PAGES, first + int(rng.integers(1, 24)))
    same = bool(rng.integers(2))
    kind = int(rng.integers(memory.ALPHABET))
    for page in range(first, end):
        world.put(page, memory.content(kind if same else int(rng.integers(memory.ALPHABET))))


def _copy(world: World, rng: np.random.Generator) -> None:
    """A stretch becomes equal to another, page by page."""
    count = int(rng.integers(1, 16))
    source, target = (int(at) for at in rng.integers(0, PAGES - count, 2))
    for i in range(count):
        world.put(target + i, world.pages[source + i])


def _write(world: World, rng: np.random.Generator) -> None:
    """One byte each of some pages."""
    for page in rng.choice(PAGES, int(rng.integers(1, 8)), replace=False):
        data = bytearray(world.pages[page])
        data[int(rng.integers(PAGE))] ^= int(rng.integers(1, 256))
        world.put(int(page), bytes(data))


def _unique(world: World, rng: np.random.Generator) -> None:
    """Some pages become unlike all others."""
    for page in rng.choice(PAGES, int(rng.integers(1, 12)), replace=False):
        world.put(int(page), world.unique())


def _volatile(world: World, rng: np.random.Generator) -> None:
    """Other pages are the ones that never come to rest."""
    world.volatile = set(rng.choice(PAGES, int(rng.integers(0, 6)), replace=False).tolist())


def _scan(world: World, rng: np.random.Generator) -> None:
    world.scan(int(rng.integers(1, 4)))


def _zero_pages(world: World, rng: np.random.Generator) -> None:
    world.set_zero_pages(int(rng.integers(2)))


def _unmerge(world: World, rng: np.random.Generator) -> None:
    world.unmerge()


Step = Callable[[World, np.random.Generator], None]
#: Each step with how often it comes.
STEP_WEIGHTS: dict[Step, int] = {
    _fill: 4, _copy: 3, _write: 3, _unique: 1, _volatile: 1, _scan: 5, _zero_pages: 1, _unmerge: 1,
}  # fmt: skip


def _engine(tracking: str, sharing: int, stack: ExitStack) -> ksmpy.Engine:
    engine = stack.enter_context(ksmpy.Engine(tracking=tracking))
    engine.knobs.smart_scan = 0
    engine.knobs.max_page_sharing = sharing
    engine.knobs.stable_node_chains_prune_millisecs = 0
    return engine


def _others() -> list[str]:
    """The processes, this one aside, that have mergeable mappings (VmFlags mg)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/smaps"):
        try:
            if int(path.parts[2]) != os.getpid() and " mg" in path.read_text():
                found.append(f"{(path.parent / 'comm').read_text().strip()} ({path.parts[2]})")
        except OSError:  # it ended meanwhile
            continue
    return found or ["processes that have ended since"]


def _world(sharing: int, zero: int, stack: ExitStack) -> World:
    optional: dict[str, kernel.Value] = {"smart_scan": 0, "advisor_mode": "none"}
    present = kernel.read()
    stack.enter_context(
        kernel.settings(
            pages_to_scan=1_000_000,
            max_page_sharing=sharing,
            use_zero_pages=zero,
            merge_across_nodes=1,
            stable_node_chains_prune_millisecs=0,
            **{name: value for name, value in optional.items() if name in present},
        )
    )
    modes = [Mode("uffd-move", "wp-async"), Mode("signal", "checksum")]
    engines = [_engine(mode.tracking, sharing, stack) for mode in modes if mode.missing() is None]
    buffers = [memory.pages(PAGES) for _ in range(1 + len(engines))]
    address, length = memory.span(buffers[0])
    kernel.mergeable(address, length)
    stack.callback(kernel.unmergeable, address, length)
    buffers[0][:] = 1
    scanner = KernelScanner()
    world = World(scanner, buffers, engines, sharing=sharing)
    for page in range(PAGES):
        world.put(page, world.unique())
    scanner.scan()
    seen = sum(scanner.counters()[name] for name in EXACT)
    if seen != PAGES:
        pytest.skip(f"others offer memory to the kernel's KSM too: {', '.join(_others())}")
    world.unmerge()
    for engine, buffer in zip(engines, buffers[1:], strict=True):
        engine.register(buffer)
    world.set_zero_pages(zero)
    return world


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("zero", [0, 1], ids=["", "use_zero_pages"])
@pytest.mark.parametrize("sharing", [2, 3, 8, 256], ids="max_page_sharing={}".format)
def test_same_counters(sharing: int, zero: int, seed: int) -> None:
    """After any sequence of fills, writes, passes and unmerges the counters are the kernel's."""
    rng = np.random.default_rng([sharing, zero, seed])
    steps = list(STEP_WEIGHTS)
    chances = np.array([STEP_WEIGHTS[step] for step in steps], float)
    with ExitStack() as stack:
        world = _world(sharing, zero, stack)
        for number in range(STEPS):
            step = steps[rng.choice(len(steps), p=chances / chances.sum())]
            step(world, rng)
            world.log.append(step.__name__.strip("_"))
            if number % 6 == 5:
                world.compare()
                world.log.append("settled")


def test_smart_scan_skips_the_same_visits() -> None:
    """A page that is unlike all others is passed over in the very passes in which ksmd does so."""
    with ExitStack() as stack:
        world = _world(256, 0, stack)
        if "smart_scan" not in kernel.read():
            pytest.skip("this kernel has no smart_scan")
        kernel.write("smart_scan", 1)
        page = memory.distinct(1)
        kernel.mergeable(*memory.span(page))  # first: with nothing to do, ksmd would wait for it
        kernel.unmergeable(*memory.span(world.buffers[0]))
        stack.callback(kernel.unmergeable, *memory.span(page))
        truth = visits(world.kernel.scan, lambda: (_work("pages_scanned"), _work("pages_skipped")))
        assert truth == LONE_PAGE


@pytest.mark.parametrize("before", [1, 3], ids="{}_before".format)
def test_zero_pages_switched_on(before: int) -> None:
    """Zero pages that wait go to the zero page, those on a frame stay, and new ones do not join."""
    with ExitStack() as stack:
        world = _world(256, 0, stack)
        for page in range(before):
            world.put(page, bytes(PAGE))
        world.compare()
        world.set_zero_pages(1)
        world.compare()
        for page in range(before, before + 4):
            world.put(page, bytes(PAGE))
        world.compare()
        assert world.kernel.counters()["ksm_zero_pages"] == (5 if before == 1 else 4)
        world.put(before + 1, world.unique())
        world.compare()
        world.set_zero_pages(0)
        world.put(before + 2, world.unique())
        world.compare()
