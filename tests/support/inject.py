"""Python's side of ``inject.c``: makes single calls of the extension fail, from inside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .build import shared_library


def preloaded(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for a child process in which calls can be made to fail."""
    return {**environ, "LD_PRELOAD": str(shared_library("inject"))}


@dataclass(frozen=True)
class Call:
    """One call that the extension made: its number from 1, its kind, and where it came from."""

    number: int
    kind: str
    site: int

    def __str__(self) -> str:
        return f"call {self.number}, {self.kind} at {self.site:#x}"


class Injector:
    """Controls the library in a process that was started with :func:`preloaded`."""

    def __init__(self, target: str = "/_ksmpy.") -> None:
        lib: Any = ctypes.CDLL(None)
        lib.inject_arm.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
        lib.inject_arm_kind.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64]
        lib.inject_calls.restype = lib.inject_fired.restype = lib.inject_site.restype = (
            lib.inject_understated.restype
        ) = ctypes.c_uint64
        lib.inject_name.restype = ctypes.c_char_p
        lib.inject_name.argtypes = lib.inject_site.argtypes = [ctypes.c_uint64]
        self._lib = lib
        assert lib.inject_target(target.encode()), f"no object {target!r} is loaded"

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count and log the extension's calls, fail none."""
        with self.failing(0):
            yield

    @contextmanager
    def failing(self, number: int, variant: int = 0, persistently: bool = False) -> Iterator[None]:
        """Let one call fail, or it and all later ones of its kind."""
        self._lib.inject_arm(number, variant, persistently)
        try:
            yield
        finally:
            self._lib.inject_disarm()

    @contextmanager
    def failing_kind(self, kind: str, variant: int = 0, nth: int = 1) -> Iterator[None]:
        """Let the nth call of a kind fail, and all later ones."""
        assert self._lib.inject_arm_kind(kind.encode(), variant, nth) == 0, f"no kind {kind!r}"
        try:
            yield
        finally:
            self._lib.inject_disarm()

    @contextmanager
    def leaving_gap(self, kind: str, nth: int) -> Iterator[None]:
        """Let the nth call of a kind fail to map something, and take away what was there."""
        number = ctypes.c_uint64(nth)
        assert self._lib.inject_leave_gap(kind.encode(), number) == 0, f"no kind {kind!r}"
        try:
            yield
        finally:
            self._lib.inject_disarm()

    @contextmanager
    def understating(self) -> Iterator[None]:
        """Let UFFDIO_MOVE move all pages and answer an error, or a smaller number."""
        self._lib.inject_understate(1)
        try:
            yield
        finally:
            self._lib.inject_understate(0)

    @property
    def understated(self) -> int:
        """How many moves succeeded since then, most of which were understated."""
        return int(self._lib.inject_understated())

    @property
    def fired(self) -> int:
        """How many calls were made to fail since the last arming."""
        return int(self._lib.inject_fired())

    def calls(self) -> list[Call]:
        """The calls since the last arming, as far as the log goes."""
        return [
            Call(n, self._lib.inject_name(n).decode(), self._lib.inject_site(n))
            for n in range(1, self._lib.inject_calls() + 1)
        ]

    def variants(self, kind: str) -> int:
        """How many different errors a kind of call can fail with."""
        return int(self._lib.inject_variants(kind.encode()))
