"""Compiles the helpers that are written in C, once for each state of their source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from .patience import patience

FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


def _cache() -> Path:
    path = Path(tempfile.gettempdir()) / f"ksmpy-tests-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _digest(source: Path, flags: tuple[str, ...]) -> str:
    """Of the source and of every header beside it, which it may include."""
    files = [source, *sorted(source.parent.glob("*.h"))]
    text = b"".join(file.read_bytes() for file in files) + " ".join(flags).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def shared_library(name: str, *more: str) -> Path:
    """The path of the shared library built from ``support/<name>.c``; skips without a compiler.

    `more` flags are for the compiler, after its usual ones.
    """
    return _built(name, ".so", *FLAGS, "-shared", "-fPIC", *more)


def program(name: str, *more: str) -> Path:
    """As shared_library(), of a program."""
    return _built(name, "", *FLAGS, *more)


def _built(name: str, suffix: str, *flags: str) -> Path:
    source = Path(__file__).with_name(f"{name}.c")
    target = _cache() / f"{name}-{_digest(source, flags)}{suffix}"
    if target.exists():
        return target
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    scratch = target.with_suffix(f".{os.getpid()}")
    command = [compiler, str(source), *flags, "-o", str(scratch), "-ldl"]
    subprocess.run(command, check=True, timeout=patience(120))
    scratch.rename(target)
    return target
