"""``ksmpy report``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, CommandError, Parser, at_least
from ksmpy.cli.output import human_bytes, print_json

if TYPE_CHECKING:
    from ksmpy.watch.portrait import Portrait

_FILE = "ksmpy-report.html"


class Report(Command):
    """one page to look at: what is saved, over time, who shares with whom

    Of all processes of this user that use ksmpy; with PIDs of those, of the processes below them,
    and of all who share a store with one of them; with --store of those of a named store. Read from
    outside: no process takes notice. The page needs no network. It is drawn with Bokeh
    (pip install 'ksmpy[report]'); --json alone needs nothing.
    """

    name = "report"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        which = parser.add_mutually_exclusive_group()
        which.add_argument("pids", nargs="*", type=at_least(1), default=[], metavar="PID")
        parser.option("--store", group=which, metavar="NAME", help="the processes of a named store")
        # A store that only the environment names is the programs': it is taken where it is there.
        parser.set_defaults(usual_store=parser.get_default("store"), store=None)
        parser.option(
            "--output", short="-o", metavar="FILE", help=f"where to write the page ({_FILE})"
        )
        parser.option("--open", action="store_true", help="show it in the browser")

    def run(self, options: argparse.Namespace) -> int:
        draws = bool(options.output or options.open or not options.json)
        if draws:
            _need_bokeh()
        # Processes may end between the moment when they are found and that when they are looked at:
        # what takes long to import must not come between.
        import numpy  # noqa: F401

        from ksmpy.watch.portrait import portrait

        if options.pids:
            seen = portrait(*_with_children(options.pids))
        elif options.store is not None:
            seen = portrait((), _users(options.store))
        else:
            listed = _usual_users(options.usual_store)
            seen = portrait((), listed) if listed else portrait()
        if options.json:
            print_json(seen)
        if draws:
            path = options.output or _FILE
            _write(path, seen)
            if not options.json:
                _tell(path, seen)
            if options.open:
                _show(path)
        return 0


def _users(store: str) -> list[int]:
    from ksmpy.watch.stores import look_at

    found = look_at(store)
    if found.error:
        raise CommandError(found.error)
    if not found.processes:
        raise CommandError(f"no process uses the store {store!r}", "ksmpy store list has them all")
    return [process.pid for process in found.processes]


def _usual_users(store: str | None) -> list[int]:
    """The processes of the store that the environment names; none if it is not there."""
    from ksmpy.errors import StoreError
    from ksmpy.watch.stores import look_at

    if not store:
        return []
    try:
        return [process.pid for process in look_at(store).processes]
    except StoreError as error:
        if error.errno != errno.ENOENT:
            raise
        return []


def _with_children(pids: list[int]) -> tuple[set[int], set[int]]:
    """Of those that were given, those that have to be looked at; and their descendants that use
    ksmpy.
    """
    import psutil

    from ksmpy.watch.observe import users

    there = set(users())
    named, below = set(), set()
    for pid in pids:
        try:
            children = {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.Error:
            children = set()
        # A supervisor (ksmpy run) need not have merged anything itself, if processes below it have.
        # If there are none, looking at the process itself raises the error that says so.
        if pid in there or not children & there:
            named.add(pid)
        below |= children & there
    return named, below


def _need_bokeh() -> None:
    """Before processes are looked at, which takes seconds."""
    if find_spec("bokeh") is None:
        raise CommandError(
            "bokeh is not installed, which draws the page",
            "pip install 'ksmpy[report]', or --json",
        )


def _write(path: str, seen: Portrait) -> None:
    from ksmpy.watch.page import page

    text = page(seen)
    if path == "-":
        print(text, end="")
    else:
        _put(path, text.encode("utf-8", "backslashreplace"))  # names may have what UTF-8 has not


def _put(path: str, page: bytes) -> None:
    """Write the file. The page that was there before stays whole until this one is complete."""
    part = f"{path}.{os.getpid()}.part"
    try:
        mode = _replaceable(path)
        file = None if mode is None else open(part, "xb")  # noqa: SIM115
    except OSError:  # there is no room for a file beside it: its folder is somebody else's
        file = None
    if file is None or mode is None:
        with open(path, "wb") as there:
            there.write(page)
        return
    try:
        with file:
            if mode:
                os.fchmod(file.fileno(), mode)
            file.write(page)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # interrupted when it had its name already
            os.unlink(part)
        raise


def _replaceable(path: str) -> int | None:
    """The mode of a file that another one may take the place of, 0 if there is none. None for what
    has to be written to itself: a link, a pipe, a device, another user's file, one that is
    write-protected (which fails).
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    own = status.st_uid == os.geteuid() and status.st_nlink == 1
    if stat.S_ISREG(status.st_mode) and own and os.access(path, os.W_OK):
        return stat.S_IMODE(status.st_mode)
    return None


def _tell(path: str, seen: Portrait) -> None:
    from ksmpy.store.store import MORE_ROOM

    totals, count = seen.totals, len(seen.processes)
    if path != "-":
        print(
            f"{path}: {count} {'process pays' if count == 1 else 'processes pay'} for"
            f" {human_bytes(totals.paid_bytes)}, {human_bytes(totals.saved_bytes)} are saved"
        )
        for store in seen.stores:
            if store.full:
                print(f"the store {store.name} is full, equal pages are left apart: {MORE_ROOM}")


def _show(path: str) -> None:
    import webbrowser
    from pathlib import Path

    if path == "-" or not webbrowser.open(Path(os.path.abspath(path)).as_uri()):
        raise CommandError("no browser could be started", f"open {path} in one")
