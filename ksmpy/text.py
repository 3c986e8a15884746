"""How figures are put into words, under print() and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Row", "code_html", "human_bytes", "shown", "table_html", "table_text"]

Row = tuple[str, str]


def human_bytes(count: float) -> str:
    """A byte count with a binary unit, as in '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def shown(name: str) -> str:
    """A name as it can be printed on one line, whatever bytes it has."""
    return name if name.isprintable() else ascii(name)[1:-1]


def table_text(rows: Sequence[Row]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def table_html(title: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A small HTML table with its title above and the notes below it."""
    from html import escape

    cells = (
        f"<tr><th style='text-align:left'>{escape(first)}</th>"
        + "".join(f"<td style='text-align:left'>{escape(each)}</td>" for each in rest)
        + "</tr>"
        for first, *rest in rows
    )
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    caption = f"<caption style='text-align:left'>{escape(title)}</caption>"
    return f"<table>{caption}<tbody>{''.join(cells)}</tbody></table>{below}"


def code_html(text: str) -> str:
    """A text as HTML, in the letters of a program."""
    from html import escape

    return f"<code>{escape(text)}</code>"
