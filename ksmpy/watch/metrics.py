"""Prometheus metrics of all stores and processes that this user may look at, from outside.

Every scrape looks anew: at the page tables of each process that has a store mapped, and into each
named store. Nothing is kept between scrapes, and no process takes notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ksmpy.errors import StoreError
from ksmpy.store.stats import StoreStats
from ksmpy.text import shown
from ksmpy.watch.observe import Observation
from ksmpy.watch.savings import measured, observe_all
from ksmpy.watch.stores import NamedStore, named_stores

if TYPE_CHECKING:
    from prometheus_client import Metric


__all__ = ["Collector", "Served", "serve"]


@dataclass(frozen=True, slots=True)
class _Family:
    """A metric: its name without the prefix, its HELP, and how to get its value."""

    name: str
    help: str
    value: Callable[[Any], float]
    counter: bool = False


def _of_process(name: str, help: str, value: Callable[[Observation], float]) -> _Family:
    return _Family(f"ksmpy_process_{name}", help, value)


def _of_store(
    name: str, help: str, value: Callable[[StoreStats], float], *, counter: bool = False
) -> _Family:
    return _Family(f"ksmpy_store_{name}", help, value, counter)


_PROCESS = (
    _of_process(
        "saved_bytes",
        "Memory that merging saves this process, net: its part of what its stores save, and its"
        " zeros, less its own tables and what ksmpy itself took; 0 where these cost more.",
        lambda seen: seen.saved_bytes,
    ),
    _of_process(
        "zero_bytes",
        "Memory given back because it was all zeros.",
        lambda seen: seen.zero_bytes,
    ),
    _of_process(
        "merged_bytes",
        "Memory mapped onto frames, what was written since included.",
        lambda seen: seen.merged_bytes,
    ),
    _of_process(
        "written_bytes",
        "The part of merged memory that was written since, and has memory of its own again.",
        lambda seen: seen.written_bytes,
    ),
    _of_process(
        "frame_bytes",
        "Memory that the process's stores hold; a shared store counts in each of its processes.",
        lambda seen: seen.frame_bytes,
    ),
    _of_process(
        "package_bytes",
        "Memory that ksmpy took to be imported, as ksmpy run has seen it; 0 where it was not seen.",
        lambda seen: seen.package_bytes,
    ),
    _of_process(
        "full_stores",
        "How many of its stores are full, named or not: what needs a new frame is left apart.",
        lambda seen: len(seen.full_stores),
    ),
    _of_process("pss_bytes", "Proportional set size.", lambda seen: seen.pss_bytes),
    _of_process(
        "uss_bytes", "Unique set size: private clean and dirty.", lambda seen: seen.uss_bytes
    ),
    _of_process("mappings", "Mappings in use, of ksmpy_mappings_limit.", lambda seen: seen.vmas),
    _of_process(
        "merged_mappings", "Mappings that show merged pages.", lambda seen: seen.merged_vmas
    ),
)

_STORE = (
    _of_store(
        "saved_bytes",
        "Memory that merging saves all the store's processes together, net; 0 while none uses it.",
        lambda stats: stats.saved_bytes,
    ),
    _of_store(
        "full",
        "1 while the store is full: what is in it is shared still, what needs a new frame is left"
        " apart, until its file system has room again.",
        lambda stats: stats.full,
    ),
    _of_store("frame_bytes", "Memory that the frames take.", lambda stats: stats.frame_bytes),
    _of_store("metadata_bytes", "Memory of the index.", lambda stats: stats.metadata_bytes),
    _of_store("shared_pages", "Frames in use (pages_shared).", lambda stats: stats.pages_shared),
    _of_store(
        "sharing_pages",
        "How many more pages use the frames (pages_sharing); killed processes' pages count until"
        " the store's next process comes.",
        lambda stats: stats.pages_sharing,
    ),
    _of_store(
        "stale_frames",
        "Frames without a sharer that a forked child may still map.",
        lambda stats: stats.stale_frames,
    ),
    _of_store(
        "lock_hold_max_seconds",
        "The longest that the store's lock was held.",
        lambda stats: stats.lock_hold_max_ns / 1e9,
    ),
    _of_store(
        "deaths",
        "Processes that ended without leaving the store, and were noticed.",
        lambda stats: stats.deaths,
        counter=True,
    ),
    _of_store(
        "index_rebuilds",
        "How often the index was made anew, because a process died while it changed it.",
        lambda stats: stats.rebuilds,
        counter=True,
    ),
    _of_store(
        "lock_waits",
        "How often the store's lock was another's, and had to be waited for.",
        lambda stats: stats.lock_waits,
        counter=True,
    ),
    _of_store(
        "lock_wait_seconds",
        "Time waited for the store's lock.",
        lambda stats: stats.lock_wait_ns / 1e9,
        counter=True,
    ),
)


class Collector:
    """What prometheus_client asks at each scrape: REGISTRY.register(Collector()) serves the
    metrics beside a program's own.
    """

    def describe(self) -> list[Metric]:
        """Nothing: registering is not to look at every process."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, from one look. Processes that end meanwhile are left out."""
        try:
            stores, refused = named_stores(), 0
        except StoreError:
            stores, refused = [], 1
        seen, found = observe_all()
        yield from _totals(seen, found.saved_bytes, stores, refused)
        yield from _processes(seen)
        yield from _stores(measured(stores, found))


