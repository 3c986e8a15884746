"""Workers that each load the same model share it.

uvicorn --workers 4 uvicorn_app:app
ksmpy top
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ksmpy.integrations.asgi import KsmpyMiddleware

MODEL = np.random.default_rng(0).random((4 << 20,))  # 32 MiB, loaded by each worker


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer with a figure from the model."""
    if scope["type"] == "http":
        text = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": text})
        await send({"type": "http.response.body", "body": f"{MODEL[0]:.6f}\n".encode()})


# This is the one line; in FastAPI it is app.add_middleware(KsmpyMiddleware).
app = KsmpyMiddleware(answer)
