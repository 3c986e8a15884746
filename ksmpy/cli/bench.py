"""``ksmpy bench``."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, Parser, engine_options, size
from ksmpy.cli.output import Update, human_bytes, print_json, progress, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAGE = 4096
_PATIENCE = 120.0  # seconds that the kernel's KSM gets to merge the arrays
_TUNED = {"run": 1, "pages_to_scan": 10000, "sleep_millisecs": 0, "smart_scan": 0}


@dataclass(frozen=True)
class Row:
    """One measurement. Seconds of wall and of CPU time; pages saved, where the measurement saves
    any.
    """

    who: str
    what: str
    seconds: float
    cpu_seconds: float
    saved_pages: int = 0


class Bench(Command):
    """the benchmark's short form, beside the kernel's KSM

    Merges two equal arrays, then passes over them unchanged: with ksmpy, and with the kernel's KSM
    (tuned: pages_to_scan 10000, sleep_millisecs 0, smart_scan 0) where its settings may be
    written. They are restored.
    """

    name = "bench"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        parser.option(
            "--size", type=size, default=128 << 20, metavar="BYTES", help="of each array (128M)"
        )
        engine_options(parser)

    def run(self, options: argparse.Namespace) -> int:
        nbytes = -(-options.size // _PAGE) * _PAGE
        with progress(quiet=options.json) as update:
            update("ksmpy", 0, 1)
            rows = _ksmpy(nbytes, options.freeze, options.tracking)
            update("ksmpy", 1, 1)
            reason = _no_kernel()
            if not reason:
                rows += _kernel(nbytes, update)
        if options.json:
            report = {"array_bytes": nbytes, "rows": [asdict(row) for row in rows]}
            print_json({**report, "without_kernel": reason})
            return 0
        table(f"two equal arrays of {human_bytes(nbytes)}", _COLUMNS, [_cells(row) for row in rows])
        if reason:
            print(f"without the kernel's KSM: {reason}")
        return 0


def _no_kernel() -> str:
    """Why the kernel's KSM is not measured; empty when it is."""
    from ksmpy.watch import kernel

    state = kernel.available()
    if not state:
        return state.reason
    return "another program is measuring it" if kernel.in_use() else ""


_COLUMNS = ("", "what", "seconds", "CPU seconds", "pages saved", "us per page")


def _cells(row: Row) -> tuple[str | int | None, ...]:
    each = f"{row.seconds / row.saved_pages * 1e6:.2f}" if row.saved_pages else None
    return (
        row.who,
        row.what,
        f"{row.seconds:.4f}",
        f"{row.cpu_seconds:.4f}",
        row.saved_pages or None,
        each,
    )


def _arrays(nbytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two equal arrays in which no page occurs twice, both at the beginning of a page."""
    import numpy as np

    from ksmpy.memory.arrays import copy

    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    return copy(data), copy(data)


def _ksmpy(nbytes: int, freeze: str, tracking: str) -> list[Row]:
    from ksmpy.engine.engine import Engine

    rows = []
    with Engine(freeze=freeze, tracking=tracking) as engine:
        arrays = _arrays(nbytes)
        for what in ("merge", "pass over unchanged"):
            wall, cpu = time.perf_counter(), time.process_time()
            if what == "merge":
                for array in arrays:
                    engine.register(array)
            result = engine.scan(eager=True)
            elapsed = time.perf_counter() - wall, time.process_time() - cpu
            saved = engine.stats().pages_sharing if result.merged else 0
            rows.append(Row(f"ksmpy ({engine.freeze})", what, *elapsed, saved))
    return rows


def _kernel(nbytes: int, update: Update) -> list[Row]:
    from ksmpy.watch import kernel

    arrays = _arrays(nbytes)
    update("kernel", 0, 2)
    known = kernel.read()  # older kernels have no smart_scan
    with kernel.settings(**{name: value for name, value in _TUNED.items() if name in known}):
        wall, cpu = time.perf_counter(), kernel.ksmd_seconds()
        for array in arrays:
            kernel.mergeable(array.ctypes.data, nbytes)
        goal = nbytes // _PAGE
        while (saved := _saved_by_kernel()) < goal:
            if time.perf_counter() - wall > _PATIENCE:
                break
            time.sleep(0.001)
        elapsed = time.perf_counter() - wall, kernel.ksmd_seconds() - cpu
        update("kernel", 1, 2)
        rows = [Row("kernel", "merge", *elapsed, saved)]
        rows.append(Row("kernel", "pass over unchanged", *_kernel_pass()))
        update("kernel", 2, 2)
        for array in arrays:
            kernel.unmergeable(array.ctypes.data, nbytes)
    return rows


def _saved_by_kernel() -> int:
    """Pages saved of two equal arrays: this process's, where the kernel tells them apart."""
    from ksmpy.errors import Unsupported
    from ksmpy.watch import kernel

    try:
        return int(kernel.process_stat()["ksm_merging_pages"]) // 2
    except (Unsupported, KeyError):
        return int(kernel.read()["pages_sharing"])


def _kernel_pass(passes: int = 4) -> tuple[float, float]:
    """Wall and CPU seconds of one full scan, from the ends of several."""
    from ksmpy.watch import kernel

    def wait_for(scans: int) -> tuple[float, float, int]:
        while (now := int(kernel.read()["full_scans"])) < scans:
            time.sleep(0.001)
        return time.perf_counter(), kernel.ksmd_seconds(), now

    wall, cpu, first = wait_for(int(kernel.read()["full_scans"]) + 1)
    wall_end, cpu_end, last = wait_for(first + passes)
    return (wall_end - wall) / (last - first), (cpu_end - cpu) / (last - first)
