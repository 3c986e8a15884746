"""A table of what programs pay for `ksmpy run`, beside themselves without it.

python -m bench.programs [--rounds 5] [--option=--sleep-millisecs=5] [NAME...]

Each program is run without and with ksmpy in turn, and prints the same both times, or there is an
error. Figures are medians, in brackets the least and the most.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

APPS = Path(__file__).parent / "apps"
NEEDS = {"tables": "pandas", "frames": "cv2", "web": "gunicorn"}
#: Of libraries that would share the machine's processors with ksmpy's threads.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """How a figure is shown: its unit is worth `scale` of what was measured, in seconds or one."""

    name: str
    unit: str
    scale: float
    digits: int

    def show(self, values: Sequence[float]) -> str:
        """The median, and between what it lies."""
        least, mid, most = (f(values) / self.scale for f in (min, median, max))
        return f"{mid:.{self.digits}f} ({least:.{self.digits}f} to {most:.{self.digits}f})"


ROWS = {
    "processor": Row("processor time", "s", 1.0, 2),
    "wall": Row("time", "s", 1.0, 2),
    "faults": Row("page faults", "thousand", 1e3, 1),
    "p50": Row("answers, 50 %", "ms", 1e-3, 2),
    "p99": Row("answers, 99 %", "ms", 1e-3, 2),
    "p99.9": Row("answers, 99.9 %", "ms", 1e-3, 2),
    "longest": Row("longest answer", "ms", 1e-3, 1),
}


def run(command: Sequence[str], folder: Path) -> tuple[Figures, bytes]:
    """What a command and all below it took, and what it printed."""
    file = folder / "figures"
    file.unlink(missing_ok=True)
    environment = {**os.environ, **ONE_THREAD, "FIGURES": str(file), "HOME": str(folder)}
    begin = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=folder)
    assert process.stdout is not None
    with process.stdout:
        printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AssertionError(f"{command} ended with {process.returncode}")
    figures = {
        "processor": usage.ru_utime + usage.ru_stime,
        "wall": perf_counter() - begin,
        "faults": float(usage.ru_minflt),
    }
    if file.exists():
        figures |= json.loads(file.read_text())
    return figures, printed


def measure(app: Path, ways: Sequence[Sequence[str]], rounds: int) -> list[list[Figures]]:
    """Run a program each way in turn: for each way the figures of all rounds."""
    found: list[list[Figures]] = [[] for _ in ways]
    expected: bytes | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            for way, of_way in zip(ways, found, strict=True):
                figures, printed = run([*way, sys.executable, str(app)], folder)
                expected = printed if expected is None else expected
                if printed != expected:
                    raise AssertionError(f"{app.stem} printed {printed!r} and {expected!r}")
                of_way.append(figures)
    return found


def rows(name: str, found: Sequence[Sequence[Figures]]) -> list[str]:
    """The lines of the table about one program."""
    lines = []
    for key, row in ROWS.items():
        if all(key in figures for of_way in found for figures in of_way):
            values = [[figures[key] for figures in of_way] for of_way in found]
            cells = [row.show(each) for each in values]
            ratio = median(values[1]) / median(values[0])
            lines.append(f"| {name} | {row.name}, {row.unit} | {' | '.join(cells)} | {ratio:.2f} |")
    return lines


def main() -> int:
    """Measure those that are wanted, and print some rows for each."""
    names = sorted(path.stem for path in APPS.glob("*.py"))
    parser = argparse.ArgumentParser(prog="python -m bench.programs")
    parser.add_argument("names", nargs="*", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--option", action="append", default=[], help="one for `ksmpy run`")
    options = parser.parse_args()
    ksmpy = (sys.executable, "-m", "ksmpy", "run")
    ways: list[Sequence[str]] = [(), (*ksmpy, "--")]
    heads = ["without", "ksmpy run"]
    if options.option:
        ways.append((*ksmpy, *options.option, "--"))
        heads.append(" ".join(options.option))
    print(f"| program | what | {' | '.join(heads)} | ratio |\n|---|---|{'---|' * len(ways)}---|")
    for name in options.names or names:
        needed = NEEDS.get(name)
        if needed and importlib.util.find_spec(needed) is None:
            print(f"| {name} | {needed} is not installed |", flush=True)
            continue
        found = measure(APPS / f"{name}.py", ways, options.rounds)
        print("\n".join(rows(name, found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
