"""What merging would save, from the pages' digests: frames and mappings by the engine's rules."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Budget", "Forecast"]

#: How many passes dedup() makes, in which refused pages are tried again.
_PASSES = 8
#: Those of csrc/merge/budget.c and csrc/merge/run.c.
_LONG_RUN, _LONG_RUNS_SHARE, _RUN_MAX = 16, 16, 2048


@dataclass(slots=True)
class Budget:
    """Mappings that the process has, and how many it may have before merging stops."""

    used: int
    limit: int

    def allows(self, pages: int, more: int, calm: int) -> bool:
        """Whether a run of so many pages may take so many more in the pass of that number."""
        held = self.limit // 4 // pages >> calm
        if pages < _LONG_RUN:
            held = max(held, self.limit // _LONG_RUNS_SHARE)
        return self.used + more + held <= self.limit


@dataclass(slots=True)
class _Run:
    """Neighbours that go onto frames in a row, or are all of one content."""

    page: int
    target: int  # frame of the first page, or the page that it is equal to
    kind: str  # "frame", "page" or "equal"
    pages: int = 1


@dataclass
class Forecast:
    """Buffers are added, then :meth:`saved` says how many pages each would give back."""

    max_page_sharing: int
    budget: Budget | None
    """None: as many mappings as it takes."""
    zero: bytes | None = None
    """The digest of zeros, where these take neither frames nor mappings."""
    _buffers: list[tuple[int, list[bytes | None]]] = field(default_factory=list)
    _merged: Counter[bytes] = field(default_factory=Counter)

    def add(self, page: int, digests: list[bytes | None]) -> None:
        """The pages from that number on; None for one without memory of its own."""
        self._buffers.append((page, digests))

    def add_merged(self, digests: list[bytes | None]) -> None:
        """Pages that lie on frames already."""
        self._merged.update(filter(None, digests))

    def saved(self) -> list[int]:
        """For each buffer that was added, in that order."""
        counts = Counter(digest for _, digests in self._buffers for digest in digests if digest)
        counts.update(self._merged)
        wanted = {d for d, n in counts.items() if n > 1 and d != self.zero}
        if self.budget is not None and not self._is_plenty(self.budget, counts, wanted):
            return _Scan(self, self.budget, wanted).saved()
        return [sum(each) for each in self._without_limit()]

    def _is_plenty(self, budget: Budget, counts: Counter[bytes], wanted: set[bytes]) -> bool:
        pages = sum(counts[digest] for digest in wanted)
        return budget.used + 2 * pages + budget.limit // _LONG_RUNS_SHARE <= budget.limit

    def _without_limit(self) -> Iterator[Iterator[bool]]:
        seen = Counter(self._merged)
        for _, digests in self._buffers:
            yield (self._joins(digest, seen) for digest in digests if digest)

    def _joins(self, digest: bytes, seen: Counter[bytes]) -> bool:
        before = seen[digest]
        seen[digest] += 1
        return before > 0 and (digest == self.zero or before % self.max_page_sharing != 0)


class _Scan:
    """The engine's passes, with digests for pages and numbers for frames."""

    def __init__(self, forecast: Forecast, budget: Budget, wanted: set[bytes]) -> None:
        self._sharing, self._zero = forecast.max_page_sharing, forecast.zero
        self._buffers, self._budget, self._wanted = forecast._buffers, budget, wanted
        self._digest: dict[int, bytes] = {}  # of frames
        self._sharers: dict[int, int] = {}
        self._newest: dict[bytes, int] = {}  # frame
        self._frame_of: dict[int, int] = {}
        self._saved: dict[int, int] = defaultdict(int)
        self._next = self._buffer = self._calm = 0
        self._waiting: dict[bytes, int] = {}  # page
        self._run: _Run | None = None
        for digest, sharers in forecast._merged.items():
            self._make(digest, sharers % forecast.max_page_sharing or forecast.max_page_sharing)
            self._next += 1  # leaves a gap: these frames are not in a row

    def saved(self) -> list[int]:
        zeros = self._zeros()
        for calm in range(_PASSES):
            before = len(self._frame_of)
            self._waiting.clear()
            for buffer in range(len(self._buffers)):
                self._scan(buffer, calm)
            if calm and len(self._frame_of) == before:
                break
        return [zeros[buffer] + self._saved[buffer] for buffer in range(len(self._buffers))]

    def _zeros(self) -> list[int]:
        zeros = [digests.count(self._zero) if self._zero else 0 for _, digests in self._buffers]
        first = next((i for i, n in enumerate(zeros) if n), None)
        if first is not None:
            zeros[first] -= 1
        return zeros

    def _scan(self, buffer: int, calm: int) -> None:
        first, digests = self._buffers[buffer]
        self._buffer, self._calm = buffer, calm
        previous: bytes | None = None
        for page, digest in enumerate(digests, first):
            if digest in self._wanted and page not in self._frame_of:
                assert digest is not None
                self._visit(page, digest, previous)
            previous = digest
        self._finish()

    def _visit(self, page: int, digest: bytes, previous: bytes | None) -> None:
        if self._extends(page, digest):
            assert self._run is not None
            self._run.pages += 1
            return
        self._finish()
        frame = self._newest.get(digest)
        if frame is not None and self._sharers[frame] < self._sharing:
            self._run = _Run(page, frame, "frame")
        elif digest == previous and self._waiting.get(digest) == page - 1:
            self._run = _Run(page - 1, -1, "equal", 2)
        elif digest in self._waiting:
            self._run = _Run(page, self._waiting[digest], "page")
        else:
            self._waiting[digest] = page

    def _extends(self, page: int, digest: bytes) -> bool:
        run = self._run
        if run is None or page != run.page + run.pages:
            return False
        if run.kind == "equal":
            return digest == self._digests(run.page)
        if page % _RUN_MAX == 0:
            return False
        target = run.target + run.pages
        if run.kind == "frame":
            return self._digest.get(target) == digest and self._sharers[target] < self._sharing
        return self._waiting.get(digest) == target

    def _digests(self, page: int) -> bytes | None:
        first, digests = self._buffers[self._buffer]
        return digests[page - first]

    def _finish(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run.kind == "equal":
            self._stretch(run)
        elif self._budget.allows(run.pages, 4 if run.kind == "page" else 2, self._calm):
            for i in range(run.pages):
                self._put(run, i)

    def _put(self, run: _Run, i: int) -> None:
        """The page of that number in the run, and the one that it is equal to, onto a frame."""
        if self._budget.used + 4 > self._budget.limit:
            return
        digest = self._digests(run.page + i)
        frame = run.target + i
        if run.kind == "page":
            assert digest is not None
            del self._waiting[digest]
            frame = self._make(digest, 0)
            self._map(run.target + i, frame)
        self._map(run.page + i, frame)
        self._saved[self._buffer] += 1

    def _make(self, digest: bytes, sharers: int) -> int:
        frame = self._next
        self._next += 1
        self._digest[frame], self._sharers[frame], self._newest[digest] = digest, sharers, frame
        return frame

    def _map(self, page: int, frame: int) -> None:
        """Each end costs a mapping, unless a neighbour's frame is this one's neighbour."""
        self._frame_of[page] = frame
        self._sharers[frame] += 1
        for neighbour, wanted in ((page - 1, frame - 1), (page + 1, frame + 1)):
            there = self._frame_of.get(neighbour)
            self._budget.used += 1 if there is None else -(there == wanted)

    def _stretch(self, run: _Run) -> None:
        """Neighbours that are equal to each other, by the rule of csrc/merge/equal_neighbours.c.

        A block of frames takes max_page_sharing mappings, and as many again each time that the
        stretch doubles beyond what is merged at once.
        """
        digest = self._digests(run.page)
        assert digest is not None
        self._waiting.pop(digest, None)
        doublings = max(0.0, math.log2(run.pages / (2 * _RUN_MAX)))
        mappings = min(run.pages, math.ceil(self._sharing * (1 + doublings)))
        block = max(1, min(run.pages, _RUN_MAX) // self._sharing)
        if not self._budget.allows(block, 2, self._calm):
            return
        left = max(0, self._budget.limit - self._budget.used)
        self._budget.used += min(mappings, left)
        frame = -1
        for i in range(run.pages * min(mappings, left) // mappings):
            if i % self._sharing == 0:
                if run.pages - i == 1:
                    return  # it is left alone
                frame = self._make(digest, 0)
            else:
                self._saved[self._buffer] += 1
            self._frame_of[run.page + i] = frame
            self._sharers[frame] += 1
