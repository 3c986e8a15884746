"""An array that is written anew, all of it, twice a second."""

from __future__ import annotations

import time

import numpy as np

array = np.random.default_rng(1).random(16 << 20)
for _ in range(20):
    array += 1.0
    time.sleep(0.5)
print(array.sum())
