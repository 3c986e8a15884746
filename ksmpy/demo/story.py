"""The main job on real input: several worker processes that have loaded the same model keep it
once, while they go on answering.

Every figure is looked at twice: as the store counts it, and as the kernel accounts for it (PSS).
RSS is not shown: it counts a shared page once for each place it is mapped at, so merging does not
change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from ksmpy.demo.fleet import SENTENCES, Fleet, Member
from ksmpy.demo.proof import Memory
from ksmpy.demo.weights import Layout, read_layout
from ksmpy.errors import KsmpyError
from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    from ksmpy.store.store import Store

__all__ = ["TOLERANCE", "Result", "Step", "run"]

TOLERANCE = 0.02
_QUIET = 5.0  # seconds without one more page saved, after which no more are waited for
_LOOK = 0.1  # seconds between two looks at what the engines count
_NOTICE = 5.0  # seconds in which a death must be noticed

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Step:
    """The workers after one step, all together, in bytes; and how they answered during it."""

    name: str
    workers: int
    seconds: float
    """What the step took, without the comparing afterwards."""
    pss: int
    uss: int
    pss_saved: int
    """How much less the kernel accounts for than when these workers had loaded the model, program
    code and libraries left out."""
    engine_saved: int
    """The same as ksmpy counts it: pages_sharing pages, without the tables of the store and of
    its engines."""
    pages_shared: int
    pages_sharing: int
    frame_bytes: int
    requests: int
    median_ms: float
    """Half of the answers took less, in milliseconds."""
    slow_ms: float
    """Of a hundred answers one took longer."""

    def disagreement(self, least: int) -> float:
        """How far the two savings are apart, as a part of the store's figure or, where there is
        little to save, of `least` bytes.
        """
        return abs(self.pss_saved - self.engine_saved) / max(self.engine_saved, least)


@dataclass
class Result:
    """What the demo found. Sizes in bytes; `problems` is empty when all is as it should be."""

    model: str
    model_bytes: int
    workers: int
    freeze: str = ""
    tracking: str = ""
    steps: list[Step] = field(default_factory=list)
    disagreement: float = 0.0
    """The largest of all steps."""
    compared_bytes: int = 0
    requests: int = 0
    copies: float = 0.0
    """How many copies of the weights were left when all had merged."""
    tuned_pages: int = 0
    deaths: int = 0
    """Workers that the store noticed to have died."""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every byte and every answer was right and the two accounts agree."""
        return not self.problems


