"""In notebooks: ``%load_ext ksmpy``, then ``%ksmpy`` and ``%%ksmpy`` (what a cell saved)."""

from __future__ import annotations

import shlex
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ksmpy.engine.engine import Engine
from ksmpy.engine.stats import Stats
from ksmpy.text import table_html, table_text
from ksmpy.whole.dedup import Report, dedup, present_engine
from ksmpy.whole.enable import disable, enable, enabled_engine

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Status", "load_ipython_extension", "unload_ipython_extension"]

_HELP = "%ksmpy: status   %ksmpy on [STORE]   %ksmpy off   %%ksmpy: what a cell saved"

# Variables of IPython's, not of the user's: earlier inputs and outputs, and its commands.
_NOT_THE_USERS = ("In", "Out", "exit", "quit", "get_ipython")


class Status:
    """What `%ksmpy` shows."""

    def __init__(self, engine: Engine | None, stats: Stats | None) -> None:
        self.engine = engine
        self.stats = stats

    def __repr__(self) -> str:
        if self.engine is not None:
            return str(self.engine)
        if self.stats is not None:
            return str(self.stats)
        return table_text([("engine", "none in this process"), ("", _HELP)])

    def _repr_html_(self) -> str:
        if self.engine is not None:
            return self.engine._repr_html_()
        if self.stats is not None:
            return self.stats._repr_html_()
        return table_html("ksmpy", [("engine", "none in this process")], [_HELP])


class _Magics:
    """The two magics of one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._reports: list[Report] = []  # what a cell has merged stays merged

    def line(self, text: str) -> Status:
        """%ksmpy"""
        from IPython.core.error import UsageError  # which is shown as one line

        try:
            words = shlex.split(text)
        except ValueError as error:  # quotation marks that nobody has closed
            raise UsageError(f"%ksmpy {text}: {error}; {_HELP}") from None
        if words[:1] == ["on"] and len(words) <= 2:
            enable() if len(words) == 1 else enable(store=words[1])
        elif words == ["off"]:
            disable()
        elif words:
            raise UsageError(f"%ksmpy {text}: not known; {_HELP}")
        engine = enabled_engine()
        merging = present_engine() if engine is None else None
        return Status(engine, None if merging is None else merging.stats())

    def cell(self, text: str, cell: str) -> None:
        """%%ksmpy: run a cell, then merge what the notebook's variables hold."""
        from IPython.core.error import UsageError
        from IPython.display import display

        if text.strip():
            raise UsageError(f"%%ksmpy takes no arguments, not {text.strip()!r}")
        if not self._shell.run_cell(cell).success:
            return  # its error has been shown
        report = dedup(self._variables())
        self._reports.append(report)
        # Below what the cell itself shows: a result of this cell would not be taken for one, since
        # the shell has run another within it.
        display(report)

    def _variables(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self._shell.user_ns.items()
            if not name.startswith("_")
            and name not in _NOT_THE_USERS
            and not isinstance(value, ModuleType)
        }


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by ``%load_ext ksmpy``."""
    magics = _Magics(shell)
    shell.register_magic_function(magics.line, "line", "ksmpy")
    shell.register_magic_function(magics.cell, "cell", "ksmpy")


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Called by ``%unload_ext ksmpy``: the magics go; what is merged stays merged."""
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("ksmpy", None)
