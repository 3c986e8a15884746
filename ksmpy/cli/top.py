"""``ksmpy top``."""

from __future__ import annotations

import argparse
import sys
import time

from ksmpy.cli.command import Command, CommandError, Parser, at_least
from ksmpy.cli.output import fancy, human_bytes, print_json, table
from ksmpy.cli.stats import COLUMNS, row
from ksmpy.watch.observe import Observation, observe, observe_all


def _interval(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: between 0.1 and 3600 seconds are expected")
    return value


class Top(Command):
    """live table of the processes that use ksmpy

    Without a terminal, one table for each look; --count says how many (1 then, without end on a
    terminal).
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
        live = fancy(sys.stdout) and not options.json
        left = options.count if options.count is not None else (None if live else 1)
        try:
            if live:
                self._live(options, left)
            else:
                self._plain(options, left)
        except KeyboardInterrupt:
            pass  # the way to leave it
        return 0

    @staticmethod
    def _look(options: argparse.Namespace) -> list[Observation]:
        return [observe(options.pid)] if options.pid else observe_all()

    def _plain(self, options: argparse.Namespace, left: int | None) -> None:
        while True:
            seen = self._look(options)
            if options.json:
                print_json(seen)
            else:
                table(time.strftime("%H:%M:%S"), COLUMNS, [row(each) for each in seen])
            sys.stdout.flush()
            left = left - 1 if left is not None else None
            if left == 0:
                return
            time.sleep(options.interval)

    def _live(self, options: argparse.Namespace, left: int | None) -> None:
        from rich.live import Live
        from rich.table import Table

        with Live(auto_refresh=False, screen=options.count is None) as screen:
            while left is None or left > 0:
                try:
                    seen = self._look(options)
                except CommandError:
                    if left == options.count:
                        raise  # it never was there
                    return
                drawn = Table(
                    title=f"{time.strftime('%H:%M:%S')}  saved {human_bytes(_saved(seen))}"
                )
                for number, name in enumerate(COLUMNS):
                    drawn.add_column(name, justify="left" if number < 2 else "right")
                for each in seen:
                    drawn.add_row(*map(str, row(each)))
                screen.update(drawn, refresh=True)
                left = left - 1 if left is not None else None
                if left != 0:
                    time.sleep(options.interval)


def _saved(seen: list[Observation]) -> int:
    return sum(each.saved_bytes for each in seen)
