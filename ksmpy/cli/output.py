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
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from ksmpy.text import human_bytes

__all__ = ["fancy", "human_bytes", "print_json", "progress", "table", "terminal"]

Cell = str | int | float | None

_NUMBER = re.compile(r"-|-?[0-9.]+( [KMGT]?i?B)?")


def terminal(stream: TextIO | None) -> bool:
    """Whether it is one. A stream is None where it was closed when the interpreter began."""
    return stream is not None and stream.isatty()


def fancy(stream: TextIO | None) -> bool:
    """Whether colours and moving bars may go to this stream."""
    return (
        terminal(stream)
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
def progress(*, quiet: bool = False, keep: bool = False) -> Iterator[Update]:
    """Show how far long work is, on stderr: gives a function to be called with (what, done,
    total).

    A moving bar on a terminal, for each kind of work; elsewhere a line for each time that it is
    done. `keep`: the bars stay there in the end.
    """
    if quiet or sys.stderr is None:
        yield lambda _what, _done, _total: None
    elif fancy(sys.stderr):
        with _bars(keep) as update:
            yield update
    else:
        lines = _Lines()
        try:
            yield lines.update
        finally:
            lines.close()


@contextlib.contextmanager
def _bars(keep: bool) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=not keep) as bars:
        tasks: dict[str, TaskID] = {}
        over: set[str] = set()

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            elif what in over and done < total:  # the same kind of work has begun again
                bars.reset(tasks[what])
                over.discard(what)
            if done >= total:
                over.add(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update


class _Lines:
    """Without a terminal: what begins, and on the same line how long it took."""

    def __init__(self) -> None:
        self._open = ""
        self._since = 0.0

    def update(self, what: str, done: int, total: int) -> None:
        if what != self._open:
            self.close()
            if done >= total:  # it was told before, or was over at once
                return
            self._open, self._since = what, time.monotonic()
            print(f"{what} ...", end="", file=sys.stderr, flush=True)
        elif done >= total:
            self._open = ""
            seconds = time.monotonic() - self._since
            print(f" done in {seconds:.1f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line of what was left unfinished."""
        if self._open:
            self._open = ""
            print(file=sys.stderr, flush=True)
