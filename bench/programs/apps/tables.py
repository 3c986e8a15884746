"""Tables that are grouped and joined, again and again."""

from __future__ import annotations

import numpy as np
import pandas as pd

rng = np.random.default_rng(1)
rows = 1_500_000
left = pd.DataFrame({"key": rng.integers(0, 50_000, rows), "value": rng.random(rows)})
right = pd.DataFrame({"key": np.arange(50_000), "weight": rng.random(50_000)})
total = 0.0
for _ in range(8):
    joined = left.merge(right, on="key")
    joined["product"] = joined["value"] * joined["weight"]
    total += float(joined.groupby("key")["product"].sum().max())
    left["value"] = left["value"] * 0.5
print(total)
