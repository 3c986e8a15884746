"""A report as one page of HTML: nothing is fetched, on a phone and on paper it can be read."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from ksmpy.store.store import MORE_ROOM
from ksmpy.text import human_bytes
from ksmpy.watch.charts import KINDS, PALETTE, charts
from ksmpy.watch.portrait import Portrait, ProcessFigures

__all__ = ["page"]

# How many maps of memory are unfolded when the page is opened.
_OPEN = 2
_LISTED_TIES = 40


def page(portrait: Portrait) -> str:
    """The page. ImportError without Bokeh."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    script, places = components(charts(portrait))
    data = json.dumps(dataclasses.asdict(portrait), separators=(",", ":")).replace("<", "\\u003c")
    assets = files("ksmpy.watch.assets")
    body = "".join(
        (
            _head(portrait),
            _processes(portrait),
            _sharing(portrait, places),
            _time(portrait, places),
            _maps(portrait, places),
            _left_out(portrait),
            _cost(portrait),
            _notes(portrait),
        )
    )
    return _fill(
        (assets / "report.html").read_text(encoding="utf-8"),
        {
            "/*style*/": (assets / "report.css").read_text(encoding="utf-8"),
            "<!--body-->": body,
            "<!--data-->": f'<script type="application/json" id="data">{data}</script>',
            "<!--library-->": Resources(mode="inline", components=["bokeh"]).render_js(),
            "<!--charts-->": script,
            "/*script*/": (assets / "report.js").read_text(encoding="utf-8"),
        },
    )


def _fill(template: str, parts: dict[str, str]) -> str:
    """All at once: what one part holds (the name of a buffer) may look like the mark of another."""
    return re.sub("|".join(map(re.escape, parts)), lambda mark: parts[mark[0]], template)


# ---- words and figures --------------------------------------------------------------------------


def _bytes(path: str, value: int) -> str:
    """A figure, marked with what it is in the data."""
    return f'<span class="n" data-bytes="{path}">{human_bytes(value)}</span>'


def _count(path: str, value: int) -> str:
    return f'<span class="n" data-count="{path}">{value}</span>'


def _when(moment: float, now: float) -> str:
    """A time of day, with the date if that is another one than now's."""
    there, here = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M:%S" if there[:3] == here[:3] else "%Y-%m-%d %H:%M", there)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' * (count != 1)}"
    return f"{seconds:.0f} s"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """Cells are HTML; those from the column `numbers` on are flush right."""
    heads = "".join(
        f"<th{' class=r' if index >= numbers else ''}>{name}</th>"
        for index, name in enumerate(columns)
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=r' if index >= numbers else ''}>{cell}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{heads}</tr></thead>{lines}</table></div>"


def _section(title: str, body: str, lead: str = "") -> str:
    first = f"<p class=lead>{lead}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{first}{body}</section>"


def _name(process: ProcessFigures) -> str:
    return f"{process.pid}&nbsp;<small>{escape(process.program or process.command)}</small>"


# ---- the parts ----------------------------------------------------------------------------------


def _head(portrait: Portrait) -> str:
    totals, count = portrait.totals, len(portrait.processes)
    since = ""
    if totals.since is not None:
        since = (
            f" since {_when(totals.since, portrait.taken)} ({_ago(portrait.taken - totals.since)})"
        )
    part = 100 * totals.saved_bytes / max(totals.would_be_bytes, 1)
    who = "This process pays" if count == 1 else f"These {count} processes pay"
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(portrait.taken))
    return (
        f"<header><p class=stamp>ksmpy report, {moment}</p>"
        f"<h1>{_bytes('totals.saved_bytes', totals.saved_bytes)} saved</h1>"
        f"<p class=lead>now{since}. {who} for"
        f" <b>{_bytes('totals.paid_bytes', totals.paid_bytes)}</b> of memory;"
        f" without ksmpy it would be"
        f" <b>{_bytes('totals.would_be_bytes', totals.would_be_bytes)}</b>.</p>"
        f'<div class=bar role=img aria-label="{part:.0f} % saved">'
        f'<i class=paid style="width:{100 - part:.2f}%"></i>'
        f'<i class=saved style="width:{part:.2f}%"></i></div>'
        f"<p class=key><i class=paid></i>paid for <i class=saved></i>saved, {part:.0f} %</p>"
        f"{_largest(portrait)}</header>"
    )


