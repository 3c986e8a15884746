"""What the log ("ksmpy") says of a program's engines: each thing once in a process, and not again
in its forked children.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ksmpy.engine.stats import ScanResult
    from ksmpy.store.store import Store

__all__ = ["adopts_objects_only", "fell_back", "hand_on", "keep_apart", "scanned"]

_log = logging.getLogger("ksmpy")

_said: dict[tuple[str, str], object] = {}
_kept_apart = False


def keep_apart() -> None:
    """Keep the log from the root logger's handlers; its own handlers get it still.

    A program that does not know of ksmpy may print whatever comes there, in the midst of what
    others read: pip does, to its standard output.
    """
    global _kept_apart
    if _log.propagate:
        _kept_apart, _log.propagate = True, False


def hand_on() -> None:
    """Let the root logger's handlers have it again, as the program has asked for an engine."""
    global _kept_apart
    if _kept_apart:
        _kept_apart, _log.propagate = False, True


def _once(level: int, what: str, whose: str, message: str, *arguments: object) -> None:
    mine = object()
    # This is one atomic operation, since two threads may find the same thing at the same time.
    if _said.setdefault((what, whose), mine) is mine:
        _log.log(level, message, *arguments)


def scanned(result: ScanResult, store: Store | None) -> None:
    """Say what a scan has met for the first time: merged pages, want of mappings or of memory."""
    name = "a private store" if store is None else str(store)
    if result.merged:
        _once(logging.INFO, "merged", name, "merged the first %d pages, in %s", result.merged, name)
    if result.no_budget:
        _once(
            logging.WARNING,
            "mappings",
            "",
            "mappings are scarce: %d pages were not merged; raise vm.max_map_count (root) or"
            " knobs.vma_share_percent",
            result.no_budget,
        )
    if result.no_memory:
        _once(
            logging.WARNING,
            "memory",
            name,
            "%s is full: %d pages were not merged; it lacks memory, room on its file system, or"
            " file size (ulimit -f)",
            name,
            result.no_memory,
        )


def fell_back(freeze: str, tracking: str) -> None:
    """Say what "auto" has chosen for want of something better."""
    if freeze == "signal":
        _once(
            logging.INFO,
            "freeze",
            "",
            "pages are frozen by signal: there is no userfaultfd here (ksmpy doctor)",
        )
    if tracking == "checksum":
        _once(
            logging.INFO,
            "tracking",
            "",
            "each pass reads all pages: nothing here tells what was written (ksmpy doctor)",
        )


def adopts_objects_only() -> None:
    """Say that memory is not adopted by mapping, though that was asked for."""
    _once(
        logging.INFO,
        "adopt",
        "",
        "only what Python objects have is adopted: without userfaultfd nothing tells what its"
        " owner gives back",
    )
