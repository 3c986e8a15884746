"""The command line of `tests.soak`."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ksmpy.errors import Unsupported
from ksmpy.native import FREEZES, TRACKINGS
from tests.support import swap

from .house import House, expect_clean
from .life import GENERATION, Plan, Soak
from .trouble import Trouble

#: Without one of each, nothing was proven.
NEEDED = ("switches", "refused", "forks", "merges", "increments", "moves", "looks")
#: Likewise where there is a swap area, in a run of at least so many seconds.
SWAP_NEEDED = ("swapped", "swapoffs")
SWAPS_AFTER = 20


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Switch merge_across_nodes back and forth under writers, forks, swap and"
        " migration. Exit code 1 and the state on the first violation.",
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="for all modes together (default: %(default)s)"
    )
    parser.add_argument(
        "--mode",
        default="auto",
        help='"auto", FREEZE+TRACKING, or "each": one after the other (default: %(default)s)',
    )
    parser.add_argument(
        "--interval", type=float, default=60, help="seconds between lines (default: %(default)s)"
    )
    parser.add_argument(
        "--nodes", type=int, default=4, help="on a machine with one node (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of what is chosen at random")
    parser.add_argument(
        "--folder", default=os.getcwd(), help="where a swap file may be made (default: here)"
    )
    parser.add_argument("--no-swap", action="store_true", help="do not make a swap area")
    return parser.parse_args(arguments)


def _modes(text: str) -> list[tuple[str, str]]:
    if text == "auto":
        return [("auto", "auto")]
    if text == "each":
        return [(f, t) for f in FREEZES if f != "auto" for t in TRACKINGS if t != "auto"]
    freeze, _, tracking = text.partition("+")
    if freeze not in FREEZES or tracking not in TRACKINGS:
        raise SystemExit(f"soak: no mode {text!r}")
    return [(freeze, tracking)]


@contextmanager
def _swap_file(folder: str, wanted: bool) -> Iterator[str]:
    """A file that can be swapped to, or "": it is gone in the end, whatever happened."""
    reason = swap.refusal() if wanted else "not wanted"
    if reason is not None:
        print(f"no swap area of its own: {reason}", flush=True)
        yield ""
        return
    with (
        tempfile.TemporaryDirectory(prefix="ksmpy-soak-", dir=folder) as inside,
        ExitStack() as end,
    ):
        path = ""
        try:
            path = end.enter_context(swap.place(Path(inside)))
        except (OSError, swap.Failed) as error:
            print(f"no swap area of its own: {error}", flush=True)
        yield path


class Reporter:
    """One line at each interval."""

    def __init__(self, soak: Soak, trouble: Trouble, plan: Plan, before: House) -> None:
        self._soak, self._trouble, self._plan, self._before = soak, trouble, plan, before
        self._began = time.monotonic()
        self._next = self._began + plan.interval

    def look(self) -> bool:
        """Say something if it is time; False when the time is over."""
        self._trouble.look()
        now = time.monotonic()
        if now >= self._next:
            self._next += self._plan.interval
            self.say()
        return now - self._began < self._plan.seconds

    def say(self) -> None:
        """The line."""
        soak = self._soak
        soak.count["forks"] = soak.children.born
        counts = {**soak.count, **self._trouble.done}
        house = House.now()
        print(
            f"{time.monotonic() - self._began:7.0f} s ",
            ", ".join(f"{name} {number}" for name, number in counts.items()),
            f"| children {len(soak.children)}, threads {house.threads},",
            f"mappings {house.mappings} (at first {self._before.mappings})",
            flush=True,
        )

    def proven(self) -> None:
        """AssertionError when a thing never happened."""
        counts = {**self._soak.count, **self._trouble.done}
        swaps = self._plan.swap_path and self._plan.seconds >= SWAPS_AFTER
        never = [name for name in NEEDED + (SWAP_NEEDED if swaps else ()) if not counts.get(name)]
        assert not never, f"never happened, so this proves nothing: {never}"


def _live(plan: Plan) -> None:
    """From the first buffer to an empty house."""
    before = House.now()
    _do(plan, before)
    print(f"clean: {before} before, {expect_clean(before)} after", flush=True)


def _do(plan: Plan, before: House) -> None:
    soak = Soak(plan)
    try:
        with Trouble(soak.spans, soak.topology, plan.swap_path, plan.seed) as trouble:
            reporter = Reporter(soak, trouble, plan, before)
            soak.rounds(2, lambda: True)  # even the shortest run has one of each kind
            while reporter.look():
                soak.rounds(GENERATION, reporter.look)
        soak.end()
        reporter.say()
        for what in trouble.missing:
            print(f"not part of it: {what}", flush=True)
        reporter.proven()
    except BaseException:
        soak.children.kill()
        _print_state(soak)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def _print_state(soak: Soak) -> None:
    engine = soak.engine
    print(f"VIOLATION in {engine!r}\n{dict(soak.count)}", flush=True)
    if not engine._core.closed:
        print(f"{engine.knobs}\n{engine._core._native.stats()}\n{engine.regions()}", flush=True)


def _one_mode(plan: Plan) -> int:
    """In a process of its own: 0, or 1 for a violation."""
    try:
        _live(plan)
    except Unsupported as error:
        print(f"skipped: {error}", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 1
    return 0


def _in_child(plan: Plan) -> int:
    pid = os.fork()
    if not pid:
        os._exit(_one_mode(plan))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> int:
    """0; 1 when anything was violated in any mode."""
    options = _parse(arguments)
    modes = _modes(options.mode)
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    with _swap_file(options.folder, not options.no_swap) as path:
        for freeze, tracking in modes:
            print(f"{freeze}+{tracking}, seed {seed}", flush=True)
            seconds = options.seconds / len(modes)
            plan = Plan(seconds, freeze, tracking, seed, options.interval, options.nodes, path)
            code = _in_child(plan)
            if code:
                print(f"failed: exit {code}", flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
