"""Turn the JSON of a benchmark run into the table of docs/performance.md.

``pytest bench --benchmark-json=bench.json && python -m bench.report bench.json``. Several files are
read one after the other, the later ones winning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rows import ROWS, Row

_BEGIN = "<!-- figures -->"
_END = "<!-- end of figures -->"

# Figures by group, side and metric.
Figures = dict[tuple[str, str, str], list[float]]


def figures(run: Mapping[str, Any]) -> Figures:
    """All rounds of every measurement in a run."""
    return {
        (entry["group"], entry["extra_info"]["side"], metric): values
        for entry in run["benchmarks"]
        for metric, values in entry["extra_info"]["metrics"].items()
    }


def show(value: float, unit: str) -> str:
    """A figure with three digits and a fitting unit."""
    if unit == "%":
        return f"{100 * value:.3g} %"
    if unit != "s":
        return f"{value:.0f} {unit}".rstrip() if value >= 100 else f"{value:.3g} {unit}".rstrip()
    for factor, name in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name}"
    return f"{value * 1e9:.3g} ns"


def _ratio(value: float) -> str:
    return f"1/{1 / value:.3g}" if 0 < value < 0.8 else f"{value:.3g}"


def _picked(row: Row, side: str | None, metric: str, found: Figures) -> float | None:
    values = found.get((row.group, side or "", metric))
    if not values:
        return None
    return max(values) if row.pick == "max" else statistics.median(values)


def _goal(row: Row) -> str:
    parts = []
    if row.ratio is not None:
        parts.append(f"ratio {_ratio(row.ratio)}")
    if row.difference is not None:
        parts.append(f"{show(row.difference, row.unit)} more")
    if row.value is not None:
        parts.append(show(row.value, row.unit))
    return " and ".join(parts) or "-"


def _met(row: Row, ours: float, theirs: float | None) -> str:
    if row.ratio is None and row.difference is None and row.value is None:
        return "-"
    if theirs is None and (row.ratio is not None or row.difference is not None):
        return "?"
    reached = (
        row.ratio is None or ours <= row.ratio * (theirs or 0),
        row.difference is None or ours - (theirs or 0) <= row.difference,
        row.value is None or ours <= row.value,
    )
    return "yes" if all(reached) else "no"


def line(row: Row, found: Figures) -> str | None:
    """One line of the table, or None when the row was not measured."""
    ours = _picked(row, row.ours, row.metric, found)
    if ours is None:
        return None
    other = (row.ours, row.beside) if row.beside else (row.theirs, row.metric)
    theirs = _picked(row, *other, found)
    ratio = ours / theirs if theirs else None
    cells = (
        row.title,
        show(ours, row.unit),
        f"{show(theirs, row.unit)} ({row.beside or row.theirs})" if theirs is not None else "-",
        _ratio(ratio) if ratio is not None else "-",
        _goal(row),
        _met(row, ours, theirs),
        f"`-k {row.group}`",
    )
    return f"| {' | '.join(cells)} |"


def table(found: Figures) -> str:
    """The whole table, in Markdown."""
    head = (
        "what",
        "ksmpy",
        "beside",
        "ratio",
        "goal (at most)",
        "met",
        "`pytest bench ...`",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [text for row in ROWS if (text := line(row, found))])


def machine(run: Mapping[str, Any]) -> str:
    """One sentence about where the figures were taken."""
    info = run["machine_info"]["ksmpy"]
    text = (
        f"{info['processor']}, {info['processors']} processors, {info['memory']} of memory,"
        f" Linux {info['kernel']}, huge pages `{info['huge_pages']}`,"
        f" Python {info['python']}, numpy {info['numpy']}, ksmpy {info['version']};"
        f" {run['datetime'][:10]}."
    )
    if info["load"] > 1.5 * info["processors"]:
        text += (
            f" The machine was busy with other programs (load average {info['load']:.1f}): wall"
            " times and stalls say little, CPU times are sound."
        )
    if info["scale"] != 1:
        text += f" All sizes times {info['scale']:g}."
    return text


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the two markers of a page."""
    before, begin, rest = page.read_text().partition(_BEGIN)
    _old, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{page} lacks the line {_BEGIN if not begin else _END}")
    page.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


def main(arguments: Sequence[str]) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description="Print a run as a table."
    )
    parser.add_argument("json", nargs="+", type=Path, help="from --benchmark-json")
    parser.add_argument("--into", type=Path, help="a page whose figures to replace")
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text()) for path in options.json]
    found: Figures = {}
    for run in runs:
        found |= figures(run)
    text = f"{machine(runs[-1])}\n\n{table(found)}"
    print(text)
    if options.into:
        put_into(options.into, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
