"""What `ksmpy top` shows: what was seen, how it is sorted, and the lines of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ksmpy.cli.output import human_bytes
from ksmpy.errors import StoreError
from ksmpy.text import shown
from ksmpy.watch.buffers import Buffer, buffers
from ksmpy.watch.observe import Observation
from ksmpy.watch.past import pasts
from ksmpy.watch.savings import measured, savings
from ksmpy.watch.stores import NamedStore, named_stores
from ksmpy.watch.subjects import connected, refuse
from ksmpy.watch.watcher import Watcher

__all__ = ["KEYS", "Board", "Line", "Look", "SORTS", "spark", "take_a_look"]

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.:-=+*#"
_KEPT = 240  # looks that are remembered, for the line of bars
_BUFFERS = 12  # buffers of a process that are listed; of the rest only the number
_STORES = 3

#: What can be sorted by, by its key; the heads of the columns.
SORTS: dict[str, tuple[str, Callable[[Observation], tuple[object, ...]]]] = {
    "s": ("saved", lambda seen: (-seen.saved_bytes, seen.pid)),
    "m": ("merged", lambda seen: (-seen.merged_bytes, seen.pid)),
    "w": ("written", lambda seen: (-seen.written_bytes, seen.pid)),
    "p": ("PSS", lambda seen: (-seen.pss_bytes, seen.pid)),
    "v": ("maps", lambda seen: (-seen.vmas, seen.pid)),
    "n": ("command", lambda seen: (seen.command, seen.pid)),
    "i": ("PID", lambda seen: (seen.pid,)),
}

KEYS = "s m w p v n i sort  ↑↓ choose  enter buffers  q quit"

Line = tuple[str, str]
"""Text, and how it looks: "title", "store", "head", "row", "chosen", "buffer", "keys" or "note"."""


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    moment: float
    processes: list[Observation]
    stores: list[NamedStore]
    buffers: dict[int, list[Buffer]]
    """Of the processes that are shown in full."""
    saved_bytes: int
    """By all processes that are shown, together."""


def take_a_look(pid: int | None, expanded: set[int], watcher: Watcher | None = None) -> Look:
    """At all processes and stores of this user, or at one process. CommandError when that one is
    not there, or has merged nothing. `watcher`: remembers what earlier looks have seen.

    What each saves is counted by page, as in a report.
    """
    found = (watcher or Watcher()).look(expanded)
    if pid:
        stores = {each.pid: each.stores for each in found}
        if pid not in stores:
            refuse(pid)
        among = connected(stores, {pid})
        found = [each for each in found if each.pid in among]
    together = savings(found)
    shown_ones = [each for each in found if pid in (None, each.pid)]
    try:
        named = [] if pid else named_stores()
    except StoreError:
        named = []
    return Look(
        time.time(),
        [each.seen for each in shown_ones],
        measured(named, together),
        {each.pid: buffers(each) for each in shown_ones if each.pid in expanded},
        sum(each.seen.saved_bytes for each in shown_ones) if pid else together.saved_bytes,
    )


def spark(values: list[int], width: int, bars: str = _BARS) -> str:
    """A line of bars from 0 to the largest value; the newest at the right."""
    values = values[-width:]
    most = max(values, default=0)
    text = "".join(
        bars[min(len(bars) - 1, value * len(bars) // (most + 1))] if most else bars[0]
        for value in values
    )
    return text.rjust(width)


@dataclass
class Board:
    """The state of the screen."""

    look: Look
    ascii: bool = False
    order: str = "s"
    chosen: int = 0
    """The process with the cursor, by its pid; 0: the first one."""
    expanded: set[int] = field(default_factory=set)
    total: list[int] = field(default_factory=list)
    each: dict[int, list[int]] = field(default_factory=dict)
    """What was saved at each look, in all and by process."""
    top: int = 0
    """The first line of the list that is shown."""

    def __post_init__(self) -> None:
        self.take(self.look)

    def take(self, look: Look) -> None:
        """Show what was seen now."""
        self.look = look
        self.total = [*self.total, look.saved_bytes][-_KEPT:]
        before, self.each = self.each, {}
        for seen in look.processes:
            earlier = before.get(seen.pid)
            values = _noted(seen.pid) if earlier is None else earlier
            self.each[seen.pid] = [*values, seen.saved_bytes][-_KEPT:]

    def press(self, key: str) -> bool:
        """Act on a key; False: that was the last one."""
        if key in ("q", "escape"):
            return False
        rows = [seen.pid for seen in self._sorted()]
        at = rows.index(self.chosen) if self.chosen in rows else 0
        if key in SORTS:
            self.order = key
        elif key in ("down", "j") and rows:
            self.chosen = rows[min(at + 1, len(rows) - 1)]
        elif key in ("up", "k") and rows:
            self.chosen = rows[max(at - 1, 0)]
        elif key in ("enter", " ", "right", "left") and rows:
            self.chosen = rows[at]
            shut = key == "left" or (key != "right" and self.chosen in self.expanded)
            (self.expanded.discard if shut else self.expanded.add)(self.chosen)
        return True

    def _sorted(self) -> list[Observation]:
        return sorted(self.look.processes, key=SORTS[self.order][1])

    # ---- lines ------------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Line]:
        """At most `height` lines of at most `width` letters."""
        head = [self._title(width), *self._stores(), ("", "note"), self._columns(width)]
        body, cursor = self._body(width)
        room = max(1, height - len(head) - 1)
        # The list is scrolled so that the cursor stays in sight.
        self.top = max(0, min(self.top, cursor, len(body) - room))
        self.top = max(self.top, min(cursor, cursor - room + 1))
        shown_lines = [*head, *body[self.top : self.top + room]]
        shown_lines += [("", "note")] * (height - 1 - len(shown_lines))
        keys = KEYS.replace("↑↓", "j k") if self.ascii else KEYS
        return [(text[:width], style) for text, style in (*shown_lines, (" " + keys, "keys"))]

    def _title(self, width: int) -> Line:
        seen = self.look.processes
        clock = time.strftime("%H:%M:%S", time.localtime(self.look.moment))
        left = f" ksmpy top  {clock}   saved {human_bytes(self.total[-1])} "
        pss = human_bytes(sum(each.pss_bytes for each in seen))
        count = f"{len(seen)} process{'es' * (len(seen) != 1)}"
        right = f"  PSS {pss}   {count} "
        room = max(0, width - len(left) - len(right))
        middle = spark(self.total, min(room, 40), self._bars()).ljust(room)
        return (left + middle + right).ljust(width), "title"

    def _stores(self) -> list[Line]:
        found = []
        for store in sorted(self.look.stores, key=lambda store: -store.kept_bytes)[:_STORES]:
            what = store.error
            if store.stats is not None:
                what = (
                    f"{len(store.processes)} processes, saves"
                    f" {human_bytes(store.stats.saved_bytes)}, takes"
                    f" {human_bytes(store.kept_bytes)}"
                )
            idle = ", full" if store.full else ""
            idle += ", nobody uses it (ksmpy store rm)" if store.unused else ""
            found.append((f" store {shown(store.name)}: {what}{idle}", "store"))
        more = len(self.look.stores) - len(found)
        if more > 0:
            found.append((f" and {more} stores more (ksmpy store list)", "store"))
        return found

    def _columns(self, width: int) -> Line:
        names = ["PID", "command", "saved", "merged", "written", "PSS", "maps"]
        arrow = "*" if self.ascii else "▾"
        heads = [name + arrow if name == SORTS[self.order][0] else name for name in names]
        return self._row("", heads, "trend", width), "head"

    def _row(self, mark: str, cells: list[str], tail: str, width: int) -> str:
        pid, command, *figures, maps = cells
        text = f"{mark:1}{pid:>8} {command[:11]:11}" + "".join(f"{each:>11}" for each in figures)
        text += f"{maps:>6}"
        return text if width < len(text) + 6 else f"{text}  {tail}"

    def _body(self, width: int) -> tuple[list[Line], int]:
        """The list, and which line of it has the cursor."""
        lines: list[Line] = []
        cursor = 0
        rows = self._sorted()
        if rows and self.chosen not in {seen.pid for seen in rows}:
            self.chosen = rows[0].pid
        for seen in rows:
            style = "chosen" if seen.pid == self.chosen else "row"
            cursor = len(lines) if style == "chosen" else cursor
            room = max(0, width - 73)
            lines.append((self._process(seen, width, min(room, 60)), style))
            if seen.pid in self.expanded:
                lines += self._inside(seen.pid, width)
        if not rows:
            lines.append((" no process here uses ksmpy yet (ksmpy run, ksmpy demo)", "note"))
        return lines, cursor

    def _process(self, seen: Observation, width: int, room: int) -> str:
        cells = [
            str(seen.pid),
            seen.command,
            human_bytes(seen.saved_bytes),
            human_bytes(seen.merged_bytes),
            human_bytes(seen.written_bytes),
            human_bytes(seen.pss_bytes),
            f"{100 * seen.vmas // max(seen.vma_limit, 1)} %",
        ]
        bars = spark(self.each.get(seen.pid, []), room, self._bars()).strip()
        mark = "-" if seen.pid in self.expanded else "+"
        return self._row(mark, cells, bars, width)

    def _inside(self, pid: int, width: int) -> list[Line]:
        if pid not in self.look.buffers:
            return [(f"{'':10}looking ...", "buffer")]
        found = self.look.buffers[pid]
        lines: list[Line] = [
            (
                f"{'':10}{shown(each.name)[:22]:22}{human_bytes(each.merged_bytes):>11}"
                f"{human_bytes(each.written_bytes):>11}{human_bytes(each.alone_bytes):>11} alone",
                "buffer",
            )
            for each in found[:_BUFFERS]
        ]
        if len(found) > _BUFFERS:
            lines.append((f"{'':10}and {len(found) - _BUFFERS} buffers more", "buffer"))
        return lines or [(f"{'':10}nothing is merged, and nothing noted", "buffer")]

    def _bars(self) -> str:
        return _PLAIN_BARS if self.ascii else _BARS


def _noted(pid: int) -> list[int]:
    """What a process's engine has noted before the first look at it."""
    try:
        found = pasts(pid)
    except OSError:
        return []
    samples = max((past.samples for past in found), key=len, default=())
    return [sample.saved for sample in samples][-60:]
