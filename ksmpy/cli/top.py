"""``ksmpy top``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, Parser, at_least
from ksmpy.cli.output import human_bytes, print_json, table, terminal
from ksmpy.cli.stats import COLUMNS, row

if TYPE_CHECKING:
    from ksmpy.cli.board import Look


def _interval(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: between 0.1 and 3600 seconds are expected")
    return value


class Top(Command):
    """live table of all processes and stores of this user, or of one process

    Keys: s m w p v n i sort by saved, merged, written since, PSS, mappings, command, PID; arrows
    choose a process, Enter shows its buffers, q quits. Without a terminal (or with NO_COLOR), one
    table for each look; --count says how many (1 then, without end on a terminal).
    """

    name = "top"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        parser.option(
            "--interval", type=_interval, default=2.0, metavar="S", help="seconds between looks (2)"
        )
        parser.option("--count", type=at_least(1), metavar="N", help="stop after so many looks")
        parser.add_argument("pid", nargs="?", type=at_least(1), metavar="PID")

    def run(self, options: argparse.Namespace) -> int:
        from ksmpy.cli.board import take_a_look
        from ksmpy.watch.watcher import Watcher

        look = partial(take_a_look, options.pid, watcher=Watcher())
        first = look({options.pid} if options.pid else set())
        try:
            if options.json or not _terminal():
                self._plain(options, first, look)
            else:
                from ksmpy.cli.screen import show

                show(first, look, options.interval, options.count)
        except KeyboardInterrupt:
            pass  # Ctrl-C is a way to leave it
        return 0

    def _plain(
        self, options: argparse.Namespace, seen: Look, look: Callable[[set[int]], Look]
    ) -> None:
        for left in range(options.count or 1, 0, -1):
            if options.json:
                print_json(seen.processes)
            else:
                clock = time.strftime("%H:%M:%S", time.localtime(seen.moment))
                table(clock, COLUMNS, [row(each) for each in seen.processes])
                print(f"saved by all of them together: {human_bytes(seen.saved_bytes)}")
            if sys.stdout is not None:
                sys.stdout.flush()
            if left > 1:
                time.sleep(options.interval)
                seen = look(set())


def _terminal() -> bool:
    """Whether there is one to draw on, and a keyboard."""
    term = os.environ.get("TERM", "dumb")
    if os.environ.get("NO_COLOR") or not (terminal(sys.stdin) and terminal(sys.stdout)):
        return False
    try:
        import curses
    except ImportError:  # this Python was built without curses
        return False
    try:
        curses.setupterm(term, sys.stdout.fileno())
    except curses.error:
        return False
    return bool(curses.tigetstr("cup"))  # can this terminal move the cursor?
