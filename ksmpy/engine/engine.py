"""The engine as its users see it: registers buffers, merges their equal pages, gives all back."""

from __future__ import annotations

from typing import Any

from ksmpy.context import Ending
from ksmpy.engine.core import Core
from ksmpy.engine.knobs import Knobs
from ksmpy.engine.numa import Topology
from ksmpy.engine.region import Region, Share
from ksmpy.engine.regions import checked_range
from ksmpy.engine.stats import ScanResult, Stats, stats_rows
from ksmpy.errors import KsmpyError
from ksmpy.memory.traverse import find_buffers
from ksmpy.store.store import Store
from ksmpy.text import Row, code_html, table_html, table_text

__all__ = ["Engine", "core_of"]


class Engine(Ending):
    """Merges equal pages of registered buffers, in place.

    `store`: None for a private store; a Store, or the name of one (made if it is missing), to
    share frames with other processes. `topology`: None for the machine's own NUMA nodes, or
    an object with `.nodes` and `.node_of_pages(addresses)`. `freeze`: "auto", "uffd-wp",
    "uffd-move", "uffd-remap" or "signal"; `tracking`: "auto", "wp-async" or "checksum".

    A context manager: close() at the end unmerges everything that there is memory for; what
    stays merged keeps the engine open, and a warning says so. An engine inherited by fork
    lets regions be released and closes. On a shared store its first other use makes it one of the
    child's own, with the same regions and knobs, run being 0; on a private store everything else
    raises KsmpyError.

    Raises Unsupported when the machine lacks what was asked for, StoreError for a store that
    cannot be used, ValueError for other words.
    """

    def __init__(
        self,
        *,
        store: str | Store | None = None,
        topology: Topology | None = None,
        freeze: str = "auto",
        tracking: str = "auto",
    ) -> None:
        self._core = Core(store, topology, freeze, tracking)

    @property
    def freeze(self) -> str:
        """How pages are frozen: what "auto" chose."""
        return self._core.freeze

    @property
    def tracking(self) -> str:
        """How writes are noticed: what "auto" chose."""
        return self._core.tracking

    @property
    def knobs(self) -> Knobs:
        """The kernel's knobs, as attributes; assigning one acts at once."""
        return self._core.knobs

    def register(self, buffer: Any, /, *, name: str | None = None) -> Region:
        """Adopt the whole pages of a buffer, in place, until its owner dies or release().

        `buffer`: any contiguous object with the buffer protocol whose memory is private,
        anonymous and writable (the object itself may be read-only). It takes the process two
        mappings where writes are tracked or the freeze is not "signal". Of thousands that are
        registered one by one, those whose mapping turns out in the next pass to be locked, kept
        from children, or the like are released then, with a warning in the log.

        Raises TypeError without a buffer, RegionError saying why it cannot be merged, or that no
        mappings are left.
        """
        return self._core.register(buffer, name)

    def register_range(
        self, address: int, nbytes: int, *, name: str | None = None, owner: object = None
    ) -> Region:
        """Adopt the whole pages of memory that is known by its address only, in place.

        It must be private, anonymous and writable. The region ends by release(), when `owner` (any
        object that takes weak references) dies, and when the memory is unmapped; whoever frees or
        changes it need not care. Its bytes are never thrown away. Its last page is not merged, so
        that mremap() cannot make a merged mapping longer: it fails (EFAULT), and realloc() copies.

        Raises TypeError for what is no address, number of bytes or owner, RegionError saying why
        it cannot be merged.
        """
        start, size = checked_range(address, nbytes, name, owner)
        return self._core.register_range(start, size, name, owner)

    def track(self, obj: object, /, *, min_bytes: int = 1 << 20) -> list[Region]:
        """Register every buffer of at least `min_bytes` bytes that is reachable from `obj`.

        Follows references, and calls nothing of what it finds: no object copies or serialises
        itself. Buffers that cannot be merged are passed over. Returns the regions, those that
        were there before included.
        """
        self._core.require_open()
        return self._core.track(find_buffers((obj,), min_bytes)[0])[0]

    def start(self) -> None:
        """Scan in the background: knobs.run = 1."""
        self.knobs.run = 1

    def stop(self) -> None:
        """Scan no more, and wait until the scanner has stopped; what is merged stays merged:
        knobs.run = 0.
        """
        self.knobs.run = 0

    def scan(
        self, passes: int = 1, *, eager: bool = False, max_pages: int | None = None
    ) -> ScanResult:
        """Scan in this thread, without the GIL: `passes` passes over all regions.

        `eager`: do not wait a pass to see whether a page is volatile, merge what is equal now.
        `max_pages`: go on where the last scan ended, and scan at most so many pages.
        """
        return self._core.scan(passes, eager=eager, max_pages=max_pages)

    def stats(self) -> Stats:
        """The counters, settled while knobs.run is 0 and nothing scans.

        Looks for merged pages that were written in the meantime: about 1 ms per merged GiB.
        """
        return self._core.stats()

    def regions(self) -> tuple[Region, ...]:
        """The registered regions, in the order of their registration."""
        return self._core.regions()

    def shares(self) -> list[Share]:
        """Which regions have how many pages on common frames, most first."""
        return self._core.shares()

    def unmerge(self) -> None:
        """Give every region its own pages back: knobs.run = 2, then the earlier run again.

        OSError (ENOMEM, EBUSY) when pages could not be: they stay merged, and run is 0.
        """
        self._core.unmerge()

    def close(self) -> None:
        """Stop, release every region with its bytes in pages of its own, free everything.

        OSError when a region could not be given its pages back: it stays registered, the
        engine open, and close() can be tried again. No-op on a closed engine.
        """
        self._core.close()

    def __enter__(self) -> Engine:
        self._core.require_open()
        return self

    def _leave(self) -> None:
        self._core.leave()

    def __repr__(self) -> str:
        return repr(self._core)

    def __str__(self) -> str:
        rows = _rows(self._core)
        return repr(self) if rows is None else table_text(rows)

    def _repr_html_(self) -> str:
        rows = _rows(self._core)
        return code_html(repr(self)) if rows is None else table_html("ksmpy", rows)


def core_of(engine: Engine) -> Core:
    """What the package itself uses of an engine."""
    return engine._core


def _rows(core: Core) -> list[Row] | None:
    """None for one that can say nothing of itself: closed, its parent's, its store locked."""
    if core.closed or core.inherited:
        return None
    try:
        regions, stats = len(core.regions()), core.stats()
        running = ("stopped", "scans in the background", "stopped, unmerged")[core.knobs.run]
    except (KsmpyError, OSError):
        return None
    return [
        ("engine", f"{running}; freeze {core.freeze}, tracking {core.tracking}"),
        ("regions", str(regions)),
        *stats_rows(stats),
    ]
