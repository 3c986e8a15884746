"""Temporary arrays of 100 MiB, one after the other, beside two equal ones that stay."""

from __future__ import annotations

import numpy as np

first = np.random.default_rng(1).random(13 << 20)
second = first.copy()
total = 0.0
for turn in range(60):
    total += float((first * turn + second).sum())
print(total)
