"""pytest: ``pytest -p ksmpy.integrations.pytest --ksmpy`` says what fixtures hold twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ksmpy.text import human_bytes
from ksmpy.watch.estimate import Estimate
from ksmpy.whole.estimator import estimate

__all__ = ["pytest_addoption", "pytest_fixture_setup", "pytest_terminal_summary"]

_LISTED = 10

_most: dict[str, tuple[int, str]] = {}
"""By the fixtures that were alive together: what could be saved, and where it was seen."""
_alive: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """--ksmpy, without which nothing is looked at."""
    parser.getgroup("ksmpy").addoption(
        "--ksmpy",
        action="store_true",
        help="say how much memory fixtures that are alive together hold more than once",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Iterator[None]:
    """Note what it has made, until its end, and look at all that is alive."""
    outcome = yield
    if not request.config.getoption("--ksmpy") or outcome.excinfo is not None:  # type: ignore[attr-defined]
        return
    name = fixturedef.argname
    _alive[name] = outcome.get_result()  # type: ignore[attr-defined]
    fixturedef.addfinalizer(lambda: _alive.pop(name, None))
    _look(request.node.nodeid)


def _look(where: str) -> None:
    found: Estimate = estimate(dict(_alive))
    if found.saved_bytes:
        names = ", ".join(sorted({_fixture(each.name) for each in found.buffers if each.pages}))
        if found.saved_bytes > _most.get(names, (0, ""))[0]:
            _most[names] = found.saved_bytes, where


def _fixture(name: str) -> str:
    """The fixture that a buffer is in: the key, in its name, of the dict that was looked at."""
    return name.partition("['")[2].partition("']")[0] or name


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was found, the most first."""
    if not _most:
        return
    terminalreporter.section("ksmpy: equal memory in fixtures")
    for names, (nbytes, where) in sorted(_most.items(), key=lambda item: -item[1][0])[:_LISTED]:
        terminalreporter.write_line(f"{human_bytes(nbytes):>10}  {names}  (at {where})")
