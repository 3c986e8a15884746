"""What the demo is checked against: the file that the weights came from, and the kernel's own
account of memory in /proc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ksmpy import proc
from ksmpy.demo.weights import Layout
from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Memory", "OwnPages", "last_layer", "wrong_bytes"]

_PIECE = 1 << 20  # bytes of the file compared at a time: the check itself must not need memory


@dataclass(frozen=True)
class Memory:
    """A process's memory in bytes.

    `uss` leaves out the frames that others map too. `pss` divides them among those who do, so a
    group's sum is what the group takes. `pss_files` is the part of it that is program code and
    libraries: it changes with every other process that starts or ends.
    """

    pss: int
    pss_files: int
    uss: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """From /proc/PID/smaps_rollup; OSError when the process is gone."""
        sizes = proc.rollup(pid)
        uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
        return cls(sizes["Pss"], sizes.get("Pss_File", 0), uss)

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.pss + other.pss, self.pss_files + other.pss_files, self.uss + other.uss)

    @property
    def data(self) -> int:
        """The part that ksmpy can change."""
        return self.pss - self.pss_files


class OwnPages:
    """Which whole pages of an array are this process's own, as the kernel sees it; the others lie
    on frames.
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        import numpy as np

        first = -(-data.ctypes.data // PAGE_SIZE)
        self.offset = first * PAGE_SIZE - data.ctypes.data  # of the first whole page, in the array
        count = (data.nbytes - self.offset) // PAGE_SIZE
        entries = np.frombuffer(proc.own_page_entries(first * PAGE_SIZE, count), np.uint64)
        there = (entries & np.uint64(proc.PRESENT | proc.SWAPPED)) != 0
        self.pages: NDArray[np.bool_] = there & ((entries & np.uint64(proc.FILE)) == 0)

    def touched(self, ranges: list[tuple[int, int]]) -> NDArray[np.bool_]:
        """The pages that hold at least one byte of any of the ranges (first, end) of the array."""
        import numpy as np

        pages = np.zeros(self.pages.size, np.bool_)
        for first, end in ranges:
            low = (first - self.offset) // PAGE_SIZE
            pages[max(0, low) : max(0, -((self.offset - end) // PAGE_SIZE))] = True
        return pages


def wrong_bytes(data: NDArray[np.uint8], file: BinaryIO) -> int:
    """How many bytes are not those of an unbuffered file, or are missing in it.

    Reads every byte, so that each merged page is in somebody's PSS afterwards: one that nobody
    has looked at yet is in nobody's.
    """
    import numpy as np

    buffer = np.empty(_PIECE, np.uint8)
    file.seek(0)
    wrong = at = 0
    while got := file.readinto(buffer.data):  # type: ignore[attr-defined]
        wrong += int(np.count_nonzero(data[at : at + got] != buffer[:got]))
        at += got
    return wrong + data.nbytes - at


def last_layer(layout: Layout) -> list[str]:
    """The names of the tensors of the encoder's last layer."""
    numbers = {
        name: int(part) for name in layout.tensors for part in name.split(".") if part.isdigit()
    }
    last = max(numbers.values(), default=None)
    return sorted(name for name, number in numbers.items() if number == last)
