"""The command line: ``ksmpy`` and ``python -m ksmpy``.

One module and one class for each command; computing stays in the package, rendering in `output`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from ksmpy.cli.command import Command, CommandError, Parser
from ksmpy.errors import KsmpyError, Unsupported

__all__ = ["main"]


def _commands() -> tuple[Command, ...]:
    # Each module imports what it needs only when its command runs, which keeps --help quick.
    from ksmpy.cli.analyze import Analyze
    from ksmpy.cli.bench import Bench
    from ksmpy.cli.demo import Demo
    from ksmpy.cli.doctor import Doctor
    from ksmpy.cli.export import Export
    from ksmpy.cli.kernel import Kernel
    from ksmpy.cli.report import Report
    from ksmpy.cli.run import Run
    from ksmpy.cli.stats import Stats
    from ksmpy.cli.store import Store
    from ksmpy.cli.top import Top

    return (
        Demo(),
        Doctor(),
        Analyze(),
        Run(),
        Top(),
        Stats(),
        Report(),
        Export(),
        Store(),
        Bench(),
        Kernel(),
    )


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(
        prog="ksmpy",
        description="KSM in user space: equal pages of a program's buffers share one copy.",
        epilog="Options can be given in the environment too: --some-option as KSMPY_SOME_OPTION.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    subparsers = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, parser_class=Parser
    )
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for command in _commands():
        summary, _, detail = command.help().partition("\n\n")
        child = subparsers.add_parser(
            command.name, help=summary, description=f"{summary}\n\n{detail}".strip()
        )
        if command.name == chosen:  # the options of the others are not needed
            command.arguments(child)
            child.set_defaults(run=command.run)
    return parser


class _Version(argparse.Action):
    """--version. The version is looked up only if asked for: to read a package's metadata takes
    longer than all the rest.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: object) -> None:
        import ksmpy

        print(f"ksmpy {ksmpy.__version__}")
        parser.exit()


def _hint(error: BaseException) -> str:
    if isinstance(error, CommandError):
        return error.hint
    if isinstance(error, Unsupported):
        return "ksmpy doctor says what works here"
    return "run it as root, or as the owner" if isinstance(error, PermissionError) else ""


def _fail(error: BaseException) -> int:
    """One line on stderr, with the hint in brackets when there is one; the exit code."""
    from ksmpy.whole.guardian import say

    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    hint = _hint(error)
    line = " ".join(f"ksmpy: error: {text}".split())
    say(f"{line} ({hint})" if hint else line)
    return error.code if isinstance(error, CommandError) else 1


def _run(arguments: Sequence[str]) -> int:
    try:
        options = _parser(arguments).parse_args(arguments)
    except SystemExit as end:  # --help, --version and wrong usage: what they print is flushed, too
        return end.code if isinstance(end.code, int) else 0
    code: int = options.run(options)
    return code


def _flush() -> None:
    if sys.stdout is not None:  # None where it was closed when the interpreter began
        sys.stdout.flush()


def _give_up_what_is_left() -> None:
    """What could not be printed the interpreter must not flush again when it ends: it would
    complain, and change the exit code.
    """
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, 1 when it failed, 2 for wrong usage."""
    try:
        if isinstance(sys.stdout, TextIOWrapper):  # names may have what its encoding has not
            sys.stdout.reconfigure(errors="backslashreplace")
        code = _run(sys.argv[1:] if arguments is None else arguments)
        _flush()
    except BrokenPipeError:  # the reader of the pipe (head, less) has ended, which is no error
        code = 0
    except KeyboardInterrupt:
        code = 130
    except (CommandError, KsmpyError, OSError) as error:
        code = _fail(error)
    _give_up_what_is_left()
    return code
