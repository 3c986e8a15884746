"""A pytest plugin for the guest, where everything takes ten to thirty times longer."""

from __future__ import annotations

import pytest

FACTOR = 15


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stretch the time limits that tests set for themselves."""
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker is not None and marker.args:
            item.add_marker(pytest.mark.timeout(marker.args[0] * FACTOR), append=False)
