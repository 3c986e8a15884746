"""What merging saves: one definition, for all who show a figure of it (docs/report.md)."""

from __future__ import annotations

__all__ = ["net_bytes"]


def net_bytes(
    *, merged: int, stores: int, by_fork: int = 0, zeros: int = 0, tables: int = 0
) -> int:
    """What would have to be paid for without ksmpy and is not; below 0 where merging costs more
    than it gives.

    `merged`: memory that lies on frames, not what was written since. `by_fork`: the part of it that
    would be common by a fork without ksmpy, too. `zeros`: memory that was given back because it was
    all zeros. `stores`: all memory that stores take, which is frames, room among them, and indexes.
    `tables`: what engines take beside their stores, and ksmpy to be imported, where that is known.
    """
    return merged - by_fork + zeros - stores - tables
