"""Pool processes that each load the same model share it.

celery -A celery_tasks worker -c 4
ksmpy top
"""

from __future__ import annotations

import os

import numpy as np
from celery import Celery, signals

import ksmpy.integrations.celery

app = Celery("tasks", broker=os.environ.get("BROKER", "memory://"))
ksmpy.integrations.celery.setup()

model: dict[str, object] = {}


@signals.worker_process_init.connect
def load(**_: object) -> None:
    """Each process loads its own: 32 MiB."""
    model["weights"] = np.random.default_rng(0).random((4 << 20,))


@app.task
def first() -> float:
    """A figure from the model."""
    return float(model["weights"][0])  # type: ignore[index]
