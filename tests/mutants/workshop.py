"""Copies of the tree in which things are built and tests are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("csrc", "ksmpy", "tests", "pyproject.toml", "setup.py")
#: How long building and one test may take, in seconds.
BUILD, PATIENCE = 300, 150
SKIPPED = 77
_C_TEST = re.compile(r"c/(test_\w+)\.c::(\w+)")


class Verdict(Enum):
    """How a test ended; one that hangs has failed."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class BuildError(Exception):
    """Something does not compile, or there is no such test; its text is the output."""


def find(test: str) -> None:
    """ValueError if this tree has no such test."""
    file, _, function = test.partition("::")
    path, name = ROOT / "tests" / file, function.partition("[")[0]
    if not path.exists() or not re.search(rf"\b{name}\(", path.read_text()):
        raise ValueError(f"there is no test {test}")


def copy_tree(root: Path) -> None:
    """What building and testing need of this tree, as it stands in the folder."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=skip, symlinks=True)
        else:
            shutil.copy2(ROOT / part, root / part)


def _run(
    command: list[str], root: Path, seconds: float, **environ: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    return subprocess.run(
        command, cwd=root, env=env, timeout=seconds, capture_output=True, text=True
    )


def _make(root: Path, *arguments: str) -> None:
    done = _run(["make", "-s", f"-j{os.cpu_count()}", *arguments], root, BUILD)
    if done.returncode:
        raise BuildError(done.stdout + done.stderr)


def build(root: Path, tests: Iterable[str]) -> None:
    """What the tests need, and of that only what has changed since the copy was built."""
    programs = sorted({match[1] for test in tests if (match := _C_TEST.fullmatch(test))})
    if programs:
        # Without warnings, which an edit may bring about.
        flags = "CFLAGS=-O1 -g -w"
        _make(root, "-C", "tests/c", flags, *(f"build/plain/{program}" for program in programs))
    if not all(map(_C_TEST.fullmatch, tests)):
        _make(
            root,
            *("-f", "tests/mutants/extension.mk", f"PYTHON={sys.executable}"),
            f"SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"INCLUDE={sysconfig.get_path('include')}",
        )


def _run_c(root: Path, program: str, function: str) -> Verdict:
    path = root / "tests/c/build/plain" / program
    done = _run([str(path)], path.parent, PATIENCE, KSMPY_TEST_ONLY=function)
    if re.search(r"^0 passed, 0 failed, 0 skipped$", done.stdout, re.MULTILINE):
        raise BuildError(f"{program}.c has no test {function}")
    if done.returncode in (0, SKIPPED):
        return Verdict.SKIPPED if done.returncode else Verdict.PASSED
    return Verdict.FAILED


def _run_python(root: Path, test: str) -> Verdict:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"timeout={PATIENCE - 30}"]
    done = _run([sys.executable, "-m", "pytest", *options, f"tests/{test}"], root, PATIENCE)
    if done.returncode == 0:
        return Verdict.PASSED if re.search(r"\d passed", done.stdout) else Verdict.SKIPPED
    if done.returncode > 1:  # not that a test failed, nor a signal
        raise BuildError(done.stdout + done.stderr)
    return Verdict.FAILED


def run(root: Path, test: str) -> Verdict:
    """One test, in a tree that was built for it."""
    match = _C_TEST.fullmatch(test)
    try:
        return _run_c(root, match[1], match[2]) if match else _run_python(root, test)
    except subprocess.TimeoutExpired:
        return Verdict.FAILED
