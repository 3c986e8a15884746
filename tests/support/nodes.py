"""Pages that change their NUMA nodes: by move_pages(2) where there are several, else in name."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .oracle import PAGE

_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}[platform.machine()]
_MPOL_MF_MOVE_ALL = 4


def page_addresses(address: int, nbytes: int) -> npt.NDArray[np.uint64]:
    """The address of each page of a range."""
    return np.arange(address, address + nbytes, PAGE, dtype=np.uint64)


def move(spans: Iterable[tuple[int, int]], node: int) -> None:
    """All present pages of some ranges, overlays included, to a real node; as far as it goes."""
    pages = np.concatenate([page_addresses(*span) for span in spans])
    nodes = np.full(len(pages), node, np.int32)
    status = np.zeros(len(pages), np.int32)
    ctypes.CDLL(None).syscall(
        ctypes.c_long(_MOVE_PAGES), ctypes.c_long(0), ctypes.c_ulong(len(pages)),
        ctypes.c_void_p(pages.ctypes.data), ctypes.c_void_p(nodes.ctypes.data),
        ctypes.c_void_p(status.ctypes.data), ctypes.c_long(_MPOL_MF_MOVE_ALL),
    )  # fmt: skip


class Wandering:
    """An injected topology: stretches of four pages lie on the same node, until `turn` changes."""

    def __init__(self, count: int) -> None:
        self.nodes = tuple(3 * n for n in range(count))
        self.turn = 0

    def node_of_pages(self, pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Where the pages are now, in name."""
        index = pages // np.uint64(4 * PAGE) + np.uint64(self.turn)
        found: npt.NDArray[np.int64] = (index % np.uint64(len(self.nodes))).astype(np.int64) * 3
        return found
