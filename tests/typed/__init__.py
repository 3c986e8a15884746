"""Programs that type checkers read, and that tests run."""

from __future__ import annotations
