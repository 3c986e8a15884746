"""The scan-time advisor: pages_to_scan follows the time that a full pass takes.

Integer arithmetic of scan_time_advisor() in Linux's mm/ksm.c, step by step, so that the same
passes give the same rates as in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

EWMA_WEIGHT = 30
MIN_CPU_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """The advisor_* knobs: seconds, percent of a core, pages."""

    target_scan_time: int = 200
    max_cpu: int = 70
    max_pages_to_scan: int = 30000


class Advisor:
    """Remembers the previous pass and proposes the next rate."""

    def __init__(self) -> None:
        self._change = 0
        self._scan_seconds = 0

    def advise(self, pages_to_scan: int, scan_seconds: int, cpu_ms: int, limits: Limits) -> int:
        """The next pages_to_scan, after a full pass.

        The pass took `scan_seconds` whole seconds (counted as at least 1) and `cpu_ms`
        milliseconds of CPU time, at `pages_to_scan` pages a batch.
        """
        scan = max(scan_seconds, 1)
        cpu_percent = cpu_ms * 100 // (scan * 1000) or 1
        factor = limits.target_scan_time * 100 // scan or 1
        change = scan * 100 // (self._scan_seconds or scan) or 1
        change = ((100 - EWMA_WEIGHT) * self._change + EWMA_WEIGHT * change) // 100
        pages = pages_to_scan * 100 // factor
        pages = pages * change // 100
        per_cpu = pages_to_scan // cpu_percent or 1
        pages = min(pages, per_cpu * limits.max_cpu)
        pages = max(pages, per_cpu * MIN_CPU_PERCENT)
        pages = min(pages, limits.max_pages_to_scan)
        self._change = change
        self._scan_seconds = scan
        return pages
