"""How figures look under print() and in a notebook: a few lines of words, or a small table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ksmpy.engine.stats import human_bytes
from ksmpy.errors import KsmpyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ksmpy.engine.engine import Engine
    from ksmpy.engine.stats import Estimate, Stats
    from ksmpy.whole.dedup import Report

__all__ = [
    "engine_html",
    "engine_text",
    "estimate_html",
    "report_html",
    "stats_html",
    "stats_text",
]

Row = tuple[str, str]

# Of an estimate's buffers a page shows those with most to gain.
_BUFFERS = 10


def _stats_rows(stats: Stats) -> list[Row]:
    rows = [
        ("saved", human_bytes(stats.saved_bytes)),
        (
            "merged",
            f"{stats.merging_pages} of {stats.registered_pages} pages; {stats.pages_shared} frames"
            f" take {human_bytes(stats.frame_bytes)}",
        ),
        ("zero pages", str(stats.ksm_zero_pages)),
        ("alone", f"{stats.pages_unshared} pages; {stats.pages_volatile} are written often"),
        ("metadata", human_bytes(stats.metadata_bytes)),
        ("mappings", f"{stats.vmas} of {stats.vma_limit}"),
        ("passes", str(stats.full_scans)),
    ]
    refusals = (
        ("in use for I/O", stats.pages_busy),
        ("for want of mappings", stats.pages_no_budget),
        ("for want of memory", stats.pages_no_memory),
        ("changed meanwhile", stats.pages_differed),
        ("memory gone", stats.pages_lost),
    )
    told = ", ".join(f"{count} {why}" for why, count in refusals if count)
    return [*rows, ("refused", told)] if told else rows


def _lines(rows: Sequence[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _html(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    cells = (
        f"<tr><th style='text-align:left'>{escape(first)}</th>"
        + "".join(f"<td style='text-align:left'>{escape(each)}</td>" for each in rest)
        + "</tr>"
        for first, *rest in rows
    )
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    caption = f"<caption style='text-align:left'>{escape(title)}</caption>"
    return f"<table>{caption}<tbody>{''.join(cells)}</tbody></table>{below}"


def stats_text(stats: Stats) -> str:
    """An engine's counters in a few lines."""
    return _lines(_stats_rows(stats))


def stats_html(stats: Stats) -> str:
    """The same as a table."""
    return _html("ksmpy: counters of an engine", _stats_rows(stats))


def _engine_rows(engine: Engine) -> list[Row] | None:
    """None for one that can say nothing of itself: closed, its parent's, its store locked."""
    if engine.closed or engine.inherited:
        return None
    try:
        regions, stats = len(engine.regions()), engine.stats()
        running = ("stopped", "scans in the background", "stopped, unmerged")[engine.knobs.run]
    except (KsmpyError, OSError):
        return None
    return [
        ("engine", f"{running}; freeze {engine.freeze}, tracking {engine.tracking}"),
        ("regions", str(regions)),
        *_stats_rows(stats),
    ]


def engine_text(engine: Engine) -> str:
    """What an engine is, and its counters, in a few lines."""
    rows = _engine_rows(engine)
    return repr(engine) if rows is None else _lines(rows)


def engine_html(engine: Engine) -> str:
    """The same as a table."""
    rows = _engine_rows(engine)
    return f"<code>{escape(repr(engine))}</code>" if rows is None else _html("ksmpy", rows)


def report_html(report: Report) -> str:
    """What dedup() saved, and why not more."""
    first, *notes = str(report).splitlines()
    rows = [
        ("saved", human_bytes(report.saved_bytes)),
        ("before", human_bytes(report.before_bytes)),
        ("after", human_bytes(report.after_bytes)),
    ]
    return _html(first, rows, notes)


def estimate_html(estimate: Estimate) -> str:
    """What merging would save, with the buffers that have most of it."""
    first, *notes = str(estimate).splitlines()
    most = sorted(estimate.buffers, key=lambda each: -each.saved_bytes)
    rows = [
        (each.name, f"{human_bytes(each.saved_bytes)} of {human_bytes(each.pages * 4096)}")
        for each in most[:_BUFFERS]
    ]
    left = len(most) - len(rows)
    return _html(first, rows, [*([f"and {left} buffers more"] if left else []), *notes])
