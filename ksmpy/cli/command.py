"""What every command is made of: its class, and its parser with options from the environment."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ksmpy.errors import CommandError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["Command", "CommandError", "Parser", "TRUE", "at_least", "engine_options", "size"]

TRUE = {"1", "yes", "true", "on"}
_FALSE = {"0", "no", "false", "off"}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, and KSMPY_* in the environment behind every option."""

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **arguments)

    def option(
        self,
        flag: str,
        *,
        group: argparse._ActionsContainer | None = None,
        prefix: str = "KSMPY_",
        short: str | None = None,
        **arguments: Any,
    ) -> None:
        """Add one --option; KSMPY_OPTION replaces its default, and is checked like the option
        itself.
        """
        name = prefix + flag.lstrip("-").upper().replace("-", "_")
        flags = (flag,) if short is None else (short, flag)
        action = (group or self).add_argument(*flags, **arguments)
        if action.help:
            action.help += f" [{name}]"
        text = os.environ.get(name, "").strip()
        if text:
            action.default = self._from_environment(name, text, action)

    def _from_environment(self, name: str, text: str, action: argparse.Action) -> Any:
        if action.nargs == 0:
            if text.lower() not in TRUE | _FALSE:
                self.error(f"{name}={text!r}: 1 or 0 is expected")
            return text.lower() in TRUE
        try:
            value: Any = action.type(text) if callable(action.type) else text
        except (ValueError, argparse.ArgumentTypeError) as error:
            self.error(f"{name}={text!r}: {error}")
        if action.choices is not None and value not in action.choices:
            self.error(f"{name}={text!r}: one of {', '.join(map(str, action.choices))} is expected")
        return value

    def error(self, message: str) -> NoReturn:
        from ksmpy.whole.guardian import say

        say(f"{self.prog}: error: {message} (try '{self.prog} --help')")
        self.exit(2)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        # argparse would print it to stderr where stdout is closed, and say nothing of a full one.
        print(self.format_help(), end="", file=file)


class Command:
    """One command. A subclass's docstring is its help: one line, then what else there is to say."""

    name: ClassVar[str]
    json: ClassVar[bool] = True

    def help(self) -> str:
        summary, _, detail = (type(self).__doc__ or "").partition("\n")
        return f"{summary}\n{textwrap.dedent(detail)}".rstrip()

    def arguments(self, parser: Parser) -> None:
        """Declare the arguments; the ones that all reading commands have come first."""
        if self.json:
            parser.option("--json", action="store_true", help="print JSON")

    def run(self, options: argparse.Namespace) -> int:
        raise NotImplementedError


def at_least(minimum: int) -> Callable[[str], int]:
    """A whole number not below `minimum`, as an argparse type."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is less than {minimum}")
        return value

    number.__name__ = "whole number"
    return number


def size(text: str) -> int:
    """Bytes, with K, M or G for the binary multiples: 64M."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    digits = text.upper().removesuffix("IB").removesuffix("B")
    factor = units.get(digits[-1:], 1)
    value = int(digits.rstrip("KMG")) * factor
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a size")
    return value


def engine_options(parser: Parser) -> None:
    """How an engine freezes pages and learns what was written."""
    from ksmpy.native import FREEZES, TRACKINGS

    parser.option("--freeze", choices=FREEZES, default="auto", help="how pages are frozen")
    parser.option("--tracking", choices=TRACKINGS, default="auto", help="how writes are noticed")
