"""Runs a scenario again and again with one more of the extension's calls failing each time.

``python -m support.injection_run SCENARIO FREEZE TRACKING FIRST VARIANT PERSISTENT SAMPLES`` prints
one JSON object a line: the calls of an undisturbed run; then, for each failing call, that it
begins and how it went. A line that begins and does not end tells which call killed the process.
SAMPLES limits how many calls from the same place of the code are tried, 0 tries all of them.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import scenarios
from .inject import Call, Injector
from .patience import patience

#: A run that takes longer hangs, in seconds.
PATIENCE = patience(30)


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _guarded(scenario: scenarios.Scenario, disturb: AbstractContextManager[None]) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        with disturb:
            scenario.disturbed()
        scenario.recover()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _chosen(calls: list[Call], samples: int) -> list[Call]:
    """At most so many calls from each place, the first and the last one among them."""
    places: dict[tuple[str, int], list[Call]] = {}
    for call in calls:
        places.setdefault((call.kind, call.site), []).append(call)
    chosen: list[Call] = []
    for same in places.values():
        step = max(1, (len(same) - 1) // max(1, samples - 1)) if samples else 1
        chosen += same if not samples else [*same[:-1:step][: samples - 1], same[-1]]
    return sorted(chosen, key=lambda call: call.number)


def main(argv: list[str]) -> None:
    """Count, then fail the calls one by one."""
    name, freeze, tracking = argv[:3]
    first, variant, persistent, samples = (int(text) for text in argv[3:7])
    make = scenarios.SCENARIOS[name]
    _guarded(make(freeze, tracking), nullcontext())  # lazy imports and allocations are over then
    injector = Injector()
    _guarded(make(freeze, tracking), injector.counting())
    calls = injector.calls()
    _say(calls=len(calls), kinds=sorted({call.kind for call in calls}))
    for call in _chosen(calls, samples):
        if call.number < first or (variant and variant >= injector.variants(call.kind)):
            continue
        _say(begins=call.number, kind=call.kind, site=hex(call.site))
        scenario = make(freeze, tracking)
        problem = None
        try:
            _guarded(scenario, injector.failing(call.number, variant, bool(persistent)))
        except Exception:
            problem = traceback.format_exc(limit=-4)
        _say(ends=call.number, problem=problem, refused=scenario.refusals)


if __name__ == "__main__":
    main(sys.argv[1:])
