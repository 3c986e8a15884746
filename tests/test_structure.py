"""The sources lie in layers: nothing knows of a layer above its own, and nothing knows itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.structure import read_c

ROOT = Path(__file__).parents[1]
# From the ground up.
C_LAYERS = ("base", "os", "store", "freeze", "pages", "merge", "scan", "python", "engine")
C_GROUND = ("ksmpy.h", "ksmpy.cdef.h")


def test_c_files_know_only_what_lies_below_them() -> None:
    """Includes and calls go down, in no circle, and by the header of whoever is called."""
    assert read_c(ROOT / "csrc", C_LAYERS, C_GROUND).wrong() == []


def _tree(folder: Path, **more: str) -> Path:
    """Two layers of two modules each, `more` added to the end of some files."""
    files = {
        "low/a.h": "int a(int x);",
        "low/a.c": '#include "low/a.h"\nint a(int x)\n{\n    return x;\n}',
        "low/b.h": "struct b {\n    int (*call)(int x);\n};\nint b(void);",
        "low/b.c": '#include "low/b.h"\n#include "low/a.h"\nint b(void)\n{\n    return a(1);\n}',
        "top/c.h": "int c(void);",
        "top/c.c": '#include "top/c.h"\n#include "low/b.h"\nint c(void)\n{\n    return b();\n}',
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        extra = more.get(path.replace("/", "_").replace(".", "_"), "")
        (folder / path).write_text(f"{text}\n{extra}\n")
    return folder


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("low_a_c", '#include "top/c.h"', "upward: low/a -> top/c"),
        ("low_a_h", '#include "low/b.h"', "circle: low/a <-> low/b"),
        ("top_c_c", "int d(int x)\n{\n    return a(x);\n}", "calls a without including low/a.h"),
        ("top_c_c", "int e(void)\n{\n    return 0;\n}", "defines e, which is not declared"),
        ("top_c_h", "int b(void);", "low/b.c defines b, which is not declared"),
        ("top_c_c", "int a(int x);", "declares a by itself"),
        ("top_c_c", '#include "else/f.h"', "includes else/f.h, which is in no layer"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, file: str, text: str, said: str) -> None:
    """Each kind of fault is found in a tree that has it, and none in one that has not."""
    assert read_c(_tree(tmp_path), ("low", "top"), ()).wrong() == []
    wrong = read_c(_tree(tmp_path, **{file: text}), ("low", "top"), ()).wrong()
    assert any(said in each for each in wrong), wrong


def test_only_the_top_implements_what_is_public(tmp_path: Path) -> None:
    """What a header below all layers declares is defined in the highest one, or it is a fault."""
    tree = _tree(tmp_path, top_c_c="int api(void)\n{\n    return 0;\n}")
    (tree / "api.h").write_text("int api(void);\n")
    assert read_c(tree, ("low", "top"), ("api.h",)).wrong() == []
    tree = _tree(tmp_path, low_a_c="int api(void)\n{\n    return 0;\n}")
    wrong = read_c(tree, ("low", "top"), ("api.h",)).wrong()
    assert wrong == ["low/a.c defines api, which only top/ may"]
