"""The main job on real input: a process that serves several variants of one model gets its memory
back.

Every figure is looked at twice: as the engine counts it, and as the kernel accounts for it (PSS).
RSS is not shown: it counts a shared page once for each place it is mapped at, so merging does not
change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksmpy._minilm import Layout, Weights, load, read_layout
from ksmpy._native import PAGE_SIZE
from ksmpy.errors import KsmpyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ksmpy.engine import Engine

__all__ = ["TOLERANCE", "Result", "Step", "run"]

TOLERANCE = 0.02
_BATCH_PAGES = 4096
_PIECE = 1 << 20  # bytes of the file compared at a time: the check itself must not need memory
_FILE_PAGE = (
    1 << 61
)  # pagemap: not anonymous, so on a frame (Documentation/admin-guide/mm/pagemap.rst)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Step:
    """The process after one step, in bytes.

    `uss` leaves out frames that two places of this very process share, so it falls further than
    memory does: `pss` is the one that tells. `pss_files` is the part of it that is program code
    and libraries: it changes with every other process that starts or ends.
    """

    name: str
    seconds: float
    pss: int
    pss_files: int
    uss: int
    engine_saved: int
    pages_shared: int
    pages_sharing: int


@dataclass
class Result:
    """What the demo found. Sizes in bytes; `problems` is empty when all is as it should be."""

    model: str
    model_bytes: int
    variants: int
    freeze: str = ""
    tracking: str = ""
    steps: list[Step] = field(default_factory=list)
    pss_saved: int = 0
    engine_saved: int = 0
    disagreement: float = 0.0
    compared_bytes: int = 0
    tuned_pages: int = 0
    shares: list[tuple[str, str, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every byte was right and the two accounts agree."""
        return not self.problems


def memory() -> tuple[int, int, int]:
    """(PSS, the files' part of it, USS) of this process in bytes, from /proc/self/smaps_rollup."""
    sizes: dict[str, int] = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            key, _, rest = line.partition(":")
            if rest.endswith("kB\n"):
                sizes[key] = int(rest.split()[0]) * 1024
    uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return sizes["Pss"], sizes.get("Pss_File", 0), uss