def _largest(portrait: Portrait) -> str:
    """What is shared most, in words."""
    told = []
    for number, copy in enumerate(portrait.copies[:3]):
        names = sorted({holder.buffer for holder in copy.holders})
        processes = len({holder.pid for holder in copy.holders})
        whose = f"{processes} processes" if processes > 1 else "one process"
        what = ", ".join(map(escape, names[:3])) + (" and others" if len(names) > 3 else "")
        kept = _bytes(f"copies.{number}.kept_bytes", copy.kept_bytes)
        mapped = _bytes(f"copies.{number}.mapped_bytes", copy.mapped_bytes)
        has = "that have" if processes > 1 else "that has"
        told.append(f"<li>{kept} of <b>{what}</b>, kept once for {whose} {has} {mapped} of it</li>")
    return f"<ul>{''.join(told)}</ul>" if told else ""


def _processes(portrait: Portrait) -> str:
    rows = []
    for number, each in enumerate(portrait.processes):
        at = f"processes.{number}"
        dot = f'<i class=dot style="background:{PALETTE[number % len(PALETTE)]}"></i>'
        rows.append(
            (
                f'<span class=who>{dot}{_name(each)}</span>',
                *(
                    _bytes(f"{at}.{name}", getattr(each, name))
                    for name in (
                        "saved_bytes", "on_frames_bytes", "written_bytes",
                        "pss_bytes", "rss_bytes", "kernel_mapped_bytes", "kernel_copied_bytes",
                    )
                ),
            )
        )  # fmt: skip
    totals = portrait.totals
    rows.append(
        (
            "all",
            *(
                f"<b>{_bytes(f'totals.{name}', getattr(totals, name))}</b>"
                for name in (
                    "saved_bytes", "on_frames_bytes", "written_bytes",
                    "pss_bytes", "rss_bytes", "kernel_mapped_bytes", "kernel_copied_bytes",
                )
            ),
        )
    )  # fmt: skip
    table = _table(
        (
            "process", "saved", "merged", "written since",
            "<em>kernel:</em> PSS", "<em>kernel:</em> RSS", "<em>kernel:</em> mapped",
            "<em>kernel:</em> copied",
        ),
        rows,
    )  # fmt: skip
    note = (
        f"<p>{_bytes('totals.on_frames_bytes', totals.on_frames_bytes)} of memory lie on"
        f" {_bytes('totals.frames_bytes', totals.frames_bytes)} of frames. That, without the"
        f" {_bytes('totals.by_fork_bytes', totals.by_fork_bytes)} that came by forks, with"
        f" {_bytes('totals.zero_bytes', totals.zero_bytes)} of zeros and less the"
        f" {_bytes('totals.overhead_bytes', totals.overhead_bytes)} that stores, tables and ksmpy"
        " itself take, is what is saved. The kernel says the same: private mappings of"
        f" {_bytes('totals.kernel_mapped_bytes', totals.kernel_mapped_bytes)}, of which"
        f" {_bytes('totals.kernel_copied_bytes', totals.kernel_copied_bytes)} were copied since,"
        f" show files that take {_bytes('totals.kept_bytes', totals.kept_bytes)}. RSS counts a"
        " shared page once for each who has it, so it does not fall; PSS does.</p>"
    )
    return _section("Whose memory is whose", table + note)


def _sharing(portrait: Portrait, places: dict[str, str]) -> str:
    if not portrait.copies:
        return _section("Who shares with whom", "<p>Nobody, at the moment.</p>")
    ties = [
        (
            f"{tie.a.pid} {escape(tie.a.buffer)}",
            f"{tie.b.pid} {escape(tie.b.buffer)}" if tie.a != tie.b else "itself",
            _bytes(f"ties.{number}.nbytes", tie.nbytes),
        )
        for number, tie in enumerate(portrait.ties[:_LISTED_TIES])
    ]
    more = len(portrait.ties) - len(ties)
    table = _table(("", "and", "in common"), ties, 2) + (f"<p>and {more} more</p>" if more else "")
    body = places.get("ribbons", "")
    if "strengths" in places:
        body += f"<h3>Each pair of processes, in MiB</h3>{places['strengths']}"
    body += (
        f"<details class=long><summary>The {len(ties)} strongest ties</summary>{table}</details>"
    )
    return _section(
        "Who shares with whom",
        body,
        "Left: buffers, by process. Right: what is kept of them, once, and for how many.",
    )


