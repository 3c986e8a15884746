"""Sends tasks to Celery's workers until it is over."""

from __future__ import annotations

import time

import load
import tasks

if __name__ == "__main__":
    while not load.over():
        if len(list((load.HERE / "queue").iterdir())) < 8:
            tasks.check.delay()
        time.sleep(0.05)
