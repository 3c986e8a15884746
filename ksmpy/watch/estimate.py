"""What an estimate says, and why some memory was left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ksmpy.native import PAGE_SIZE
from ksmpy.text import human_bytes, table_html

__all__ = ["BufferEstimate", "Estimate", "Refused", "refusal_lines"]

# How many of an estimate's buffers a notebook shows: those with most to gain.
_SHOWN = 10


class Refused(NamedTuple):
    """What was not merged, or not looked at, and why."""

    name: str
    reason: str


def refusal_lines(refused: tuple[Refused, ...]) -> list[str]:
    """One line for each reason, naming the first that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in refused:
        names.setdefault(reason, []).append(name)
    return [
        f"refused {each[0]}{f' and {len(each) - 1} more' if len(each) > 1 else ''}: {reason}"
        for reason, each in names.items()
    ]


@dataclass(frozen=True, slots=True)
class BufferEstimate:
    """What an estimate says of one buffer or mapping, in pages."""

    name: str
    pages: int
    duplicate_pages: int
    """Pages whose bytes also occur in an earlier page, of this buffer or of another."""
    zero_pages: int
    """All-zero pages, whether duplicates or not."""

    @property
    def saved_bytes(self) -> int:
        """What the duplicates take up."""
        return self.duplicate_pages * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Estimate:
    """What merging would save, found by digests; nothing was changed.

    Gross figures: the engine's metadata, some 16 bytes a page, is not taken off.
    """

    total_pages: int
    duplicate_pages: int
    """Pages that could go: each page whose bytes occurred before."""
    zero_pages: int
    """All-zero pages, whether duplicates or not."""
    buffers: tuple[BufferEstimate, ...] = ()
    skipped: tuple[Refused, ...] = ()
    """What could not be looked at."""

    @property
    def total_bytes(self) -> int:
        """Bytes looked at."""
        return self.total_pages * PAGE_SIZE

    @property
    def saved_bytes(self) -> int:
        """Bytes that merging would give back."""
        return self.duplicate_pages * PAGE_SIZE

    def __str__(self) -> str:
        part = self.duplicate_pages / self.total_pages if self.total_pages else 0.0
        first = (
            f"{human_bytes(self.saved_bytes)} of {human_bytes(self.total_bytes)} ({part:.0%}) in"
            f" {len(self.buffers)} buffers are duplicates; {self.zero_pages} pages are zero"
        )
        return "\n".join([first, *refusal_lines(self.skipped)])

    def _repr_html_(self) -> str:
        first, *notes = str(self).splitlines()
        most = sorted(self.buffers, key=lambda each: -each.saved_bytes)
        rows = [
            (each.name, f"{human_bytes(each.saved_bytes)} of {human_bytes(each.pages * PAGE_SIZE)}")
            for each in most[:_SHOWN]
        ]
        left = len(most) - len(rows)
        return table_html(first, rows, [*([f"and {left} buffers more"] if left else []), *notes])
