"""``ksmpy stats``."""

from __future__ import annotations

import argparse

from ksmpy.cli.command import Command, CommandError, Parser, at_least
from ksmpy.cli.observe import Observation, observe, users
from ksmpy.cli.output import human_bytes, print_json, table


class Stats(Command):
    """what is merged in a process, seen from outside

    With a PID that process, without one all that can be seen. The engine's own counters are in the
    program itself: Engine.stats(), or ksmpy run --report.
    """

    name = "stats"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        which = parser.add_mutually_exclusive_group()
        which.add_argument("pid", nargs="?", type=at_least(1), metavar="PID")
        parser.option("--store", group=which, metavar="NAME", help="a named store instead")

    def run(self, options: argparse.Namespace) -> int:
        if options.store is not None and options.pid is None:
            return self._store(options)
        seen = [observe(options.pid)] if options.pid else observe_all()
        if options.json:
            print_json(seen[0] if options.pid else seen)
        elif seen:
            table("", COLUMNS, [row(each) for each in seen])
        else:
            print("no process here uses ksmpy")
        return 0

    @staticmethod
    def _store(options: argparse.Namespace) -> int:
        import ksmpy

        store_class = getattr(ksmpy, "Store", None)
        if store_class is None:
            raise CommandError(
                "named stores are not available in this version", "give a PID instead"
            )
        store = store_class.open(options.store, create=False)
        try:
            report = {"name": store.name, "processes": store.processes(), "stats": store.stats()}
        finally:
            store.close()
        if options.json:
            print_json(report)
        else:
            table("", ("name", "value"), [(name, str(value)) for name, value in report.items()])
        return 0


COLUMNS = ("PID", "command", "merged", "written since", "frames", "saved", "PSS", "mappings")


def row(seen: Observation) -> tuple[str | int, ...]:
    """One line of the table for a process."""
    return (
        str(seen.pid),
        seen.command,
        human_bytes(seen.merged_bytes),
        human_bytes(seen.written_bytes),
        human_bytes(seen.frame_bytes),
        human_bytes(seen.saved_bytes),
        human_bytes(seen.pss_bytes),
        f"{seen.vmas} of {seen.vma_limit}",
    )


def observe_all() -> list[Observation]:
    """All processes that use ksmpy; one that ends while it is looked at is left out."""
    found: list[Observation] = []
    for pid in users():
        try:
            found.append(observe(pid))
        except CommandError:
            continue
    return found
