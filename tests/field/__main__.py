"""A table of what `ksmpy run` saves in programs that know nothing of it.

python -m tests.field [--mebibytes 256] [--workers 4] [--nobody] [NAME...]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from .measure import HEAD, Measured, measure
from .programs import PROGRAMS


def main() -> int:
    """Measure those that are wanted, and print a row for each."""
    parser = argparse.ArgumentParser(description="unchanged programs under `ksmpy run`")
    parser.add_argument("names", nargs="*", help="programs whose names begin so; all if none")
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--nobody", action="store_true", help="as an ordinary user")
    parser.add_argument("--adopt", default=None)
    options = parser.parse_args()
    wrong = 0
    print(HEAD, flush=True)
    for program in PROGRAMS:
        if options.names and not program.name.startswith(tuple(options.names)):
            continue
        missing = [name for name in program.needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"| {program.name} | {', '.join(missing)} is not installed |", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            told = ("--adopt", options.adopt) if options.adopt else ()
            try:
                row: object = measure(
                    program, Path(folder), options.mebibytes, options.workers, told, options.nobody
                )
            except AssertionError as error:
                row, wrong = f"| {program.name} | {error} |", 1
        print(row.row() if isinstance(row, Measured) else row, flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
