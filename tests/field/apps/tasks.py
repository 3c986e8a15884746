"""A Celery application, with a broker that is a folder."""

from __future__ import annotations

import task
from celery import Celery
from celery.signals import worker_process_init
from load import HERE

app = Celery("tasks", broker="filesystem://")
(HERE / "queue").mkdir(exist_ok=True)
app.conf.broker_transport_options = {
    "data_folder_in": str(HERE / "queue"),
    "data_folder_out": str(HERE / "queue"),
    "control_folder": str(HERE / "control"),
}
app.conf.worker_prefetch_multiplier = 1


@app.task
def check() -> None:
    """One answer."""
    task.work()


@worker_process_init.connect
def begin(**_: object) -> None:
    """Each worker loads as it starts."""
    task.work()
