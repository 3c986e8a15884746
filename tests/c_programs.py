"""Build and run the C tests of tests/c from pytest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "c"
SKIPPED = 77
#: `make asan` and `make ubsan` run these, too.
SANITIZERS = [pytest.param(name, marks=pytest.mark.rest) for name in ("address", "undefined")]


def run_c_program(name: str, sanitize: str = "") -> str:
    """Run tests/c/NAME.c, built with a sanitizer ("address", "undefined", "thread") or none.

    Fails the test with the program's output when the program fails, skips it when the program
    skipped everything or when this machine cannot build it. Returns what the program printed.
    """
    target = build_c_program(name, sanitize)
    done = subprocess.run([target], capture_output=True, text=True, cwd=HERE)
    output = done.stdout + done.stderr
    if done.returncode == SKIPPED:
        pytest.skip(output)
    if done.returncode != 0:
        pytest.fail(f"{name} ended with status {done.returncode}:\n{output}", pytrace=False)
    return output


def build_c_program(name: str, sanitize: str = "") -> Path:
    """Build one program of tests/c by its Makefile and return its path."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("needs make and a C compiler")
    if sanitize and not _sanitizer_works(sanitize):
        pytest.skip(f"this compiler has no {sanitize} sanitizer")
    target = f"build/{sanitize or 'plain'}/{name}"
    command = ["make", "-s", "-C", str(HERE), f"SANITIZE={sanitize}", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{name} does not build:\n{done.stdout}{done.stderr}", pytrace=False)
    return HERE / target


def _sanitizer_works(sanitize: str) -> bool:
    """Tell whether a program that does nothing links and runs under the sanitizer."""
    command = ["cc", f"-fsanitize={sanitize}", "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(
        command, input="int main(void) { return 0; }", text=True, capture_output=True
    )
    return done.returncode == 0
