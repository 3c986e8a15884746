"""One line for programs that others start: gunicorn, Celery, dask, pytest."""

from __future__ import annotations
