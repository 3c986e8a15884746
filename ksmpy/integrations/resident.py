"""A process's memory for those who watch RSS: what others share of it counts in part."""

from __future__ import annotations

from ksmpy import proc
from ksmpy.own import own

__all__ = ["Resident"]

# The kernel counts each page of the process for smaps_rollup, so it is read only as often as takes
# 1 % of a core; but a figure older than _OLDEST_SECONDS is of no use to a guard.
_SHARE = 0.01
_OLDEST_SECONDS = 10.0


class Resident:
    """RSS less what PSS leaves to the other processes that have the same pages.

    The difference is measured now and then and taken for what it was in between: pages that are
    written meanwhile count some seconds late.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._others = 0
        self._next = 0.0

    def of(self, rss: int, *, fresh: bool = False) -> int:
        """Bytes, of a process that has `rss` now; `rss` where the kernel does not tell PSS.

        `fresh`: measure now.
        """
        now = own.monotonic()
        if fresh or now >= self._next:
            before = own.thread_time()
            try:
                sizes = proc.rollup(self.pid)
                self._others = max(0, sizes.get("Rss", 0) - sizes.get("Pss", 0))
            except OSError:
                self._others = 0
            taken = own.thread_time() - before
            self._next = now + min(taken / _SHARE, _OLDEST_SECONDS)
        return max(0, rss - self._others)
