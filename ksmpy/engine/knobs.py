"""The knobs: the kernel's names, ranges and error codes.

The knobs are those of /sys/kernel/mm/ksm; what a value means stands in the kernel's
Documentation/admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol

from ksmpy.engine.advisor import Limits
from ksmpy.errors import KnobError
from ksmpy.native import FREEZES, KNOB_NUMBERS, TRACKINGS

__all__ = ["ADVISOR_MODES", "KNOBS", "Knobs", "Settings", "check_modes"]

UINT_MAX = 2**32 - 1
ULONG_MAX = 2**64 - 1


ADVISOR_MODES = ("none", "scan-time")

# The kernel's 100 pages are 400 KiB each 20 ms, 20 MiB/s: minutes before anything merges. 4096
# pages are read and hashed in about 2 ms, so a first pass goes on at some 0.7 GiB/s for a tenth
# of a core, and a batch still ends well within the 100 ms that stopping may take.
PAGES_TO_SCAN = 4096
SLEEP_MILLISECS = 20


@dataclass(frozen=True, slots=True)
class Knob:
    """An integer knob: default, and the range outside of which EINVAL is raised."""

    default: int
    low: int = 0
    high: int = UINT_MAX


KNOBS: dict[str, Knob] = {
    "run": Knob(0, 0, 2),
    "pages_to_scan": Knob(PAGES_TO_SCAN),
    "sleep_millisecs": Knob(SLEEP_MILLISECS),
    "merge_across_nodes": Knob(1, 0, 1),
    "max_page_sharing": Knob(256, 2, 2**31 - 1),
    "stable_node_chains_prune_millisecs": Knob(2000),
    "use_zero_pages": Knob(1, 0, 1),
    "smart_scan": Knob(1, 0, 1),
    "advisor_target_scan_time": Knob(200, 1, ULONG_MAX),
    "advisor_max_cpu": Knob(70, 0, ULONG_MAX),
    "advisor_min_pages_to_scan": Knob(500, 0, ULONG_MAX),
    "advisor_max_pages_to_scan": Knob(30000, 0, ULONG_MAX),
    "vma_share_percent": Knob(50, 1, 100),
}

_SWITCHES = {"run", "merge_across_nodes", "use_zero_pages", "smart_scan"}


def check_modes(freeze: str, tracking: str) -> None:
    """ValueError for words that are no way of freezing, or of tracking."""
    for option, word, words in (("freeze", freeze, FREEZES), ("tracking", tracking, TRACKINGS)):
        if word not in words:
            raise ValueError(f"{option} must be one of {', '.join(words)}, not {word!r}")


class Backend(Protocol):
    """What the knobs act upon: an engine."""

    def set_run(self, value: int) -> None:
        """Start, stop, or stop and unmerge."""

    def get_run(self) -> int:
        """The present value of run."""

    def get_native(self, knob: int) -> int:
        """The value of a knob that the native engine keeps."""

    def set_native(self, knob: int, value: int) -> None:
        """Set a knob that the native engine keeps."""

    def require_open(self) -> None:
        """Raise KsmpyError when closed, or inherited by fork with a private store."""


@dataclass(slots=True)
class Settings:
    """The knobs that live in Python: what an engine remembers of them."""

    mode: str = "none"
    values: dict[str, int] = field(
        default_factory=lambda: {n: k.default for n, k in KNOBS.items() if n not in KNOB_NUMBERS}
    )


class Knobs:
    """The knobs of one engine, as attributes: `engine.knobs.run = 1`.

    Values are ints, or bools where a knob is a switch (run, merge_across_nodes, use_zero_pages,
    smart_scan); `advisor_mode` is "none" or "scan-time"; another type is a TypeError.
    A value that the kernel would refuse raises KnobError, an OSError and ValueError, with the
    kernel's errno: EINVAL when it is out of range, EBUSY when something is still shared.
    """

    __slots__ = ("_backend", "_settings")

    _backend: Backend
    _settings: Settings

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    merge_across_nodes: int
    max_page_sharing: int
    stable_node_chains_prune_millisecs: int
    use_zero_pages: int
    smart_scan: int
    advisor_target_scan_time: int
    advisor_max_cpu: int
    advisor_min_pages_to_scan: int
    advisor_max_pages_to_scan: int
    vma_share_percent: int
    advisor_mode: str

    def __init__(self, backend: Backend, settings: Settings) -> None:
        object.__setattr__(self, "_backend", backend)
        object.__setattr__(self, "_settings", settings)

    def __getattr__(self, name: str) -> int | str:
        if name not in KNOBS and name != "advisor_mode":
            raise AttributeError(_unknown(name))
        if name == "run":
            return self._backend.get_run()
        self._backend.require_open()
        if name == "advisor_mode":
            return self._settings.mode
        if name in KNOB_NUMBERS:
            return self._backend.get_native(KNOB_NUMBERS[name])
        return self._settings.values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "advisor_mode":
            self._set_mode(value)
            return
        if name not in KNOBS:
            raise AttributeError(_unknown(name))
        value = _checked(name, value)
        self._backend.require_open()
        if name == "run":
            self._backend.set_run(value)
        elif name in KNOB_NUMBERS:
            self._backend.set_native(KNOB_NUMBERS[name], value)
        elif name == "pages_to_scan" and self._settings.mode != "none":
            raise KnobError(errno.EINVAL, "pages_to_scan follows the advisor: advisor_mode is set")
        else:
            self._settings.values[name] = value

    def __delattr__(self, name: str) -> None:
        raise AttributeError("knobs cannot be deleted")

    def __dir__(self) -> list[str]:
        return sorted([*KNOBS, "advisor_mode", "asdict"])

    def __repr__(self) -> str:
        return f"Knobs({', '.join(f'{k}={v!r}' for k, v in self.asdict().items())})"

    def asdict(self) -> dict[str, int | str]:
        """Every knob and its value."""
        values: dict[str, int | str] = {name: getattr(self, name) for name in KNOBS}
        values["advisor_mode"] = self._settings.mode
        return values

    def advised(self, pages_to_scan: int) -> None:
        """Set pages_to_scan on the advisor's behalf."""
        self._settings.values["pages_to_scan"] = pages_to_scan

    def limits(self) -> Limits:
        """The advisor's own knobs."""
        return Limits(
            self.advisor_target_scan_time,
            self.advisor_max_cpu,
            self.advisor_max_pages_to_scan,
        )

    def _set_mode(self, value: object) -> None:
        if not isinstance(value, str):
            raise TypeError(f"advisor_mode must be a str, not {type(value).__name__}")
        if value not in ADVISOR_MODES:
            raise KnobError(errno.EINVAL, f"advisor_mode must be one of {', '.join(ADVISOR_MODES)}")
        self._backend.require_open()
        if value == self._settings.mode:
            return
        # As set_advisor_defaults() of the kernel: each mode starts from its own rate.
        self._settings.mode = value
        self._settings.values["pages_to_scan"] = (
            self._settings.values["advisor_min_pages_to_scan"]
            if value == "scan-time"
            else PAGES_TO_SCAN
        )


def _is_bool(value: object) -> bool:
    """numpy's, too, which some versions take for a number with a warning, and others refuse to."""
    kind = type(value)
    return kind is bool or f"{kind.__module__}.{kind.__name__}" in ("numpy.bool", "numpy.bool_")


def _checked(name: str, value: object) -> int:
    knob = KNOBS[name]
    if _is_bool(value) and name in _SWITCHES:
        value = bool(value)
    elif _is_bool(value) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = index(value)  # type: ignore[arg-type]
    if not knob.low <= number <= knob.high:
        raise KnobError(errno.EINVAL, f"{name} must be {knob.low} to {knob.high}, not {number}")
    return number


def _unknown(name: str) -> str:
    return f"no knob {name!r}; there are {', '.join([*KNOBS, 'advisor_mode'])}"
