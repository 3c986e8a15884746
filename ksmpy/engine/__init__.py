"""The engine in Python: what is registered, the knobs, the thread that scans, the counters."""

from __future__ import annotations
