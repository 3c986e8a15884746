"""Layers and circles, and who includes and calls whom in C, read from the text of the sources.

A C module is a header and the source beside it; it depends on the modules whose headers it
includes. Layers are folders, from the ground up: nothing depends on a layer above its own, and
nothing on itself by way of others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Structure", "read_c"]

_COMMENT_OR_STRING = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")
# A function at the outermost level: "type name(parameters)" and then its body or a semicolon.
_FUNCTION = re.compile(
    r"([A-Za-z_][\w \t\n*]*?[\s*])([A-Za-z_]\w*)\s*(\([^()]*(?:\([^()]*\)[^()]*)*\))\s*([;{])"
)
# Called, or handed on: not a member, nor a variable that is declared.
_CALL = re.compile(r"(?<![\w.>])([A-Za-z_]\w*)\s*\(|[=,(&?:{]\s*([A-Za-z_]\w*)\b(?!\s*[;=])")
_STATIC = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t].*\bstatic\b", re.MULTILINE)
_NOT_TYPES = frozenset({"return", "typedef", "else", "_Static_assert"})


@dataclass
class Structure:
    """A tree of modules: what each depends on, and what is wrong with its text."""

    layers: tuple[str, ...]
    """From the ground up."""
    edges: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    faults: list[str] = field(default_factory=list)
    """Sentences about single files."""

    def layer(self, module: str) -> int:
        """The height of a module: of the longest layer's name that it lies in or is."""
        held = [
            (len(name), height)
            for height, name in enumerate(self.layers)
            if module == name or module.startswith((name + "/", name + "."))
        ]
        if not held:
            raise ValueError(f"{module} lies in none of the layers {', '.join(self.layers)}")
        return max(held)[1]

    def upward(self) -> list[str]:
        """The dependencies on a layer above."""
        return [
            f"{module} -> {other}"
            for module in sorted(self.edges)
            for other in sorted(self.edges[module])
            if self.layer(other) > self.layer(module)
        ]

    def circles(self) -> list[str]:
        """Groups of modules, or of layers, that depend on each other in a circle."""
        between = defaultdict(set)
        for module, others in self.edges.items():
            for other in others:
                if self.layer(module) != self.layer(other):
                    between[self.layers[self.layer(module)]].add(self.layers[self.layer(other)])
        return [" <-> ".join(group) for group in (*_groups(self.edges), *_groups(between))]

    def wrong(self) -> list[str]:
        """Everything that is wrong."""
        upward = [f"upward: {edge}" for edge in self.upward()]
        return [*upward, *(f"circle: {group}" for group in self.circles()), *self.faults]


def _groups(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group: list[str] = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


# ---- C ----


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def _outermost(code: str) -> str:
    """The text outside of any braces; a body is left as "{}"."""
    out, depth = [], 0
    for char in code:
        if char == "}":
            depth -= 1
        if depth == 0 or (depth == 1 and char == "{"):
            out.append(char)
        if char == "{":
            depth += 1
    return "".join(out)


def _functions(code: str) -> Iterator[tuple[str, str, bool]]:
    """(what stands before the name, name, whether it has a body) at the outermost level."""
    for match in _FUNCTION.finditer(_outermost(code)):
        before, name, _, end = match.groups()
        words = _WORD.findall(before)
        if words and not _NOT_TYPES & set(words):
            yield before, name, end == "{"


@dataclass
class _CFile:
    path: str
    includes: list[str]
    code: str
    static: set[str]
    """Words that make what they stand before known to this file only."""

    @property
    def module(self) -> str:
        return self.path.rsplit(".", 1)[0]

    @property
    def header(self) -> bool:
        return self.path.endswith(".h")


def _read_c_files(root: Path) -> list[_CFile]:
    files = []
    for path in sorted([*root.rglob("*.c"), *root.rglob("*.h")]):
        text = path.read_text(encoding="utf-8")
        includes = _INCLUDE.findall(text)
        code = _DIRECTIVE.sub(_macro_body, _COMMENT_OR_STRING.sub(_blank, text))
        static = {"static", *_STATIC.findall(text)}
        files.append(_CFile(path.relative_to(root).as_posix(), includes, code, static))
    return files


def _macro_body(match: re.Match[str]) -> str:
    """A macro's text calls functions too; it is kept as an expression inside of braces."""
    define = re.match(r"[ \t]*#[ \t]*define[ \t]+\w+(?:\([^)]*\))?(.*)", match.group(), re.DOTALL)
    return "{" + define.group(1).replace("\\\n", " ") + "}" if define else ""


def read_c(root: Path, layers: tuple[str, ...], ground: tuple[str, ...]) -> Structure:
    """The modules in the folders `layers` below `root`, whose includes are written from there.

    `ground`: the headers below all layers, whose functions only the highest layer may define.
    """
    structure = Structure(layers)
    lowest = {header.rsplit(".", 1)[0] for header in ground}
    files = [
        file
        for file in _read_c_files(root)
        if file.module in lowest or file.path.partition("/")[0] in layers
    ]
    known = {file.path for file in files}
    declared: dict[str, str] = {}
    for file in files:
        if file.header:
            declared |= {name: file.module for _, name, _ in _functions(file.code)}
    public = {name for name, module in declared.items() if module in lowest}
    for file in files:
        if file.module in lowest:
            continue
        edges = structure.edges[file.module]  # a module that depends on nothing is one, too
        for include in file.includes:
            if include not in known:
                structure.faults.append(f"{file.path} includes {include}, which is in no layer")
            elif include.rsplit(".", 1)[0] not in {file.module, *lowest}:
                edges.add(include.rsplit(".", 1)[0])
        structure.faults += _own_functions(file, declared, public, layers[-1])
        structure.faults += _calls(file, declared, public)
    return structure


def _own_functions(
    file: _CFile, declared: dict[str, str], public: set[str], top: str
) -> Iterator[str]:
    for before, name, body in _functions(file.code):
        hidden = file.static & set(_WORD.findall(before))
        if hidden or (file.header and not body):
            continue
        if name in public:
            if not file.path.startswith(f"{top}/"):
                yield f"{file.path} defines {name}, which only {top}/ may"
            continue
        if not body:
            yield f"{file.path} declares {name} by itself instead of including its header"
        elif declared.get(name) != file.module:
            yield f"{file.path} defines {name}, which is not declared in its header"


def _calls(file: _CFile, declared: dict[str, str], public: set[str]) -> Iterator[str]:
    """Functions of others, whose headers the file includes by itself or by its own header."""
    included = {file.module, *(include.rsplit(".", 1)[0] for include in file.includes)}
    local = {name for _, name, _ in _functions(file.code)}
    used = {name for pair in _CALL.findall(file.code) for name in pair}
    for name in sorted(used & set(declared) - public - local):
        if declared[name] not in included:
            yield f"{file.path} calls {name} without including {declared[name]}.h"
