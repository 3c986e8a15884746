"""`ksmpy top` on a terminal: keys, and looks that are taken beside them."""

from __future__ import annotations

import curses
import locale
import threading
import time
from collections.abc import Callable

from ksmpy.cli.board import Board, Look
from ksmpy.errors import CommandError

__all__ = ["show"]

_KEYS = {
    curses.KEY_DOWN: "down",
    curses.KEY_UP: "up",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_ENTER: "enter",
    10: "enter",
    13: "enter",
    27: "escape",
}
_WAIT_MS = 100
# The next look waits so many times as long as the last one took: a fifth of a processor at most.
_COST_FACTOR = 4


def show(first: Look, look: Callable[[set[int]], Look], interval: float, count: int | None) -> None:
    """Until "q" is pressed, the process is gone, or `count` looks were shown."""
    locale.setlocale(locale.LC_ALL, "")
    plain = "utf" not in locale.getpreferredencoding(False).lower()
    curses.wrapper(lambda window: _Screen(window, Board(first, plain), look).run(interval, count))


class _Screen:
    def __init__(
        self, window: curses.window, board: Board, look: Callable[[set[int]], Look]
    ) -> None:
        self._window = window
        self._board = board
        self._look = look
        self._next: Look | None = None
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._looks = 1
        self._styles = _styles()

    def run(self, interval: float, count: int | None) -> None:
        self._window.timeout(_WAIT_MS)
        self._window.keypad(True)
        looker = threading.Thread(target=self._go_on_looking, args=(interval,), daemon=True)
        looker.start()
        try:
            while count is None or self._looks <= count:
                self._draw()
                if not self._wait():
                    return
        finally:
            self._ended.set()
            self._wake.set()

    def _wait(self) -> bool:
        """Until there is something else to draw; False: it is over."""
        while not self._ended.is_set():
            key = self._key()
            if key:
                if key in ("enter", " ", "right"):
                    self._wake.set()
                return self._board.press(key)
            if self._next is not None:
                self._board.take(self._next)
                self._next = None
                self._looks += 1
                return True
        return False

    def _go_on_looking(self, interval: float) -> None:
        """In a thread of its own: the keys work while thousands of mappings are read."""
        pause = interval
        while not self._ended.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            begin = time.thread_time()
            try:
                self._next = self._look(set(self._board.expanded))
            except CommandError:
                self._ended.set()  # the process that was shown has ended
            pause = max(interval, _COST_FACTOR * (time.thread_time() - begin))

    def _key(self) -> str:
        """What was pressed; "resize" when the window has another size, "" for nothing."""
        try:
            code = self._window.getch()
        except KeyboardInterrupt:
            return "q"
        if code == curses.KEY_RESIZE:
            return "resize"
        if code < 0:
            return ""
        return _KEYS.get(code, chr(code) if 32 <= code < 127 else "")

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        self._window.erase()
        for number, (text, style) in enumerate(self._board.lines(width, height)):
            try:
                self._window.addstr(number, 0, text, self._styles.get(style, 0))
            except curses.error:
                pass  # curses draws the last letter of the last line, and then raises an error
        self._window.refresh()


def _styles() -> dict[str, int]:
    styles = {
        "title": curses.A_BOLD | curses.A_REVERSE,
        "head": curses.A_BOLD,
        "chosen": curses.A_BOLD,
        "buffer": curses.A_DIM,
        "store": 0,
        "keys": curses.A_DIM,
    }
    try:
        curses.curs_set(0)
    except curses.error:
        pass  # this terminal cannot hide its cursor
    if curses.has_colors():
        curses.use_default_colors()
        for number, colour in enumerate((curses.COLOR_CYAN, curses.COLOR_GREEN), 1):
            curses.init_pair(number, colour, -1)
        styles["store"] = curses.color_pair(1)
        styles["chosen"] = curses.color_pair(2) | curses.A_BOLD
    return styles
