"""The stores that processes share: the files behind them, and the handles on these."""

from __future__ import annotations
