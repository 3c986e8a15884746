"""What the state machine of test_machine.py believes: bytes, places, knobs, children's frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ksmpy.engine.knobs import KNOBS

from . import memory, oracle
from .oracle import PAGE, Frame
from .procs import Child

#: Knobs that frames of the old rule forbid to change.
RULES = ("merge_across_nodes", "max_page_sharing")
#: Values that each knob but `run` takes.
GOOD: dict[str, st.SearchStrategy[int]] = {
    "merge_across_nodes": st.integers(0, 1),
    "max_page_sharing": st.sampled_from([2, 3, 256]),
    "use_zero_pages": st.integers(0, 1),
    "smart_scan": st.integers(0, 1),
    "vma_share_percent": st.sampled_from([1, 50, 100]),
    "sleep_millisecs": st.integers(0, 3),
    "pages_to_scan": st.integers(1, 3000),
} | {
    name: st.integers(knob.low, min(knob.high, 100_000))
    for name, knob in KNOBS.items()
    if name.startswith("advisor_") or name == "stable_node_chains_prune_millisecs"
}


class Buffer:
    """An array, the bytes it must hold, and its region while it has one."""

    def __init__(self, kinds: list[int], shape: str) -> None:
        size = len(kinds) * PAGE
        if shape == "pages":
            self.array = memory.pages(len(kinds))
        elif shape == "heap":
            self.array = np.empty(size + 2 * PAGE, dtype=np.uint8)[: size + PAGE]
        else:
            self.array = np.frombuffer(bytearray(size + PAGE), dtype=np.uint8)
        start, _ = memory.span(self.array)
        head = start - memory.address_of(self.array)
        self.array[:] = 0x77
        self.array[head : head + size] = np.frombuffer(memory.contents(kinds), dtype=np.uint8)
        self.model = bytearray(self.array.tobytes())
        self.region: Any = None

    def span(self) -> tuple[int, int]:
        """Address and size of its whole pages."""
        return memory.span(self.array)

    def page(self, address: int) -> bytes:
        """What the page at an address must hold."""
        at = address - memory.address_of(self.array)
        return bytes(self.model[at : at + PAGE])


class Places:
    """An injected topology whose answers change: pages move. A merged one lies where its frame is.

    `told` is what the engine was told last of each page while the page was not merged, which is
    the node that it has to be merged on.
    """

    def __init__(self, count: int) -> None:
        self.nodes = tuple(3 * n for n in range(count))
        self.told: dict[int, int] = {}
        self._now: dict[int, int] = {}

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The engine asks."""
        pages = addresses.tolist()
        for page, frame in zip(pages, oracle.frames_of(pages[0], len(pages) * PAGE), strict=True):
            if frame is not None and page in self.told:
                self._now[page] = self.told[page]
            else:
                self.told[page] = self._now.setdefault(page, page // PAGE // 2 % self.count * 3)
        return np.array([self._now[page] for page in pages], np.int64)

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(self.nodes)

    def move(self, address: int, nbytes: int, node: int) -> None:
        """Pages of a range that are not merged go to a node."""
        for index, frame in enumerate(oracle.frames_of(address, nbytes)):
            if frame is None:
                self._now[address + index * PAGE] = self.nodes[node % self.count]

    def forget(self, address: int, nbytes: int) -> None:
        """A range is not registered any more."""
        for page in range(address, address + nbytes, PAGE):
            self.told.pop(page, None)


class Lodger:
    """A child that lives on, and the frames that it was born with: they stay as long as it does.

    So do, of the `stale` frames that were there then and which it does not map, those that are
    shared again afterwards: a frame does not remember when it was stale.
    """

    def __init__(self, work: Callable[[], None], frames: set[Frame], stale: int) -> None:
        self.frames = frames
        self.stale = stale
        self._child = Child(work).ready()

    def leave(self) -> None:
        """It does its work and ends."""
        self._child.finish()


def frames_by_page(buffers: list[Buffer]) -> dict[int, tuple[Buffer, Frame]]:
    """The address of each page of the registered buffers that reads a frame, by the page tables."""
    found = {}
    for buffer in buffers:
        if buffer.region is not None:
            for page, frame in oracle.pages_on_frames(*buffer.span()).items():
                found[page] = buffer, frame
    return found
