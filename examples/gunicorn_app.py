"""Workers that each load the same model share it.

    gunicorn -c python:ksmpy.integrations.gunicorn -w 4 gunicorn_app:app
    ksmpy top

In a configuration of your own, one line is enough: from ksmpy.integrations.gunicorn import *
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

MODEL = np.random.default_rng(0).random((4 << 20,))  # 32 MiB, loaded by each worker


def app(environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
    """Answer with a figure from the model."""
    start("200 OK", [("Content-Type", "text/plain")])
    return [f"{MODEL[0]:.6f}\n".encode()]
