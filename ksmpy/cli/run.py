"""``ksmpy run``."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import types
from collections.abc import Callable
from typing import Any

from ksmpy.cli.command import Command, Parser

# What a traceback of the program should not begin with: this file, and the standard library's
# launcher.
_LAUNCHERS = (__file__, runpy.__file__, "<frozen runpy>")


class Run(Command):
    """run a program with merging on

    Everything after -m MODULE, -c CODE or FILE belongs to the program, as with the interpreter
    itself. The exit code is the program's.
    """

    name = "run"
    json = False

    def arguments(self, parser: Parser) -> None:
        from ksmpy.config import OPTIONS

        for name, kind in OPTIONS.items():
            if name == "run":  # the knob: it is on, that is what the command is for
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
            "--report", action="store_true", help="print what was merged to stderr at the end"
        )
        rest = argparse.REMAINDER
        parser.add_argument("-m", dest="module", nargs=rest, help="MODULE [ARGS...]: run a module")
        parser.add_argument("-c", dest="code", nargs=rest, help="CODE [ARGS...]: run code")
        parser.add_argument("file", nargs=rest, help="FILE [ARGS...]: run a file")
        parser.usage = f"{parser.prog} [options] (-m MODULE | -c CODE | FILE) [ARGS...]"
        parser.set_defaults(parser=parser)

    def run(self, options: argparse.Namespace) -> int:
        from ksmpy.config import OPTIONS

        program = _program(options)
        engine_options = {
            name: getattr(options, name)
            for name in OPTIONS
            if name != "run" and getattr(options, name) is not None
        }
        import ksmpy

        engine = ksmpy.enable(**engine_options)
        try:
            return _call(program)
        finally:
            sys.stdout.flush()
            if options.report and not engine.closed:
                stats = engine.stats()
                print(
                    f"ksmpy: {stats.pages_shared} pages serve"
                    f" {stats.pages_shared + stats.pages_sharing}, "
                    f"{stats.saved_bytes} bytes saved ({stats.full_scans} passes)",
                    file=sys.stderr,
                )


Program = Callable[[], dict[str, Any]]


def _program(options: argparse.Namespace) -> Program:
    if options.module:
        name, *arguments = options.module
        _enter(name, arguments, os.getcwd())
        return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True)
    if options.code:
        code, *arguments = options.code
        _enter("-c", arguments, "")
        return lambda: _run_code(code)
    if not options.file:
        options.parser.error("a program is expected: -m MODULE, -c CODE or FILE")
    path, *arguments = options.file
    if not os.path.exists(path):
        options.parser.error(f"can't open file {path!r}: no such file")
    _enter(path, arguments, os.path.dirname(os.path.realpath(path)))
    return lambda: runpy.run_path(path, run_name="__main__")


def _enter(name: str, arguments: list[str], folder: str) -> None:
    """Make sys.argv and sys.path what the interpreter would have made them."""
    sys.argv = [name, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _run_code(code: str) -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    exec(compile(code, "<string>", "exec"), module.__dict__)
    return module.__dict__


def _call(program: Program) -> int:
    """Run it; its exceptions are shown as the interpreter shows them, not as errors of ours."""
    try:
        program()
    except KeyboardInterrupt as error:
        _show(error)
        return 130
    except Exception as error:
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _LAUNCHERS:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
