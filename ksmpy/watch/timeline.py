"""What the engines of several processes have noted, at the same moments."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ksmpy.engine.history import Past, Sample

__all__ = ["Line", "Timeline", "timeline"]

_MOMENTS = 160


class Now(Protocol):
    """What was measured of a process at the end of the line."""

    @property
    def pid(self) -> int: ...
    @property
    def pss_bytes(self) -> int: ...
    @property
    def rss_bytes(self) -> int: ...
    @property
    def saved_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One process at all moments; bytes, 0 before its engine noted anything."""

    pid: int
    pss: tuple[int, ...]
    rss: tuple[int, ...]
    saved: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """All of them; the last moment is that of the look itself."""

    times: tuple[float, ...]
    lines: tuple[Line, ...]
    since: float | None
    """When something was saved first."""


def timeline(noted: dict[int, list[Past]], processes: Sequence[Now], taken: float) -> Timeline:
    """At up to 160 moments from the first sample to the look."""
    series = {pid: _series(pasts) for pid, pasts in noted.items()}
    all_times = sorted({sample.time for each in series.values() for sample in each})
    times = [time for time in all_times if time < taken]
    if len(times) >= _MOMENTS:
        step = (taken - times[0]) / (_MOMENTS - 1)
        times = [times[0] + step * number for number in range(_MOMENTS - 1)]
    lines = tuple(_line(now, series[now.pid], times) for now in processes)
    saving = [sample.time for each in series.values() for sample in each if sample.saved]
    return Timeline((*times, taken), lines, min(saving, default=None))


def _series(pasts: list[Past]) -> list[Sample]:
    """The samples of a process. If it has several engines these are of the one that has noted most,
    with the savings of all.
    """
    if not pasts:
        return []
    longest = max(pasts, key=lambda past: len(past.samples))
    others = [past for past in pasts if past is not longest and past.samples]
    return [
        Sample(
            each.time, each.pss, each.rss,
            each.saved + sum(_at(list(past.samples), each.time, "saved") for past in others),
            each.merged, each.zero, each.scan_microseconds, each.mappings,
        )
        for each in longest.samples
    ]  # fmt: skip


def _at(samples: list[Sample], time: float, name: str) -> int:
    """What the last sample up to that time says; 0 before the first."""
    index = bisect_right(samples, time, key=lambda sample: sample.time)
    return int(getattr(samples[index - 1], name)) if index else 0


def _line(now: Now, samples: list[Sample], times: list[float]) -> Line:
    def values(name: str, last: int) -> tuple[int, ...]:
        return (*(_at(samples, time, name) for time in times), last)

    return Line(
        now.pid,
        values("pss", now.pss_bytes),
        values("rss", now.rss_bytes),
        values("saved", now.saved_bytes),
    )
