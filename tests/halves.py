"""Runs the suite in two halves side by side (pytest --half), and shows one after the other.

What changes the kernel's settings is all in the first one, see tests/support/short.py.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile

NO_TESTS = 5  # pytest's exit status where none was asked for in this half


def _wait(half: subprocess.Popen[bytes]) -> int:
    """Its exit status. Ctrl-C goes to the halves, too, which put back what they have changed."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return half.wait()


def main() -> int:
    """The exit status of the half that failed, or 0."""
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryFile() as output:
        halves = [
            subprocess.Popen([*command, "--half=1"]),
            subprocess.Popen([*command, "--half=2"], stdout=output, stderr=subprocess.STDOUT),
        ]
        codes = [_wait(half) for half in halves]
        output.seek(0)
        shutil.copyfileobj(output, sys.stdout.buffer)
    failed = [code for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


if __name__ == "__main__":
    sys.exit(main())