class _PageMap:
    """Which whole pages of an array lie on frames, as the kernel sees it; all must be present."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        import numpy as np

        first = -(-data.ctypes.data // PAGE_SIZE)
        self.offset = first * PAGE_SIZE - data.ctypes.data  # of the first whole page, in the array
        count = (data.nbytes - self.offset) // PAGE_SIZE
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(first * 8)
            entries = np.frombuffer(file.read(count * 8), np.uint64)
        self.merged = (entries & np.uint64(_FILE_PAGE)) != 0

    def touched(self, ranges: list[tuple[int, int]]) -> NDArray[np.bool_]:
        """The pages that hold at least one byte of any of the ranges (first, end) of the array."""
        import numpy as np

        pages = np.zeros(self.merged.size, np.bool_)
        for first, end in ranges:
            low = (first - self.offset) // PAGE_SIZE
            pages[max(0, low) : max(0, -((self.offset - end) // PAGE_SIZE))] = True
        return pages


class _Demo:
    def __init__(self, layout: Layout, variants: int, progress: Progress) -> None:
        self.layout = layout
        self.progress = progress
        self.result = Result(str(layout.path), layout.nbytes, variants)
        self.models: list[Weights] = []
        self.tuned: dict[str, NDArray[Any]] = {}

    def step(self, name: str, seconds: float, engine: Engine | None = None) -> Step:
        sizes = memory()
        counts = (0, 0, 0)
        if engine is not None:
            stats = engine.stats()
            counts = (stats.saved_bytes, stats.pages_shared, stats.pages_sharing)
        step = Step(name, seconds, *sizes, *counts)
        self.result.steps.append(step)
        return step

    def load(self) -> Step:
        started = time.perf_counter()
        for done in range(self.result.variants):
            self.progress("loading", done, self.result.variants)
            self.models.append(load(self.layout))
        self.progress("loading", self.result.variants, self.result.variants)
        seconds = time.perf_counter() - started
        self.compare("loaded")
        return self.step("loaded", seconds)

    def merge(self, engine: Engine) -> Step:
        started = time.perf_counter()
        regions = [
            engine.register(model.data, name=f"variant {number}")
            for number, model in enumerate(self.models)
        ]
        total = sum(region.pages for region in regions)
        seen, full = 0, False
        while not full:
            scanned = engine.scan(eager=True, max_pages=_BATCH_PAGES)
            seen += scanned.scanned + scanned.skipped
            full = bool(scanned.full)
            self.progress("merging", min(seen, total), total)
        seconds = time.perf_counter() - started
        # Read all before measuring: a merged page that nobody has looked at yet is in nobody's PSS.
        self.compare("merged")
        step = self.step("merged", seconds, engine)
        self.result.shares = [(*share.names, share.pages) for share in engine.shares()]
        return step

    def compare(self, when: str) -> None:
        """Every byte of every variant against the file; what was fine-tuned against what it should
        be now.
        """
        import numpy as np

        size = self.layout.nbytes
        for number, model in enumerate(self.models):
            wrong = 0
            for at, piece in self._pieces(self.tuned if number == 0 else {}):
                wrong += int(np.count_nonzero(model.data[at : at + piece.size] != piece))
                self.result.compared_bytes += piece.size
                done = number * size + at + piece.size
                self.progress("comparing", done, size * len(self.models))
            if wrong:
                self.problem(
                    f"{when}: {wrong} bytes of variant {number} are not what they should be"
                )

    def _pieces(self, tuned: dict[str, NDArray[Any]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(offset, bytes) of the file, one piece after the other in the same memory, with the
        tuned tensors put in.
        """
        import numpy as np

        buffer = np.empty(_PIECE, np.uint8)
        with self.layout.path.open("rb", buffering=0) as file:
            at = 0
            while got := file.readinto(buffer.data):
                piece = buffer[:got]
                for name, values in tuned.items():
                    _, _, first, end = self.layout.tensors[name]
                    low, high = max(first, at), min(end, at + got)
                    if low < high:
                        flat = values.reshape(-1).view(np.uint8)
                        piece[low - at : high - at] = flat[low - first : high - first]
                yield at, piece
                at += got

    def last_layer(self) -> list[str]:
        """The tensors of the last numbered layer; where none is numbered, of the last tenth of the
        file.
        """
        numbered = [
            (int(part), name)
            for name in self.layout.tensors
            for part in name.split(".")
            if part.isdigit()
        ]
        if numbered:
            last = max(number for number, _ in numbered)
            return sorted({name for number, name in numbered if number == last})
        limit = self.layout.nbytes * 9 // 10
        return sorted(name for name, place in self.layout.tensors.items() if place[2] >= limit)

    def fine_tune(self, engine: Engine) -> Step:
        """One step of gradient descent on the last layer of variant 0, in place, as an optimizer
        does it.
        """
        import numpy as np

        names = self.last_layer()
        generator = np.random.default_rng(0)
        before = [_PageMap(model.data) for model in self.models]
        sharing = engine.stats().pages_sharing
        started = time.perf_counter()
        for done, name in enumerate(names):
            weights = self.models[0].tensors[name]
            if weights.dtype.kind == "f":
                change = generator.normal(0.0, 0.01, weights.shape).astype(weights.dtype)
            else:
                change = generator.integers(0, 2, weights.shape).astype(weights.dtype)
            self.tuned[name] = weights + change
            weights += change
            self.progress("fine-tuning", done + 1, len(names))
        engine.scan(eager=True)
        seconds = time.perf_counter() - started
        self.compare("fine-tuned")
        step = self.step("one fine-tuned", seconds, engine)
        self._check_apart(names, before, sharing - step.pages_sharing)
        return step

    def _check_apart(self, names: list[str], before: list[_PageMap], noticed: int) -> None:
        """What was written came apart, all of it and nothing else, and the engine noticed."""
        import numpy as np

        after = [_PageMap(model.data) for model in self.models]
        ranges = [self.layout.tensors[name][2:] for name in names]
        apart = before[0].merged & before[0].touched(ranges)
        self.result.tuned_pages = int(apart.sum())
        if not np.array_equal(after[0].merged, before[0].merged & ~apart):
            self.problem(
                "fine-tuned: other pages of variant 0 came apart than those that were written"
            )
        for number in range(1, len(self.models)):
            if not np.array_equal(after[number].merged, before[number].merged):
                self.problem(
                    f"fine-tuned: pages of variant {number} came apart, which nobody wrote"
                )
        if noticed != self.result.tuned_pages:
            self.problem(
                f"fine-tuned: {self.result.tuned_pages} pages came apart,"
                f" the engine counts {noticed}"
            )

    def release(self, engine: Engine) -> Step:
        started = time.perf_counter()
        engine.close()
        seconds = time.perf_counter() - started
        self.compare("released")
        left = sum(int(_PageMap(model.data).merged.sum()) for model in self.models)
        if left:
            self.problem(f"released: {left} pages still lie in the store")
        return self.step("released", seconds)

    def agree(self, loaded: Step, merged: Step) -> None:
        """Hold the engine's figure against the kernel's."""
        result = self.result
        result.pss_saved = (loaded.pss - loaded.pss_files) - (merged.pss - merged.pss_files)
        result.engine_saved = merged.engine_saved
        if merged.engine_saved <= 0:
            result.disagreement = 1.0
            # Above 32 MiB malloc always maps; below, equal arrays may lie at unequal offsets.
            small = ": equal arrays below 32 MiB may begin at different places in their pages"
            self.problem("nothing was merged" + (small if self.layout.nbytes < 32 << 20 else ""))
            return
        result.disagreement = abs(result.pss_saved - merged.engine_saved) / merged.engine_saved
        if result.disagreement > TOLERANCE:
            self.problem(
                f"PSS fell by {result.pss_saved} bytes, the engine says {merged.engine_saved}: "
                f"{result.disagreement:.1%} apart"
            )

    def problem(self, text: str) -> None:
        self.result.problems.append(text)


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def run(
    model: str | Path,
    *,
    variants: int = 4,
    freeze: str = "auto",
    tracking: str = "auto",
    progress: Progress = _silent,
) -> Result:
    """Load a safetensors file `variants` times, merge, check, fine-tune one, check, release,
    check.

    `progress` is called with (what is being done, done, total). What goes wrong with the bytes or
    the figures is in the result's `problems`; what keeps the demo from running is raised:
    KsmpyError, OSError.
    """
    import numpy.random  # noqa: F401  (before anything is measured)

    from ksmpy.engine import Engine

    if variants < 2:
        raise KsmpyError("one variant has nothing to share: take two or more")
    demo = _Demo(read_layout(model), variants, progress)
    with Engine(freeze=freeze, tracking=tracking) as engine:
        demo.result.freeze, demo.result.tracking = engine.freeze, engine.tracking
        demo.step("start", 0.0)
        loaded = demo.load()
        merged = demo.merge(engine)
        demo.agree(loaded, merged)
        demo.fine_tune(engine)
        demo.release(engine)
    return demo.result