def _totals(
    seen: list[Observation], saved: int, stores: list[NamedStore], refused: int
) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("ksmpy_build", "The exporter's version.", {"version": version("ksmpy")})
    yield GaugeMetricFamily(
        "ksmpy_saved_bytes",
        "Memory that merging saves all processes seen, net: what the tables of some cost beyond"
        " what they save is taken off.",
        saved,
    )
    yield GaugeMetricFamily("ksmpy_processes", "Processes with a store mapped.", len(seen))
    yield GaugeMetricFamily("ksmpy_stores", "Named stores.", len(stores))
    yield GaugeMetricFamily(
        "ksmpy_unreadable_stores",
        "Named stores, or their directory, that could not be read: damaged, locked, or not safe.",
        sum(bool(store.error) for store in stores) + refused,
    )
    yield GaugeMetricFamily(
        "ksmpy_unused_store_bytes",
        "Memory kept by named stores that no process uses (ksmpy store rm).",
        sum(store.kept_bytes for store in stores if store.unused),
    )
    with open("/proc/sys/vm/max_map_count") as file:
        yield GaugeMetricFamily(
            "ksmpy_mappings_limit",
            "Mappings a process may have: vm.max_map_count.",
            int(file.read()),
        )


def _processes(seen: list[Observation]) -> Iterator[Metric]:
    rows = [((str(each.pid), each.command), each) for each in seen]
    return (_family(family, ("pid", "command"), rows) for family in _PROCESS)


def _stores(stores: list[NamedStore]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    users = GaugeMetricFamily(
        "ksmpy_store_processes", "Processes that use the store.", labels=["store"]
    )
    kept = GaugeMetricFamily(
        "ksmpy_store_kept_bytes", "Memory that the store's file takes.", labels=["store"]
    )
    for store in stores:
        kept.add_metric([shown(store.name)], store.kept_bytes)
        if not store.error:
            users.add_metric([shown(store.name)], len(store.processes))
    yield users
    yield kept
    rows = [((shown(store.name),), store.stats) for store in stores if store.stats]
    for family in _STORE:
        yield _family(family, ("store",), rows)


def _family(
    family: _Family, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Any]]
) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if family.counter else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=labels)
    for values, each in rows:
        metric.add_metric(values, family.value(each))
    return metric


@dataclass(frozen=True, slots=True)
class Served:
    """The running exporter."""

    url: str
    stop: Callable[[], None]
    """Ends it, and waits until it has."""


def serve(port: int, address: str) -> Served:
    """Answer scrapes in threads of this process. Port 0 is one that is free.

    OSError where the address cannot be had, ImportError without prometheus_client.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Collector())
    server, thread = start_http_server(port, address, registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    host = f"[{address}]" if ":" in address else address
    return Served(f"http://{host}:{server.server_port}/metrics", stop)
