"""``ksmpy store``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, CommandError, Parser
from ksmpy.cli.output import human_bytes, print_json, table
from ksmpy.cli.stats import show_store

if TYPE_CHECKING:
    from ksmpy.store.store import Store as AnyStore
    from ksmpy.watch.stores import NamedStore

COLUMNS = ("store", "processes", "saved", "kept in memory", "state")
FULL = ", full: nothing more is merged that needs a new frame"


class Store(Command):
    """the named stores of this user: list, show, remove

    list         all of them: who uses them, what they save, what memory they keep
    show NAME    the counters of one, and its processes (as ksmpy stats --store NAME)
    rm NAME      remove one that no process uses; with --force also one that is in use
    """

    name = "store"
    json = False

    def arguments(self, parser: Parser) -> None:
        actions = parser.add_subparsers(
            metavar="ACTION", dest="action", required=True, parser_class=Parser
        )
        for name, summary, run in (
            ("list", "all stores", self.list),
            ("show", "one store's counters and processes", self.show),
            ("rm", "remove a store", self.remove),
        ):
            action = actions.add_parser(name, help=summary)
            action.option("--json", action="store_true", help="print JSON")
            if name != "list":
                action.add_argument("store", metavar="NAME")
            if name == "rm":
                action.add_argument(
                    "--force",
                    action="store_true",
                    help="although processes use it: they go on with it, and who opens the name"
                    " from then on gets a new store",
                )
            action.set_defaults(run=run)

    def list(self, options: argparse.Namespace) -> int:
        from ksmpy.store.files import store_directory
        from ksmpy.watch.savings import measured
        from ksmpy.watch.stores import named_stores

        stores = measured(named_stores())
        if options.json:
            print_json([_record(store) for store in stores])
        elif stores:
            table("", COLUMNS, [_row(store) for store in stores])
        else:
            print(f"no stores in {store_directory()}")
        return 0

    def show(self, options: argparse.Namespace) -> int:
        return show_store(options.store, json=options.json)

    def remove(self, options: argparse.Namespace) -> int:
        import ksmpy
        from ksmpy.text import shown
        from ksmpy.watch.stores import look_at

        before = look_at(options.store)
        with ksmpy.Store.open(options.store, create=False) as store:
            unused = _remove(store, force=options.force)
        if options.json:
            print_json(_record(before))
            return 0
        name, kept = shown(before.name), human_bytes(before.kept_bytes)
        if unused:
            print(f"removed {name}, which kept {kept}")
        else:
            print(f"removed the name {name}: its {kept} go with the last process that uses it")
        return 0


def _remove(store: AnyStore, *, force: bool) -> bool:
    """Remove its name; whether nobody used it. CommandError where that is not so, or not known,
    without `force`.
    """
    from ksmpy.errors import StoreError

    try:
        if store.unlink(unused_only=True):
            return True
        reason = (
            f"is used by processes {', '.join(map(str, store.processes())) or '(ended by now)'}"
        )
    except StoreError as error:
        reason = f"may be in use: {error.strerror}"
    if not force:
        raise CommandError(f"{store} {reason}", "--force removes its name: they go on with it")
    store.unlink()
    return False


def _record(store: NamedStore) -> dict[str, object]:
    return {
        "name": store.name,
        "path": store.path,
        "kept_bytes": store.kept_bytes,
        "saved_bytes": store.stats.saved_bytes if store.stats else None,
        "processes": [vars(process) for process in store.processes],
        "full": store.full,
        "error": store.error or None,
    }


def _row(store: NamedStore) -> tuple[str | int | None, ...]:
    from ksmpy.text import shown

    stats = store.stats
    return (
        shown(store.name),
        None if stats is None else len(store.processes),
        None if stats is None else human_bytes(stats.saved_bytes),
        human_bytes(store.kept_bytes),
        store.error or ("nobody uses it" if store.unused else "in use") + FULL * store.full,
    )
