"""uvicorn and other ASGI servers: ``app = ksmpy.integrations.asgi.KsmpyMiddleware(app)``.

In Starlette and FastAPI: ``app.add_middleware(KsmpyMiddleware)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ksmpy.integrations.common import enable_on

__all__ = ["KsmpyMiddleware"]


class KsmpyMiddleware:
    """Each worker process merges with the others, from its startup on, on one named store.

    `store`: a name or a Store; None is "asgi", unless KSMPY_STORE or ksmpy run has chosen another.
    Other options as for enable(). Importing the application enables nothing.
    """

    def __init__(self, app: Any, store: Any = None, **options: Any) -> None:
        self._app = app
        self._options: dict[str, Any] | None = {"store": store, **options}
        if store is None:
            del self._options["store"]

    async def __call__(
        self,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """The server's first call comes in the worker, and as a rule before the startup."""
        if self._options is not None:
            options, self._options = self._options, None
            enable_on("asgi", options)
        await self._app(scope, receive, send)
