"""What ksmpy takes of the interpreter's is its own, whatever stands in its place."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from unittest import mock

import pytest

from ksmpy.own import own


def _imported_anew() -> ModuleType:
    spec = find_spec("ksmpy.own")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stand_in_at_the_time_of_import_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that says it is of the same kind."""
    refused = mock.Mock(side_effect=AssertionError, spec=time.monotonic)
    monkeypatch.setattr(time, "monotonic", refused)
    monkeypatch.setattr(os, "getpid", refused)
    monkeypatch.setattr(os, "listdir", refused)
    before, fresh = own.monotonic(), _imported_anew().own
    assert before <= fresh.monotonic() <= own.monotonic()
    assert fresh.getpid() == own.getpid() and str(own.getpid()) in fresh.listdir("/proc")
