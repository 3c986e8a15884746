"""A web application: aiohttp's."""

from __future__ import annotations

import load
from aiohttp import web


async def application() -> web.Application:
    """Answers with a checksum."""
    weights = load.load()

    async def check(request: web.Request) -> web.Response:
        return web.Response(text=load.check(weights))

    made = web.Application()
    made.router.add_get("/", check)
    return made
