"""``ksmpy stats``."""

from __future__ import annotations

import argparse
import errno
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ksmpy import proc
from ksmpy.cli.command import Command, CommandError, Parser, at_least
from ksmpy.cli.output import human_bytes, print_json, table
from ksmpy.errors import StoreError
from ksmpy.watch.observe import Observation

if TYPE_CHECKING:
    from ksmpy.store.store import StoreProcess


class Stats(Command):
    """what is merged in a process or in a named store, seen from outside

    With a PID that process, without one all that can be seen; with --store the counters of a named
    store, and the processes that use it. The engine's own counters are in the program itself:
    Engine.stats(), or ksmpy run --report.
    """

    name = "stats"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        which = parser.add_mutually_exclusive_group()
        which.add_argument("pid", nargs="?", type=at_least(1), metavar="PID")
        parser.option("--store", group=which, metavar="NAME", help="a named store instead")
        # A store that only the environment names is the programs': it is taken where it is there.
        parser.set_defaults(usual_store=parser.get_default("store"), store=None)

    def run(self, options: argparse.Namespace) -> int:
        store = options.store
        if store is None and options.pid is None:
            store = _usual_store(options.usual_store)
        if store is not None:
            return show_store(store, json=options.json)
        if options.pid:
            _show_process(options.pid, json=options.json)
        else:
            _show_all(json=options.json)
        return 0


def _usual_store(name: str | None) -> str | None:
    """The store that the environment names, if it is there; else that is said, and None."""
    from ksmpy.store.store import Store

    if not name:
        return None
    try:
        Store.open(name, create=False).close()
    except StoreError as error:
        if error.errno != errno.ENOENT:
            raise
        print(f"ksmpy: {error.strerror} (KSMPY_STORE): all processes instead", file=sys.stderr)
        return None
    return name


def _show_process(pid: int, *, json: bool) -> None:
    from ksmpy.watch.savings import observe

    seen = observe(pid)
    if json:
        print_json(seen)
        return
    table("", COLUMNS, [row(seen)])
    for text in found_in(pid):
        print(text)


def _show_all(*, json: bool) -> None:
    from ksmpy.watch.savings import observe_all

    seen, together = observe_all()
    if json:
        print_json(seen)
    elif seen:
        table("", COLUMNS, [row(each) for each in seen])
        print(f"saved by all of them together: {human_bytes(together.saved_bytes)}")
    else:
        print("no process here uses ksmpy")


def found_in(pid: int) -> list[str]:
    """What the last look for memory to adopt has found there, as far as it was noted."""
    from ksmpy.watch.past import pasts
    from ksmpy.whole.adopt import Coverage

    try:
        facts: list[Any] = [each.facts.get("coverage") for each in pasts(pid)]
    except OSError:  # it has ended
        return []
    return [str(Coverage(**fact)) for fact in facts if fact is not None]


PROCESS_COLUMNS = ("PID", "command", "pages merged", "state")


def show_store(name: str, *, json: bool) -> int:
    """Print a store's counters and the processes that use it."""
    from ksmpy.text import shown
    from ksmpy.watch.savings import measured
    from ksmpy.watch.stores import look_at

    (store,) = measured([look_at(name)])
    if store.stats is None:
        raise CommandError(store.error)
    if json:
        each = [vars(process) for process in store.processes]
        print_json(
            {
                "name": store.name,
                "path": store.path,
                "kept_bytes": store.kept_bytes,
                "stats": store.stats,
                "processes": each,
            }
        )
        return 0
    rows = [(key, _figure(key, value)) for key, value in asdict(store.stats).items()]
    kept = ("kept in memory", human_bytes(store.kept_bytes))
    table("", ("name", "value"), [("path", shown(store.path)), kept, *rows])
    print()
    if store.processes:
        table("", PROCESS_COLUMNS, [_process(process) for process in store.processes])
    else:
        print(f"no process uses it (ksmpy store rm {shown(name)})")
    return 0


def _figure(name: str, value: int) -> str:
    return human_bytes(value) if name.endswith("_bytes") else str(value)


def _process(process: StoreProcess) -> tuple[str, str, str, str]:
    """One line of the table for a process that uses the store."""
    try:
        command = proc.command(process.pid)
    except OSError:  # the process has ended, or is in another container
        command = "?"
    state = "forked, inherits" if process.inherited else "attached"
    return str(process.pid), command, str(process.merging_pages), state


COLUMNS = (
    "PID", "command", "merged", "written since", "zeros", "frames", "saved", "PSS", "mappings"
)  # fmt: skip


def row(seen: Observation) -> tuple[str | int, ...]:
    """One line of the table for a process."""
    return (
        str(seen.pid),
        seen.command,
        human_bytes(seen.merged_bytes),
        human_bytes(seen.written_bytes),
        human_bytes(seen.zero_bytes),
        human_bytes(seen.frame_bytes),
        human_bytes(seen.saved_bytes),
        human_bytes(seen.pss_bytes),
        f"{seen.vmas} of {seen.vma_limit}",
    )
