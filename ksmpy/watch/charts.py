"""The pictures of a report, drawn with Bokeh, which is imported when the first one is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ksmpy.text import human_bytes
from ksmpy.watch.portrait import Portrait
from ksmpy.watch.ties import Copy, Holder

if TYPE_CHECKING:
    from bokeh.plotting import figure

__all__ = ["KINDS", "PALETTE", "charts", "memory_maps", "over_time", "ribbons", "strengths"]

_MIB = 1 << 20

#: Colours that people with colour blindness can tell apart, on white and on black.
PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99",
    "#7f7f9f", "#bbcc33",
)  # fmt: skip

#: What a page may be: its colour, and what it is called.
KINDS = {
    "shared": ("#2a9d8f", "shared"),
    "kept": ("#8fcfc6", "on a frame, alone"),
    "written": ("#e76f51", "written since it was merged"),
    "often": ("#f2b94b", "written since the last look"),
    "alone": ("#5b7db1", "alone"),
    "huge": ("#35507d", "alone, on a huge page"),
    "left_out": ("#a58bc4", "left out"),
    "swapped": ("#9b2f3f", "in swap"),
    "zero": ("#9aa5b1", "the zero page"),
    "absent": ("#8a94a03d", "zeros without memory, or not touched"),
}

_ROWS = 40  # buffers in the picture; if there are more, processes are drawn instead
_COPIES = 12
_LEAST_PART = 1000  # what saves less than one part in so many of the largest saving is left out


def charts(portrait: Portrait) -> dict[str, Any]:
    """The figures by the names of the places where they belong; what has nothing to show is left
    out.
    """
    made: dict[str, Any] = {}
    if portrait.copies:
        made["ribbons"] = ribbons(portrait)
    if any(tie.a.pid != tie.b.pid for tie in portrait.ties):
        made["strengths"] = strengths(portrait)
    if len(portrait.timeline.times) > 2:
        made["over_time"] = over_time(portrait)
    made.update(memory_maps(portrait))
    return made


def _figure(height: int, **options: Any) -> figure:
    from bokeh.plotting import figure

    made = figure(
        height=height, sizing_mode="stretch_width", toolbar_location=None, min_border=4, **options
    )
    made.background_fill_alpha = made.border_fill_alpha = 0
    made.outline_line_color = None
    for axis in made.axis:
        axis.major_label_text_font_size = "11px"
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
    return made


def _colours(portrait: Portrait) -> dict[int, str]:
    return {
        each.pid: PALETTE[number % len(PALETTE)] for number, each in enumerate(portrait.processes)
    }


# ---- who shares with whom -----------------------------------------------------------------------


def ribbons(portrait: Portrait) -> figure:
    """Buffers on the left, what is kept of them on the right: all who share it come together."""
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, LinearAxis, Range1d

    copies = _drawn(portrait.copies)
    rows = _rows(copies)
    places = _places(rows)
    bottom = max(places.values()) + 1
    made = _figure(
        max(180, int(bottom * 21) + 20), x_range=Range1d(0, 1), y_range=Range1d(bottom, -0.3)
    )
    largest = max(max(rows.values()), max(copy.kept_bytes for copy in copies))
    data = _ribbon_data(copies, places, bottom, largest, _colours(portrait))
    shapes = made.patches(
        "xs", "ys", source=ColumnDataSource(data, name="ribbons"), fill_color="colour",
        fill_alpha=0.45, line_color="colour", line_alpha=0.7, hover_fill_alpha=0.85,
    )  # fmt: skip
    made.add_tools(HoverTool(renderers=[shapes], tooltips=[("", "@who: @held of @kept")]))
    slot = bottom / len(copies)
    right = [slot * (number + 0.5) - 0.3 for number in range(len(copies))]
    made.xaxis.visible = False
    made.grid.visible = False
    made.yaxis.ticker = FixedTicker(ticks=list(places.values()))
    made.yaxis.major_label_overrides = {
        place: f"{pid} {_short(buffer)}" for (pid, buffer), place in places.items()
    }
    axis = LinearAxis(
        ticker=FixedTicker(ticks=right),
        major_label_overrides={
            place: f"{human_bytes(copy.kept_bytes)} for {len(copy.holders)}"
            for place, copy in zip(right, copies, strict=True)
        },
        major_label_text_font_size="11px",
    )
    made.add_layout(axis, "right")
    for each in (*made.yaxis, axis):
        each.axis_line_color = each.major_tick_line_color = None
    return made


def _drawn(copies: Sequence[Copy]) -> list[Copy]:
    """Those with most to save; by process where there are too many buffers."""
    beyond = [copy.mapped_bytes - copy.kept_bytes for copy in copies[:_COPIES]]
    worth = beyond[0] // _LEAST_PART
    chosen = [copy for copy, size in zip(copies, beyond, strict=False) if size >= worth]
    if len(_rows(chosen)) <= _ROWS:
        return chosen
    merged = []
    for copy in chosen:
        held: dict[int, int] = {}
        for holder in copy.holders:
            held[holder.pid] = held.get(holder.pid, 0) + holder.nbytes
        holders = tuple(Holder(pid, "", nbytes) for pid, nbytes in list(held.items())[:_ROWS])
        merged.append(Copy(copy.kept_bytes, copy.mapped_bytes, holders))
    return merged


def _rows(copies: Sequence[Copy]) -> dict[tuple[int, str], int]:
    """(pid, buffer) of all who hold them, and how much of each that is."""
    rows: dict[tuple[int, str], int] = {}
    for copy in copies:
        for holder in copy.holders:
            key = holder.pid, holder.buffer
            rows[key] = rows.get(key, 0) + holder.nbytes
    return dict(sorted(rows.items(), key=lambda item: (item[0][0], -item[1])))


def _places(rows: dict[tuple[int, str], int]) -> dict[tuple[int, str], float]:
    """From top to bottom, with a gap between processes."""
    places: dict[tuple[int, str], float] = {}
    at, last = 0.0, None
    for pid, buffer in rows:
        if last is not None:
            at += 1.0 if pid == last else 1.5
        places[pid, buffer], last = at, pid
    return places


def _ribbon_data(
    copies: list[Copy],
    places: dict[tuple[int, str], float],
    bottom: float,
    largest: int,
    colours: dict[int, str],
) -> dict[str, list[Any]]:
    import numpy as np

    # The curve of a ribbon's sides is level at both of its ends.
    x = np.linspace(0, 1, 24)
    ease = x * x * (3 - 2 * x)
    slot = bottom / len(copies)
    used = dict.fromkeys(places, 0.0)
    rows = _rows(copies)
    data: dict[str, list[Any]] = {key: [] for key in ("xs", "ys", "colour", "who", "held", "kept")}
    for number, copy in enumerate(copies):
        middle = slot * (number + 0.5) - 0.3
        thick = min(slot * 0.8, max(0.12, 2.5 * copy.kept_bytes / largest))
        for holder in copy.holders:
            key = holder.pid, holder.buffer
            whole = max(0.1, 0.86 * rows[key] / largest)
            top = places[key] - whole / 2 + used[key]
            width = whole * holder.nbytes / rows[key]
            used[key] += width
            upper = top + (middle - thick / 2 - top) * ease
            lower = top + width + (middle + thick / 2 - top - width) * ease
            data["xs"].append([*x.tolist(), *x[::-1].tolist()])
            data["ys"].append([*upper.tolist(), *lower[::-1].tolist()])
            data["colour"].append(colours[holder.pid])
            data["who"].append(f"{holder.pid} {holder.buffer}".strip())
            data["held"].append(human_bytes(holder.nbytes))
            data["kept"].append(f"{human_bytes(copy.kept_bytes)} kept once")
    return data


def _short(name: str) -> str:
    """Names of layers differ in the middle, and begin and end alike: more of the beginning."""
    return name if len(name) <= 16 else f"{name[:9]}…{name[-6:]}"


def strengths(portrait: Portrait) -> figure:
    """Processes by processes: how much each pair has in common."""
    from bokeh.models import ColumnDataSource, HoverTool

    common: dict[tuple[int, int], int] = {}
    for tie in portrait.ties:
        if tie.a.pid != tie.b.pid:
            for key in ((tie.a.pid, tie.b.pid), (tie.b.pid, tie.a.pid)):
                common[key] = common.get(key, 0) + tie.nbytes
    pids = [str(pid) for pid in sorted({pid for pair in common for pid in pair})]
    largest = max(common.values())
    data = {
        "a": [str(a) for a, _ in common],
        "b": [str(b) for _, b in common],
        "strength": [0.12 + 0.88 * nbytes / largest for nbytes in common.values()],
        "nbytes": list(common.values()),
        "text": [human_bytes(nbytes) for nbytes in common.values()],
        "short": [f"{nbytes / _MIB:.0f}" for nbytes in common.values()],
    }
    made = _figure(60 + 26 * len(pids), x_range=pids, y_range=pids[::-1], x_axis_location="above")
    source = ColumnDataSource(data, name="strengths")
    cells = made.rect(
        "a", "b", 0.94, 0.9, source=source, fill_color=KINDS["shared"][0],
        fill_alpha="strength", line_color=None,
    )  # fmt: skip
    if len(pids) <= 10:
        made.text(
            "a", "b", "short", source=source, text_align="center", text_baseline="middle",
            text_font_size="10px", text_color="#ffffff",
        )  # fmt: skip
    made.add_tools(HoverTool(renderers=[cells], tooltips=[("", "@a and @b: @text")]))
    made.grid.visible = False
    made.xaxis.major_label_orientation = 0.9
    for axis in made.axis:
        axis.axis_line_color = axis.major_tick_line_color = None
    return made


# ---- over time ----------------------------------------------------------------------------------


def over_time(portrait: Portrait) -> figure:
    """PSS of each process on that of the others, what is saved on top of all, RSS as a line."""
    from bokeh.models import ColumnDataSource, Legend

    line = portrait.timeline
    moments = [_local(moment) for moment in line.times]
    data: dict[str, Any] = {"time": moments}
    names, labels = [], []
    for each in line.lines[: len(PALETTE)]:
        data[str(each.pid)] = [value / _MIB for value in each.pss]
        names.append(str(each.pid))
        labels.append(str(each.pid))
    rest = line.lines[len(PALETTE) :]
    if rest:
        data["rest"] = [sum(one) / _MIB for one in zip(*(each.pss for each in rest), strict=True)]
        names.append("rest")
        labels.append(f"{len(rest)} more")
    data["saved"] = [sum(one) / _MIB for one in zip(*(e.saved for e in line.lines), strict=True)]
    data["rss"] = [sum(one) / _MIB for one in zip(*(e.rss for e in line.lines), strict=True)]
    colours = _colours(portrait)
    fills = [colours.get(int(name), "#999999") if name != "rest" else "#999999" for name in names]
    made = _figure(340, x_axis_type="datetime", y_axis_label="MiB")
    source = ColumnDataSource(data, name="over_time")
    areas = made.varea_stack(
        [*names, "saved"], x="time", source=source, color=[*fills, KINDS["shared"][0]],
        fill_alpha=[0.75] * len(names) + [0.15],
    )  # fmt: skip
    areas[-1].glyph.hatch_pattern = "right_diagonal_line"
    areas[-1].glyph.hatch_color = KINDS["shared"][0]
    areas[-1].glyph.hatch_alpha = 0.8
    rss = made.line("time", "rss", source=source, color="#888888", line_dash="dashed")
    items = [("saved", [areas[-1]]), ("RSS", [rss])]
    items += [(label, [area]) for label, area in zip(labels, areas, strict=False)]
    legend = Legend(
        items=items, orientation="horizontal", background_fill_alpha=0, border_line_alpha=0,
        label_text_font_size="11px", spacing=8, padding=2, ncols=4, glyph_width=14,
    )  # fmt: skip
    legend.location = "left"
    made.add_layout(legend, "below")
    made.y_range.start = 0
    made.x_range.range_padding = 0
    made.xgrid.visible = False
    made.ygrid.grid_line_alpha = 0.4
    return made


def _local(moment: float) -> float:
    """Milliseconds of the clock on the wall, as charts have no time zones."""
    return (moment + time.localtime(moment).tm_gmtoff) * 1000


# ---- the map of memory --------------------------------------------------------------------------


def memory_maps(portrait: Portrait) -> dict[str, figure]:
    """For each process its strips, "map-PID"."""
    made = {}
    for process in portrait.processes:
        mine = [strip for strip in portrait.strips if strip.pid == process.pid]
        if mine:
            made[f"map-{process.pid}"] = _memory_map(mine)
    return made


def _memory_map(strips: list[Any]) -> figure:
    from bokeh.models import (
        BoxZoomTool,
        ColumnDataSource,
        HoverTool,
        PanTool,
        ResetTool,
        WheelZoomTool,
    )

    labels = _labels(strips)
    data: dict[str, list[Any]] = {key: [] for key in ("y", "left", "right", "colour", "text")}
    for label, strip in zip(labels, strips, strict=True):
        for offset, nbytes, kind in strip.cells:
            colour, words = KINDS[kind]
            data["y"].append(label)
            data["left"].append(offset / _MIB)
            data["right"].append((offset + nbytes) / _MIB)
            data["colour"].append(colour)
            data["text"].append(f"{human_bytes(nbytes)} {words}")
    made = _figure(
        46 + 20 * len(strips), y_range=labels[::-1],
        x_range=(0, max(strip.nbytes for strip in strips) / _MIB), x_axis_label="MiB",
    )  # fmt: skip
    cells = made.hbar(
        y="y", left="left", right="right", height=0.74, color="colour", line_color=None,
        source=ColumnDataSource(data, name="map"),
    )  # fmt: skip
    made.tools = [
        WheelZoomTool(dimensions="width", modifiers={"ctrl": True}),
        BoxZoomTool(dimensions="width"),
        PanTool(dimensions="width"),
        ResetTool(),
        HoverTool(renderers=[cells], tooltips=[("", "@y: @text")]),
    ]
    made.toolbar.active_drag = made.tools[1]
    made.toolbar_location = "above"
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.grid.visible = False
    made.yaxis.axis_line_color = made.yaxis.major_tick_line_color = None
    return made


def _labels(strips: list[Any]) -> list[str]:
    """Names that differ from each other."""
    seen: dict[str, int] = {}
    labels = []
    for strip in strips:
        name = _short(strip.name)
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return labels
