"""How results look: rich tables on a terminal that has rich, plain text everywhere else, JSON on
demand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from ksmpy.text import human_bytes

__all__ = ["fancy", "human_bytes", "print_json", "progress", "table"]

Cell = str | int | float | None

_NUMBER = re.compile(r"-|-?[0-9.]+( [KMGT]?i?B)?")


def fancy(stream: TextIO) -> bool:
    """Whether colours and moving bars may go to this stream."""
    return (
        stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and importlib.util.find_spec("rich") is not None
    )


def _plain_value(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def print_json(value: object) -> None:
    """One JSON document on stdout; dataclasses become objects, all numbers stay in bytes, pages
    and seconds.
    """
    print(json.dumps(value, indent=2, default=_plain_value))


def _text(cell: Cell) -> str:
    return "-" if cell is None else str(cell)


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = [title] if title else []
    for line in [columns, *rows]:
        cells = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table on stdout: numbers flush right, words flush left."""
    texts = [[_text(cell) for cell in row] for row in rows]
    right = [all(_NUMBER.fullmatch(text[index]) for text in texts) for index in range(len(columns))]
    if not fancy(sys.stdout):
        print(_plain_table(title, columns, texts, right))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left")
    for name, flush in zip(columns, right, strict=True):
        drawn.add_column(name, justify="right" if flush else "left")
    for row in texts:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


Update = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Update]:
    """Show how far long work is, on stderr: gives a function to be called with (what, done,
    total).

    A moving bar on a terminal; elsewhere a line as each kind of work begins and ends, so that a
    log stays readable.
    """
    if quiet:
        yield lambda _what, _done, _total: None
    elif fancy(sys.stderr):
        with _bars() as update:
            yield update
    else:
        yield _lines()


@contextlib.contextmanager
def _bars() -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def _lines() -> Update:
    shown: tuple[str, bool] | None = None

    def update(what: str, done: int, total: int) -> None:
        nonlocal shown
        state = (what, done >= total)
        if state != shown:
            shown = state
            print(f"{what}: {'done' if done >= total else '...'}", file=sys.stderr, flush=True)

    return update
