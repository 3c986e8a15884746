"""The command line of `tests.mutants`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import workshop
from .mutant import Mutant, all_mutants
from .workshop import BuildError, Verdict

#: What becomes of a mutant; of these, the first two are as they should be.
KILLED, SKIPPED, SURVIVES, BROKEN = "killed", "skipped", "SURVIVES", "BROKEN"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="Take safeguards out of the engine, one at a time, in a copy of the tree, and"
        " run the tests that hold them, which must fail. Exit code 1 if one does not, or if an"
        " entry of the list does not fit the sources any more.",
    )
    parser.add_argument(
        "words", nargs="*", help="only those whose name, file or tests have one of these in it"
    )
    parser.add_argument("--quick", action="store_true", help="only a handful, the quickest")
    parser.add_argument("--list", action="store_true", help="say which there are, and run nothing")
    parser.add_argument("--check", action="store_true", help="only whether they fit the sources")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="at a time (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[Mutant]:
    def fits(mutant: Mutant) -> bool:
        text = "\n".join((mutant.name, mutant.file, *mutant.tests))
        return not options.words or any(word in text for word in options.words)

    return [m for m in all_mutants() if fits(m) and (m.quick or not options.quick)]


def _try_out(mutant: Mutant, pristine: Path, sound: dict[str, Verdict]) -> tuple[str, str]:
    """What becomes of it, and why."""
    with tempfile.TemporaryDirectory(prefix="ksmpy-mutant-") as folder:
        root = Path(folder) / "tree"
        shutil.copytree(pristine, root, symlinks=True)
        try:
            (root / mutant.file).write_text(mutant.applied(root))
            workshop.build(root, mutant.tests)
            passed = [
                test
                for test in mutant.tests
                if sound[test] is Verdict.PASSED and workshop.run(root, test) is Verdict.PASSED
            ]
        except (ValueError, BuildError) as error:
            return BROKEN, str(error)
    skipped = [test for test in mutant.tests if sound[test] is Verdict.SKIPPED]
    if passed:
        return SURVIVES, ", ".join(passed)
    if len(skipped) == len(mutant.tests):
        return SKIPPED, "this machine cannot run its tests"
    return KILLED, ", ".join(test for test in mutant.tests if test not in skipped)


def _run_all(mutants: list[Mutant], pristine: Path, pool: ThreadPoolExecutor) -> bool:
    """Whether each is as it should be, and each test passes without an edit."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    workshop.copy_tree(pristine)
    workshop.build(pristine, tests)
    sound = dict(
        zip(tests, pool.map(lambda test: workshop.run(pristine, test), tests), strict=True)
    )
    failed = [test for test, verdict in sound.items() if verdict is Verdict.FAILED]
    if failed:
        print(f"fails without any edit: {', '.join(failed)}")
        return False
    good = True
    results = pool.map(lambda mutant: _try_out(mutant, pristine, sound), mutants)
    for mutant, (what, why) in zip(mutants, results, strict=True):
        print(f"{what:8}  {mutant.file}: {mutant.name}  ({why})", flush=True)
        good = good and what in (KILLED, SKIPPED)
    return good


def _check(mutants: list[Mutant]) -> bool:
    """Whether each edit can be made, and its tests are there."""
    good = True
    for mutant in mutants:
        try:
            mutant.applied(workshop.ROOT)
            for test in mutant.tests:
                workshop.find(test)
        except ValueError as error:
            print(f"{mutant.file}: {mutant.name}: {error}")
            good = False
    return good


def main(arguments: list[str]) -> int:
    """The exit code."""
    options = _parse(arguments)
    mutants = _chosen(options)
    started = time.monotonic()
    if options.list or not mutants:
        for mutant in mutants:
            print(f"{mutant.file}: {mutant.name}  ({', '.join(mutant.tests)})")
        return 0 if mutants else 2
    if options.check:
        return 0 if _check(mutants) else 1
    with (
        tempfile.TemporaryDirectory(prefix="ksmpy-mutants-") as folder,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        pristine = Path(folder) / "tree"
        pristine.mkdir()
        try:
            good = _run_all(mutants, pristine, pool)
        except BuildError as error:
            print(error)
            good = False
    print(f"{len(mutants)} mutants in {time.monotonic() - started:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
