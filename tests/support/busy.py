"""A program that merges and unmerges without end, for whoever attaches to it from outside.

``python -m support.busy FREEZE TRACKING`` prints a line once it is under way, and whenever it has
got on; it ends with exit code 0 when its standard input ends and no byte was ever wrong.
"""

from __future__ import annotations

import sys
import threading

import ksmpy

from . import memory

PAGES = 512


def _read_stdin(done: threading.Event) -> None:
    sys.stdin.read()
    done.set()


def main() -> None:
    """Merge, write, unmerge; verify everything each time."""
    freeze, tracking = sys.argv[1:]
    done = threading.Event()
    threading.Thread(target=_read_stdin, args=(done,), daemon=True).start()
    one = memory.distinct(PAGES)
    two = memory.twin(one)
    wanted = one.copy()
    with ksmpy.Engine(freeze=freeze, tracking=tracking) as engine:
        engine.register(one)
        region = engine.register(two)
        for turn in range(1 << 30):
            engine.scan(2, eager=True)
            two[:: 4096 * 3] += 1
            wanted_two = wanted.copy()
            wanted_two[:: 4096 * 3] += 1
            engine.scan(1, eager=True)
            region.unmerge()
            assert (one == wanted).all() and (two == wanted_two).all(), turn
            two[:: 4096 * 3] -= 1
            print(turn, flush=True)
            if done.is_set():
                return


if __name__ == "__main__":
    main()
