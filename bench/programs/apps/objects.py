"""Dictionaries and strings that come and go, some of which stay, beside 64 MiB of numbers."""

from __future__ import annotations

import numpy as np

numbers = np.random.default_rng(1).random(8 << 20)
kept: dict[int, list[str]] = {}
for turn in range(120):
    rows = [{"id": i, "name": f"row {i}", "of": turn} for i in range(20_000)]
    kept[turn % 20] = [str(row["name"]) for row in rows]
    for row in rows:
        row["id"] = hash(row["name"]) & 1
print(sum(map(len, kept.values())), numbers.sum())
