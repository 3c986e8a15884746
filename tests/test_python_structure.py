"""The Python package's layers: nothing imports from a layer above, or itself by way of others."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import ksmpy
from ksmpy import threads
from support.imports import read_python

#: From the ground up.
LAYERS = (
    "ksmpy.errors",
    "ksmpy.own",
    "ksmpy.text",
    "ksmpy.threads",
    "ksmpy.context",
    "ksmpy.proc",
    "ksmpy.saving",
    "ksmpy.limits",
    "ksmpy.native",
    "ksmpy.store",
    "ksmpy.memory",
    "ksmpy.engine",
    "ksmpy.watch",
    "ksmpy.whole",
    "ksmpy.integrations",
    "ksmpy",
    "ksmpy.demo",
    "ksmpy.cli",
    "ksmpy.__main__",
)
ROOT = Path(ksmpy.__file__).parent


def test_no_module_imports_from_above() -> None:
    """Imports inside functions count as any others."""
    package = read_python(ROOT, LAYERS)
    edges = package.edges
    assert len(edges) > 50 and sum(map(len, edges.values())) > 150, "it has looked elsewhere"
    assert package.upward() == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Nor do two modules of one layer."""
    assert read_python(ROOT, LAYERS).circles() == []


def test_each_module_has_a_layer() -> None:
    """What lies in the package itself is named among the layers."""
    package = read_python(ROOT, LAYERS)
    own = package.layer("ksmpy")
    assert [module for module in package.edges if package.layer(module) == own] == ["ksmpy"]


def test_only_native_imports_the_extension() -> None:
    """The C interface changes in one place."""
    found = [
        path.name
        for path in ROOT.rglob("*.py")
        if "_ksmpy import" in path.read_text(encoding="utf-8")
    ]
    assert found == ["native.py"]


def test_the_signals_of_faults_are_the_same_everywhere() -> None:
    """They stand in four files that cannot import each other."""
    places = (
        ROOT / "whole/guardian.py",
        ROOT / "whole/site/sitecustomize.py",
        Path(__file__).parent.parent / "csrc/freeze/freezer.c",
    )
    pattern = re.compile(r"\b_?faults[^={]*= *[{(](.*?)[})]", re.IGNORECASE | re.DOTALL)
    lists = {place.name: pattern.search(place.read_text()) for place in places}
    found = {name: set(re.findall(r"SIG\w+", each[1])) for name, each in lists.items() if each}
    assert found == dict.fromkeys(lists, {signal.Signals(each).name for each in threads._FAULTS})


@pytest.mark.parametrize(
    ("added", "wrong"),
    [
        ("def f():\n    from ksmpy.engine import core", "upward"),
        ("import ksmpy.engine.core", "upward"),
        ("from importlib import import_module as i\nimport importlib\n"
         "importlib.import_module('ksmpy.cli')", "upward"),
        ("from . import b", "circle"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(added: str, wrong: str, tmp_path: Path) -> None:
    """Each kind of import, in a package of this shape that was right before."""
    files = {
        "__init__": "",
        "store/__init__": "",
        "store/a": "import os",
        "store/b": "from ksmpy.store.a import os",
        "engine/__init__": "",
        "engine/core": "from ksmpy.store import b",
        "cli": "import ksmpy",
    }
    root = tmp_path / "ksmpy"
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    package = read_python(root, LAYERS)
    assert (package.upward(), package.circles()) == ([], [])
    (root / "store/a.py").write_text(added)
    package = read_python(root, LAYERS)
    assert package.upward() if wrong == "upward" else package.circles()
