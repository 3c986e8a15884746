"""Which modules of a package import which, read from their text.

An import counts wherever it stands: inside a function, under TYPE_CHECKING, or by import_module()
of a name that is written there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from .structure import Structure


def read_python(root: Path, layers: tuple[str, ...]) -> Structure:
    """The modules of the package at `root`; they depend on those of it that they import."""
    modules = {_name(root, path): path for path in root.rglob("*.py")}
    edges = {name: set(_imported(name, path, modules)) for name, path in modules.items()}
    return Structure(layers, edges)


def _name(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for found in _names(ast.parse(path.read_text(encoding="utf-8")), package):
        module = found if found in modules else found.rpartition(".")[0]
        if module in modules and module != name:
            yield module


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    """The dotted names of what is imported: of modules, or of what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _imports_by_name(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _imports_by_name(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")
