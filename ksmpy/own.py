"""Functions of the interpreter's own, even if the program has put others in their place.

Tests let others stand in for clocks, files and the process's number (unittest.mock, freezegun,
pyfakefs), which count the questions, or give answers in an order. A thread of ksmpy's that asked
those would take the answers that were meant for the program, and go by a clock that stands still.
"""

from __future__ import annotations

import _imp
import os
import time
from _io import FileIO
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from types import BuiltinFunctionType, ModuleType
from typing import Any, Final

__all__ = ["genuine", "own"]


def genuine(module: ModuleType) -> Any:
    """A fresh copy of a module that is part of the interpreter, in which nothing is replaced; where
    it is none that module itself.
    """
    spec = BuiltinImporter.find_spec(module.__name__)
    if spec is None:
        return module
    copy = _imp.create_builtin(spec)
    _imp.exec_builtin(copy)
    return copy


def _function(module: ModuleType, name: str) -> Any:
    found = getattr(module, name)
    return found if type(found) is BuiltinFunctionType else getattr(genuine(module), name)


_Clock = Callable[[], float]


class _Own:
    """As the functions of `time` and `os`. They are an object's, as freezegun and pyfakefs exchange
    what modules have by name.
    """

    def __init__(self) -> None:
        system = __import__(os.name)
        self.time: _Clock = _function(time, "time")
        self.monotonic: _Clock = _function(time, "monotonic")
        self.perf_counter: _Clock = _function(time, "perf_counter")
        self.thread_time: _Clock = _function(time, "thread_time")
        self.getpid: Callable[[], int] = _function(system, "getpid")
        self.listdir: Callable[[str], list[str]] = _function(system, "listdir")
        self.file = FileIO


own: Final = _Own()