def _time(portrait: Portrait, places: dict[str, str]) -> str:
    silent = [
        str(each.pid)
        for each in portrait.processes
        if each.pid not in {line.pid for line in portrait.timeline.lines}
    ]
    body = places.get("over_time", "<p>No engine has noted anything yet.</p>")
    if silent:
        body += f"<p>No history is kept by {', '.join(silent)}.</p>"
    return _section(
        "Over time",
        body,
        "Filled: PSS of each process. Hatched: what would come on top of it without ksmpy.",
    )


def _maps(portrait: Portrait, places: dict[str, str]) -> str:
    present = {kind for strip in portrait.strips for _, _, kind in strip.cells}
    key = "".join(
        f'<span><i style="background:{colour}"></i>{words}</span>'
        for kind, (colour, words) in KINDS.items()
        if kind in present
    )
    maps: list[str] = []
    for number, each in enumerate(portrait.processes):
        if f"map-{each.pid}" not in places:
            continue
        kinds = ", ".join(
            f"{_bytes(f'processes.{number}.kinds.{kind}', each.kinds[kind])} {words}"
            for kind, (_, words) in KINDS.items()
            if each.kinds[kind] and kind != "absent"
        )
        state = " open" if len(maps) < _OPEN else ""
        maps.append(
            f"<details class=map{state}><summary>{_name(each)}</summary>"
            f"<p>{kinds}</p>{places[f'map-{each.pid}']}</details>"
        )
    return _section(
        "Map of memory",
        f"<p class=key>{key}</p>{''.join(maps)}",
        "Of each process the largest pieces, from their first byte to their last. Drag over a part"
        " to look closer.",
    )


def _left_out(portrait: Portrait) -> str:
    full = "".join(
        f"<p>The store <b>{escape(store.name)}</b> is full: what is in it is shared still, what"
        f" needs a new frame is left apart. The way out: {escape(MORE_ROOM)}.</p>"
        for store in portrait.stores
        if store.full
    )
    if not portrait.left_out:
        return _section("Left out", full or "<p>Nothing to speak of.</p>")
    rows = []
    for number, each in enumerate(portrait.left_out):
        at = f"left_out.{number}"
        size = (
            _bytes(f"{at}.nbytes", each.nbytes)
            if each.nbytes is not None
            else _count(f"{at}.times", each.times or 0) + " times"
        )
        whose = f"{len(each.pids)} processes" if len(each.pids) > 1 else str(each.pids[0])
        rows.append((size, escape(each.reason), escape(each.way_out), whose))
    table = _table(("how much", "why", "the way out", "of"), rows, 9)
    return _section("What was left out, and why", full + table)


def _cost(portrait: Portrait) -> str:
    rows = []
    for number, each in enumerate(portrait.processes):
        at, age = f"processes.{number}", max(portrait.taken - each.started, 1e-9)
        cpu = "-"
        if each.scan_seconds is not None:
            cpu = (
                f"{each.scan_seconds:.1f} s <small>({100 * each.scan_seconds / age:.1f} %)</small>"
            )
        rows.append(
            (
                _name(each),
                cpu,
                _bytes(f"{at}.package_bytes", each.package_bytes) if each.package_bytes else "-",
                _count(f"{at}.mappings", each.mappings)
                + f" <small>of {each.mappings_limit}</small>",
                _count(f"{at}.merged_mappings", each.merged_mappings),
                escape(f"{each.freeze}, {each.tracking}" if each.freeze else "-"),
            )
        )
    table = _table(
        (
            "process", "processor time of scans", "ksmpy itself", "mappings", "of frames",
            "freeze, tracking",
        ),
        rows,
    )  # fmt: skip
    stores = _table(
        ("store", "processes", "takes"),
        (
            (
                escape(store.name),
                str(len(store.pids)),
                _bytes(f"stores.{number}.kept_bytes", store.kept_bytes),
            )
            for number, store in enumerate(portrait.stores)
        ),
    )
    overhead = _bytes("totals.overhead_bytes", portrait.totals.overhead_bytes)
    return _section(
        "What it costs",
        f"{table}{stores}<p>Tables, ksmpy itself, and frames that are in use by none of these:"
        f" {overhead}."
        " Percent are of one processor since the process began.</p>",
    )


def _notes(portrait: Portrait) -> str:
    unseen = "".join(f"<p>Not looked at: {escape(each)}</p>" for each in portrait.unseen)
    return (
        f"<footer>{unseen}<p>Read from outside in {portrait.seconds:.1f} s, while the processes"
        " went on: /proc/PID/smaps, smaps_rollup, pagemap, and what engines note of themselves (at"
        " most once a second, and a thousandth of a processor). ksmpy"
        f" {escape(portrait.version)}.</p></footer>"
    )
