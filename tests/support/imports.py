"""Which modules of a package import which, read from their text.

An import counts wherever it stands: inside a function, under TYPE_CHECKING, or by import_module()
of a name that is written there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Edges = Mapping[str, frozenset[str]]


def imports_of(root: Path) -> Edges:
    """By module of the package at `root`: the package's other modules that it imports."""
    modules = {_name(root, path): path for path in root.rglob("*.py")}
    return {name: frozenset(_imported(name, path, modules)) for name, path in modules.items()}


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


def layer_of(module: str, layers: tuple[str, ...]) -> int:
    """The height of a module: that of the longest of the layers' names that it is, or lies in.

    ValueError for one that lies in none.
    """
    held = [name for name in layers if module == name or module.startswith(name + ".")]
    if not held:
        raise ValueError(f"{module} lies in none of the layers {', '.join(layers)}")
    return layers.index(max(held, key=len))


def upward(edges: Edges, layers: tuple[str, ...]) -> list[str]:
    """The imports of a module that lies in a layer above."""
    return [
        f"{module} -> {other}"
        for module in sorted(edges)
        for other in sorted(edges[module])
        if layer_of(other, layers) > layer_of(module, layers)
    ]


def circles(edges: Edges) -> list[str]:
    """The modules that import themselves by way of others."""
    reached: dict[str, set[str]] = {}
    for module in edges:
        seen: set[str] = set()
        waiting = list(edges[module])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += edges.get(other, ())
        reached[module] = seen
    return sorted(module for module, seen in reached.items() if module in seen)
