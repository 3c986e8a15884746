"""A library's own memory, which no Python object shows: KIND."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable

import load
import numpy as np

Answer = Callable[[], bytes]


def onnxruntime_() -> Answer:
    """Sixteen layers of 1024 x 1024, from a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(load.HERE / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(2).standard_normal((8, 1024)).astype("f4")
    return lambda: bytes(session.run(None, {"x0": x})[0].tobytes())


def faiss_() -> Answer:
    """A flat index."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.random.default_rng(3).standard_normal((100_000, 128)).astype("f4")
    index = faiss.IndexFlatL2(128)
    index.add(vectors)
    asked = vectors[:5].copy()
    return lambda: b"".join(each.tobytes() for each in index.search(asked, 10))


def lightgbm_() -> Answer:
    """Trees of 1000 leaves."""
    import lightgbm

    x, y = examples(60_000, 60)
    options = {
        "objective": "binary", "num_leaves": 1000, "verbose": -1, "num_threads": 1,
        "min_data_in_leaf": 5, "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    booster = lightgbm.train(options, lightgbm.Dataset(x, y), 40)
    asked = x[:200].copy()
    return lambda: bytes(booster.predict(asked).tobytes())


def xgboost_() -> Answer:
    """Deep trees."""
    import xgboost

    x, y = examples(40_000, 40)
    options = {"objective": "binary:logistic", "max_depth": 12, "nthread": 1}
    booster = xgboost.train(options, xgboost.DMatrix(x, y), 40)
    asked = xgboost.DMatrix(x[:200].copy())
    return lambda: bytes(booster.predict(asked).tobytes())


def forest() -> Answer:
    """scikit-learn's random forest."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = examples(20_000, 30)
    made = RandomForestClassifier(60, random_state=0, n_jobs=1).fit(x, y)
    asked = x[:50].copy()
    return lambda: bytes(made.predict_proba(asked).tobytes())


def examples(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """What trees can learn something from."""
    x = np.random.default_rng(4).standard_normal((rows, columns))
    return x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).astype(int)


def names(count: int) -> list[str]:
    """Strings of some length."""
    return [f"name-{i % 5000}-{i}" for i in range(count)]


def polars_() -> Answer:
    """A frame with numbers and strings."""
    import polars

    n = 2_000_000
    numbers = np.random.default_rng(6).standard_normal(n)
    frame = polars.DataFrame({"a": np.arange(n) % 977, "b": numbers, "s": names(n)})
    sums = polars.col("b").sum()

    def answer() -> bytes:
        rows = frame.group_by("a").agg(sums).sort("a").head(20).rows()
        return f"{rows}{frame['s'].str.len_chars().sum()}".encode()

    return answer


def pandas_() -> Answer:
    """A frame with numbers and strings."""
    import pandas

    n = 600_000
    numbers = np.random.default_rng(6).standard_normal(n)
    frame = pandas.DataFrame({"a": np.arange(n) % 977, "b": numbers, "s": names(n)})

    def answer() -> bytes:
        sums = frame.groupby("a").b.sum().head(20).tolist()
        return f"{sums}{frame.s.str.len().sum()}".encode()

    return answer


def numba_() -> Answer:
    """Compiled code, which is never merged, and an array."""
    import numba

    numbers = np.random.default_rng(7).standard_normal(8_000_000)

    @numba.njit  # type: ignore[untyped-decorator]
    def total(values: np.ndarray) -> float:
        found = 0.0
        for i in range(values.size):
            found += values[i] * (i % 7)
        return found

    return lambda: repr(total(numbers)).encode()


def arrow() -> Answer:
    """A table with numbers and strings."""
    import pyarrow
    import pyarrow.compute

    numbers = np.random.default_rng(8).standard_normal(3_000_000).tolist()
    table = pyarrow.table({"a": pyarrow.array(numbers), "s": pyarrow.array(names(3_000_000))})
    compute = pyarrow.compute

    def answer() -> bytes:
        lengths = compute.sum(compute.utf8_length(table["s"]))
        return f"{compute.sum(table['a']).as_py()}{lengths.as_py()}".encode()

    return answer


def torch_() -> Answer:
    """A state dict, and a module that has it."""
    import torch

    torch.set_num_threads(1)
    state = torch.load(load.HERE / "model.pt", weights_only=True)
    module = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    module.load_state_dict(state)
    del state
    x = torch.arange(1024.0) / 1024

    def answer() -> bytes:
        with torch.inference_mode():
            return bytes(module(x).numpy().tobytes())

    return answer


KINDS: dict[str, Callable[[], Answer]] = {
    "onnxruntime": onnxruntime_,
    "faiss": faiss_,
    "lightgbm": lightgbm_,
    "xgboost": xgboost_,
    "forest": forest,
    "polars": polars_,
    "pandas": pandas_,
    "numba": numba_,
    "arrow": arrow,
    "torch": torch_,
}

if __name__ == "__main__":
    answer = KINDS[sys.argv[1]]()
    load.answered(zlib.crc32(answer()))
    load.said()
    while not load.over():
        load.answered(zlib.crc32(answer()))
        time.sleep(load.PAUSE)
