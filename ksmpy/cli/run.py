"""``ksmpy run``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys

from ksmpy.cli.command import TRUE, Command, CommandError, Parser, size
from ksmpy.errors import Unsupported

# Files with these endings are run by the interpreter even if they are executable.
_PYTHON_FILES = (".py", ".pyw", ".pyz", ".pyc")


class Run(Command):
    """run a program with merging on

    -m, -c and FILE as with the interpreter itself, or any COMMAND. Every Python process below it
    gets an engine on one store: forked, spawned or started by a shell. Everything after -m MODULE,
    -c CODE, FILE or COMMAND belongs to the program, the exit code is the program's. Where no engine
    can be made it runs all the same, and a line on stderr says why nothing is merged.
    KSMPY_DISABLE=1 runs it as if ksmpy were not there.
    """

    name = "run"
    json = False

    def arguments(self, parser: Parser) -> None:
        from ksmpy.whole.options import OPTIONS

        for name, kind in OPTIONS.items():
            if name == "run":  # no option for this knob: it is always on below ksmpy run
                continue
            flag = f"--{name.replace('_', '-')}"
            if isinstance(kind, tuple):
                parser.option(flag, choices=kind, help=f"option {name} of ksmpy.enable()")
            else:
                metavar = "N" if kind is int else name.upper()
                parser.option(
                    flag, type=kind, metavar=metavar, help=f"option {name} of ksmpy.enable()"
                )
        parser.option(
            "--mmap-threshold",
            type=size,
            metavar="SIZE",
            help="glibc's malloc() gives blocks from this size on, at most 32M, mappings of their"
            " own, so that equal ones lie equally on pages everywhere; 1M is a good one, where few"
            " such blocks are temporary",
        )
        parser.option(
            "--report", action="store_true", help="print what was saved to stderr at the end"
        )
        rest = argparse.REMAINDER
        parser.add_argument("-m", dest="module", nargs=rest, help="MODULE [ARGS...]: run a module")
        parser.add_argument("-c", dest="code", nargs=rest, help="CODE [ARGS...]: run code")
        parser.add_argument(
            "file", nargs=rest, help="FILE or [--] COMMAND [ARGS...]: run a file or any command"
        )
        parser.usage = (
            f"{parser.prog} [options] (-m MODULE | -c CODE | FILE | [--] COMMAND) [ARGS...]"
        )
        parser.set_defaults(parser=parser)

    def run(self, options: argparse.Namespace) -> int:
        from ksmpy.whole.guardian import say

        command = _command(options)
        if os.environ.get("KSMPY_DISABLE", "").strip().lower() in TRUE:
            if options.report:
                say("ksmpy: turned off by KSMPY_DISABLE")
            return _execute(command)
        from ksmpy.whole.prepare import check_threshold, checked_store, environment
        from ksmpy.whole.supervise import supervise

        chosen = _chosen(options)
        check_threshold(options.mmap_threshold)
        try:
            store = checked_store(chosen)
        except Unsupported as error:
            say(f"ksmpy: nothing is merged here: {error}")
            return _execute(command)
        environ = environment(store, chosen, options.mmap_threshold)
        return supervise(command, environ, store, report=options.report)


def _chosen(options: argparse.Namespace) -> dict[str, int | str]:
    from ksmpy.whole.options import OPTIONS

    found = {name: getattr(options, name) for name in OPTIONS if name != "run"}
    return {name: value for name, value in found.items() if value is not None}


def _command(options: argparse.Namespace) -> list[str]:
    """What to execute."""
    if options.module:
        return [*_interpreter(), "-m", *options.module]
    if options.code:
        return [*_interpreter(), "-c", *options.code]
    rest: list[str] = options.file
    if rest[:1] == ["--"]:
        rest = rest[1:]
    elif rest and _is_python(rest[0]):
        return [*_interpreter(), *rest]
    if not rest:
        options.parser.error("a program is expected: -m MODULE, -c CODE, FILE or COMMAND")
    if shutil.which(rest[0]) is None:
        if os.path.exists(rest[0]):
            return [*_interpreter(), *rest]
        options.parser.error(f"can't run {rest[0]!r}: no such file or command")
    return rest


def _is_python(path: str) -> bool:
    """Whether it is a file for the interpreter, and not a command of its own."""
    if not os.path.exists(path):
        return False
    return path.endswith(_PYTHON_FILES) or os.path.isdir(path) or not os.access(path, os.X_OK)


def _interpreter() -> list[str]:
    """The interpreter that runs here, with its own options."""
    return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]


def _execute(command: list[str]) -> int:
    """Become the command, which finds signals as this process found them."""
    from ksmpy.whole.guardian import flush

    flush()
    # Python ignores these in its own process.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}", code=126) from None
