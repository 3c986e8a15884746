"""Two equal arrays, of which half and a piece of each further 2 MiB are written all the time."""

from __future__ import annotations

import numpy as np

first = np.random.default_rng(1).random(24 << 20)
second = first.copy()
words = 2 * 1024 * 1024 // 8
for turn in range(400):
    for array in (first, second):
        array[: len(array) // 2] += turn
        array[len(array) // 2 :].reshape(-1, words)[:, : words // 13] += turn
print(first.sum(), np.array_equal(first, second))
