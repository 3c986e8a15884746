"""What the pages for users show is run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import ksmpy

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    if "```python" in page.read_text(encoding="utf-8")
]


def test_the_source_archive_has_every_page() -> None:
    """What lies beside README.md for people is in what an index gives them."""
    named = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").split()
    pages = {path.name for kind in ("*.md", "*.cff") for path in ROOT.glob(kind)}
    assert pages - set(named) == {"README.md"}  # pyproject.toml names that one


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_code_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page share their names, as when they are typed in from top to bottom."""
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(page)
    document.namespace.update(ksmpy=ksmpy, np=np)
    examples = list(document)
    with TemporaryDirectory(dir="/dev/shm") as stores:
        monkeypatch.setenv("KSMPY_STORE_DIR", stores)
        try:
            for example in examples:
                example.evaluate()
        finally:
            ksmpy.disable()
    assert examples
