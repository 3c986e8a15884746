"""The counters of a store: a frozen record, counts in pages of 4096 bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from ksmpy.native import PAGE_SIZE
from ksmpy.saving import net_bytes

__all__ = ["StoreStats"]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The counters of a whole store, of all its processes together."""

    pages_shared: int
    pages_sharing: int
    stale_frames: int
    """Frames without a sharer that a forked child may still map."""
    huge_frames: int
    """Frames in use that lie on huge pages."""
    spare_frames: int
    """Room of such huge pages that no frame uses, and that keeps its memory."""
    stable_node_chains: int
    stable_node_dups: int
    frame_bytes: int
    """Memory that the frames take, and that is spare."""
    metadata_bytes: int
    saved_bytes: int
    """Net gain in bytes: (pages_sharing - spare_frames) * 4096 - metadata_bytes, or 0 where that is
    negative."""
    merge_across_nodes: int
    max_page_sharing: int
    use_zero_pages: int
    deaths: int
    """Processes that ended without leaving the store, and were noticed."""
    rebuilds: int
    """How often the index was made anew, because a process died while it changed it."""
    lock_waits: int
    """How often the store's lock was another's, and had to be waited for."""
    lock_wait_ns: int
    lock_hold_max_ns: int
    full: int
    """1 while its frames have taken what its file system has for them, so that no more are made."""

    @classmethod
    def from_native(cls, values: Mapping[str, int]) -> StoreStats:
        """The record for what the store reports."""
        known = {field.name for field in fields(cls)}
        told = cls(
            **{name: value for name, value in values.items() if name in known}, saved_bytes=0
        )
        return replace(told, saved_bytes=max(0, told.net_bytes()))

    def net_bytes(self, *, by_fork: int = 0, zeros: int = 0, tables: int = 0) -> int:
        """See ksmpy.saving, of all processes together; below 0 where the store costs more."""
        return net_bytes(
            merged=(self.pages_shared + self.pages_sharing) * PAGE_SIZE,
            stores=(self.pages_shared + self.spare_frames) * PAGE_SIZE + self.metadata_bytes,
            by_fork=by_fork,
            zeros=zeros,
            tables=tables,
        )
