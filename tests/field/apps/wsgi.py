"""A web application: gunicorn's."""

from __future__ import annotations

from collections.abc import Callable

import load

WEIGHTS = load.load()


def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    """Answers with a checksum."""
    body = load.check(WEIGHTS).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