class _Demo:
    def __init__(self, fleet: Fleet, store: Store, layout: Layout, progress: Progress) -> None:
        self.fleet = fleet
        self.store = store
        self.progress = progress
        self.result = Result(str(layout.path), layout.nbytes, len(fleet.members))
        self.loaded: dict[Member, Memory] = {}

    def load(self) -> None:
        started = time.perf_counter()
        self.fleet.replies(partial(self.progress, "loading"))
        seconds = time.perf_counter() - started
        self.compare("loaded")
        self.step("loaded", seconds)

    def merge(self) -> None:
        """All join the store, and go on answering until one copy is left, or nothing moves."""
        started = changed = time.perf_counter()
        joined = self.fleet.everybody("share")
        self.result.freeze, self.result.tracking, _ = joined[0]
        total = sum(pages for _, _, pages in joined)
        goal = total - total // len(joined)
        saved = 0
        while saved < goal and time.perf_counter() < changed + _QUIET:
            before, saved = saved, self.store.stats().pages_sharing
            now = time.perf_counter()
            changed = now if saved != before else changed
            self.progress("merging", min(saved, goal), goal)
            while time.perf_counter() < now + _LOOK:
                self.fleet.turn()
        self.progress("merging", goal, goal)
        seconds = changed - started
        self.compare("merged")
        step = self.step("merged", seconds, sharing=True)
        self.result.copies = (total - step.pages_sharing) * len(joined) / total
        self.agree(step)
        if not saved:
            # malloc always maps blocks above 32 MiB. Smaller arrays come from a heap, where equal
            # ones may begin at different places in their pages.
            small = ": equal arrays below 32 MiB may begin at different places in their pages"
            self.problem(
                "nothing was merged" + (small if self.result.model_bytes < 32 << 20 else "")
            )

    def fine_tune(self) -> None:
        """The first worker changes its copy in place: what it writes comes apart, there only."""
        tuned = self.fleet.members[0]
        self.fleet.everybody("mark")
        merged = self.fleet.one(tuned, "merged")
        started = time.perf_counter()
        self.progress("fine-tuning", 0, 1)
        self.fleet.one(tuned, "tune")
        tuned.model = "fine-tuned"
        self.progress("fine-tuning", 1, 1)
        seconds = time.perf_counter() - started
        self.compare("fine-tuned")
        for member, (apart, wrong) in zip(
            list(self.fleet.members), self.fleet.everybody("came_apart"), strict=True
        ):
            self.result.tuned_pages += apart
            if wrong:
                self.problem(
                    f"fine-tuned: {wrong} pages of worker {member.number} came apart that nobody"
                    " wrote, or stayed merged when written"
                )
        noticed = merged - self.fleet.one(tuned, "merged")
        if noticed != self.result.tuned_pages:
            self.problem(
                f"fine-tuned: {self.result.tuned_pages} pages came apart,"
                f" the engine counts {noticed}"
            )
        self.agree(self.step("one fine-tuned", seconds, sharing=True))

    def kill(self) -> None:
        """The last worker dies in the middle of an answer: the others go on, the store notices."""
        victim = self.fleet.members[-1]
        deaths = self.store.stats().deaths
        started = time.perf_counter()
        self.progress("killing", 0, 1)
        self.fleet.kill(victim)
        while victim.pid in self.store.processes() or self.store.stats().deaths == deaths:
            self.fleet.turn()
            if time.perf_counter() > started + _NOTICE:
                self.problem(f"killed: in {_NOTICE:.0f} s the store did not notice it")
                break
        self.progress("killing", 1, 1)
        seconds = time.perf_counter() - started
        self.result.deaths = self.store.stats().deaths - deaths
        self.compare("killed")
        self.agree(self.step("one killed", seconds, sharing=True))

    def release(self) -> None:
        """All leave the store, each with memory of its own again."""
        started = time.perf_counter()
        left = self.fleet.everybody("release", progress=partial(self.progress, "releasing"))
        seconds = time.perf_counter() - started
        self.compare("released")
        if sum(left):
            self.problem(f"released: {sum(left)} pages still lie in the store")
        if self.store.processes():
            self.problem(f"released: the store is still used by {self.store.processes()}")
        self.step("released", seconds)
        self.result.problems += self.fleet.problems

    def compare(self, when: str) -> None:
        """Every byte of every worker against the file; what was fine-tuned against what it should
        be now.
        """
        replies = self.fleet.everybody("compare", progress=partial(self.progress, "comparing"))
        for member, (compared, wrong) in zip(self.fleet.members, replies, strict=True):
            self.result.compared_bytes += compared
            if wrong:
                self.problem(
                    f"{when}: {wrong} bytes of worker {member.number} are not what they should be"
                )

    def step(self, name: str, seconds: float, *, sharing: bool = False) -> Step:
        """Measure, when every worker has answered every sentence once more."""
        self.fleet.answer(len(SENTENCES))
        tables = sum(self.fleet.everybody("metadata")) if sharing else 0
        self.fleet.quiet()
        members = self.fleet.members
        memory = {member: Memory.of(member.pid) for member in members}
        self.loaded = self.loaded or memory
        now = reduce(add, memory.values())
        loaded = reduce(add, (self.loaded[member] for member in members))
        stats = self.store.stats()
        tables += stats.metadata_bytes if sharing else 0
        latencies, self.fleet.latencies = self.fleet.latencies, []
        marks = quantiles(latencies, n=100, method="inclusive")
        step = Step(
            name,
            len(members),
            seconds,
            pss=now.pss,
            uss=now.uss,
            pss_saved=loaded.data - now.data,
            engine_saved=stats.pages_sharing * PAGE_SIZE - tables,
            pages_shared=stats.pages_shared,
            pages_sharing=stats.pages_sharing,
            frame_bytes=stats.frame_bytes,
            requests=len(latencies),
            median_ms=marks[49] * 1000,
            slow_ms=marks[98] * 1000,
        )
        self.result.steps.append(step)
        self.result.requests += step.requests
        return step

    def agree(self, step: Step) -> None:
        """Hold the store's figures against the kernel's, and against its processes' own."""
        result = self.result
        apart = step.disagreement(result.model_bytes)
        result.disagreement = max(result.disagreement, apart)
        if apart > TOLERANCE:
            self.problem(
                f"{step.name}: PSS fell by {step.pss_saved} bytes, the store says"
                f" {step.engine_saved}: {apart:.1%} apart"
            )
        merged, counted = sum(self.fleet.everybody("merged")), self.store.stats()
        if merged != counted.pages_shared + counted.pages_sharing:
            self.problem(
                f"{step.name}: the workers have {merged} merged pages, the store counts"
                f" {counted.pages_shared} + {counted.pages_sharing}"
            )

    def problem(self, text: str) -> None:
        self.result.problems.append(text)


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def run(
    model: str | Path,
    *,
    workers: int = 4,
    freeze: str = "auto",
    tracking: str = "auto",
    progress: Progress = _silent,
) -> Result:
    """Start worker processes that each load a model; merge, fine-tune one, kill one, release,
    and check every byte and every answer all the while.

    `model`: a BERT sentence encoder in the safetensors format, its config.json and vocab.txt
    beside it. `progress` is called with (what is being done, done, total). What goes wrong with
    the bytes, the answers or the figures is in the result's `problems`; what keeps the demo from
    running is raised: KsmpyError, OSError.
    """
    if workers < 2:
        raise KsmpyError("one worker has nobody to share with: take two or more")
    layout = read_layout(model)
    from ksmpy.store.store import Store

    options = {"freeze": freeze, "tracking": tracking}
    with Store.anonymous() as store, Fleet(workers, layout.path, store, options) as fleet:
        demo = _Demo(fleet, store, layout, progress)
        demo.load()
        demo.merge()
        demo.fine_tune()
        demo.kill()
        demo.release()
    return demo.result
