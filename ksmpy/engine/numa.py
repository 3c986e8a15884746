"""NUMA nodes: libnuma where it is installed, sysfs where it is not, or an injected object."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ksmpy.errors import Unsupported
from ksmpy.native import MAX_NODES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ksmpy.engine.region import Region
    from ksmpy.native import NativeEngine

__all__ = ["Placement", "SystemTopology", "Topology", "libnuma", "node_indices"]

_SYSFS = "/sys/devices/system/node"
_MOVE_PAGES = {"x86_64": 279, "aarch64": 239, "riscv64": 239, "ppc64le": 301, "s390x": 310}


@runtime_checkable
class Topology(Protocol):
    """Which nodes there are, and on which of them each page lies."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes' numbers: 1 to 32 different ones."""

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.ArrayLike:
        """The node of each page address (shape (n,), bytes): n ints out of `nodes`."""


def libnuma() -> ctypes.CDLL | None:
    """The system's libnuma, or None where it is missing or the kernel has no NUMA."""
    try:
        library = ctypes.CDLL("libnuma.so.1", use_errno=True)
    except OSError:
        return None
    return library if library.numa_available() >= 0 else None


def _libnuma_nodes(library: ctypes.CDLL) -> tuple[int, ...]:
    library.numa_bitmask_isbitset.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    allowed = ctypes.c_void_p.in_dll(library, "numa_all_nodes_ptr")
    count = library.numa_max_node() + 1
    return tuple(n for n in range(count) if library.numa_bitmask_isbitset(allowed, n))


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers of a kernel list such as '0-2,5'."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        if part:
            low, _, high = part.partition("-")
            numbers.extend(range(int(low), int(high or low) + 1))
    return tuple(numbers)


def _sysfs_nodes() -> tuple[int, ...]:
    for name in ("has_memory", "online"):
        try:
            with open(os.path.join(_SYSFS, name)) as file:
                nodes = parse_list(file.read())
        except OSError:
            continue
        if nodes:
            return nodes
    return (0,)


class SystemTopology:
    """The machine's own nodes: those that this process may take memory from."""

    def __init__(self) -> None:
        library = libnuma()
        self.source = "libnuma" if library is not None else "sysfs"
        self.nodes = (_libnuma_nodes(library) if library is not None else ()) or _sysfs_nodes()

    def node_of_pages(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """The node of each page, by move_pages(2); a negative errno where it is not present."""
        import numpy as np

        pages = np.ascontiguousarray(addresses, np.uint64)
        status = np.zeros(len(pages), np.int32)
        number = _MOVE_PAGES.get(platform.machine())
        if number is None:
            return status
        libc = ctypes.CDLL(None, use_errno=True)
        rc = libc.syscall(
            ctypes.c_long(number),
            ctypes.c_long(0),
            ctypes.c_ulong(len(pages)),
            ctypes.c_void_p(pages.ctypes.data),
            ctypes.c_void_p(None),
            ctypes.c_void_p(status.ctypes.data),
            ctypes.c_long(0),
        )
        if rc < 0:
            raise OSError(ctypes.get_errno(), "move_pages: " + os.strerror(ctypes.get_errno()))
        return status


def checked_nodes(topology: Topology) -> tuple[int, ...]:
    """The nodes of an injected topology. ValueError or TypeError when they cannot be nodes."""
    nodes = tuple(topology.nodes)
    if not all(isinstance(node, int) and not isinstance(node, bool) for node in nodes):
        raise TypeError("topology.nodes must hold ints")
    if not 1 <= len(nodes) <= MAX_NODES or len(set(nodes)) != len(nodes):
        raise ValueError(f"topology.nodes must hold 1 to {MAX_NODES} different nodes, not {nodes}")
    return nodes


def node_indices(topology: Topology, nodes: tuple[int, ...], start: int, pages: int) -> bytes:
    """One byte a page of [start, start + pages * 4096): the index in `nodes` of its node.

    Raises ValueError when the topology answers with another number of pages or other nodes.
    """
    import numpy as np

    from ksmpy.native import PAGE_SIZE

    addresses = np.uint64(start) + np.arange(pages, dtype=np.uint64) * np.uint64(PAGE_SIZE)
    answer: npt.NDArray[Any] = np.asarray(topology.node_of_pages(addresses))
    if answer.shape != (pages,) or answer.dtype.kind not in "iu":
        raise ValueError(
            f"topology.node_of_pages must return {pages} integers,"
            f" not {answer.dtype} of shape {answer.shape}"
        )
    order = np.argsort(nodes)
    known = np.asarray(nodes)[order]
    place = np.minimum(np.searchsorted(known, answer), len(nodes) - 1)
    if not np.array_equal(known[place], answer):
        strange = answer[known[place] != answer][0]
        raise ValueError(f"topology.node_of_pages returned node {strange}, which is not in {nodes}")
    return order[place].astype(np.uint8).tobytes()


class Placement:
    """The nodes of one engine, and where its pages lie on them."""

    def __init__(self, topology: Topology | None) -> None:
        """As the injected topology has it, or with None as the machine has it.

        Raises Unsupported on a machine of too many nodes, and as checked_nodes() does.
        """
        self._topology = topology
        self.nodes: tuple[int, ...]
        self.node_ids: tuple[int, ...] | None = None
        """The numbers for the kernel; None where memory cannot, or need not, be placed."""
        if topology is not None:
            self.nodes = checked_nodes(topology)
            return
        self.nodes = SystemTopology().nodes
        if len(self.nodes) > MAX_NODES:
            raise Unsupported(f"ksmpy knows {MAX_NODES} NUMA nodes at most")
        self.node_ids = self.nodes if len(self.nodes) > 1 else None

    def ask(self, start: int, pages: int) -> bytes | None:
        """The node of each page by an injected topology; None with the machine's, or one node."""
        if self._topology is None or len(self.nodes) == 1:
            return None
        return node_indices(self._topology, self.nodes, start, pages)

    def tell(self, native: NativeEngine, regions: list[Region]) -> None:
        """Tell the native engine where an injected topology says that the pages are."""
        for region in regions:
            nodes = self.ask(region.address, region.pages)
            if nodes is None:
                return
            try:
                native.set_nodes(region._number, nodes)
            except OSError:
                if not region._released:
                    raise
