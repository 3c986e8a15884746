"""Fixtures that hold the same twice.

pytest -p ksmpy.integrations.pytest --ksmpy test_fixtures.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def trained() -> Any:
    """8 MiB."""
    return np.random.default_rng(0).random((1 << 20,))


@pytest.fixture
def deployed(trained: Any) -> Any:
    """The same once more: a copy where a view would do."""
    return trained.copy()


def test_they_are_equal(trained: Any, deployed: Any) -> None:
    """As they should be."""
    assert (trained == deployed).all()
