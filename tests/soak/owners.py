"""Owners that do to merged memory whatever they like, under a scanner at full speed."""

from __future__ import annotations

import argparse
import time

from ksmpy import native

from ..support.owners import Owners

UNMERGE_EVERY = 64
#: How long a torture may go on until something is merged, in seconds.
PATIENCE = 60


def torture(
    freeze: str, tracking: str, *, seconds: float, seed: int, zero_pages: bool = False
) -> str:
    """Run it; AssertionError for a wrong byte. Returns what was done, and how much was merged."""
    engine = native.NativeEngine(freeze, tracking)
    engine.knob_set(native.KNOB_NUMBERS["use_zero_pages"], int(zero_pages))
    owners = Owners(gives_back=freeze != "signal", moves=freeze == "uffd-wp", seed=seed)
    start = time.monotonic()
    merged = rounds = 0
    while not owners.failed:
        lasted = time.monotonic() - start
        if lasted > seconds and (merged or lasted > PATIENCE):
            break
        owners.follow(engine)
        merged += engine.scan(20_000, native.SCAN_EAGER)["merged"]
        rounds += 1
        if rounds % UNMERGE_EVERY == 0:
            engine.check()
            engine.unmerge()
    try:
        owners.end()
        engine.check()
    finally:
        owners.leave(engine)
        engine.close()
    owners.free()
    assert merged, "nothing was merged"
    return f"{rounds} rounds, {merged} pages merged, {owners.diary}"


def main() -> None:
    """Every way of freezing in turn, each with its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--freeze", choices=native.FREEZES[1:], action="append")
    parser.add_argument("--tracking", choices=native.TRACKINGS[1:], default="wp-async")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--zero-pages", action="store_true", help="pages of zeros become holes")
    chosen = parser.parse_args()
    ways = chosen.freeze or native.FREEZES[1:]
    for freeze in ways:
        done = torture(
            freeze,
            chosen.tracking,
            seconds=chosen.seconds / len(ways),
            seed=chosen.seed,
            zero_pages=chosen.zero_pages,
        )
        print(f"{freeze}: {done}", flush=True)


if __name__ == "__main__":
    main()
