"""What an entry of the list says, and how it is applied."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One edit that takes a safeguard out of the engine.

    `old` stands in `file` exactly once and becomes `new`; then each of the `tests` must fail.
    A test is ``c/test_NAME.c::function`` or what pytest takes, relative to tests/:
    ``test_NAME.py::function`` or ``test_NAME.py::function[uffd-move+wp-async]``.
    `quick` ones are run whenever a change lands.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    quick: bool = False

    def applied(self, root: Path) -> str:
        """What the file below `root` becomes; ValueError if the text is not there once."""
        text = (root / self.file).read_text()
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.file} has its text {found} times")
        return text.replace(self.old, self.new)


def all_mutants() -> list[Mutant]:
    """Those of every module in safeguards/, of which each holds the edits of one C file."""
    package = importlib.import_module(f"{__package__}.safeguards")
    found: list[Mutant] = []
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        found += importlib.import_module(f"{package.__name__}.{module.name}").MUTANTS
    names = [mutant.name for mutant in found]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ValueError(f"names that stand twice: {', '.join(sorted(double))}")
    return found
