"""One line for programs that others start: gunicorn, uvicorn, Celery, dask, Ray, pytest."""

from __future__ import annotations
