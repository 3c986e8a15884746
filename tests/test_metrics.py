"""`ksmpy export`: what Prometheus scrapes, and the dashboard that shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, run
from urllib.request import ProxyHandler, build_opener

import pytest

from ksmpy import Store
from test_cli import ksmpy, needs_engine, one_line
from test_store_command import user

pytest.importorskip("prometheus_client")
from prometheus_client import CollectorRegistry  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from ksmpy.watch.metrics import Collector  # noqa: E402
from ksmpy.watch.savings import observe, observe_all  # noqa: E402

pytestmark = needs_engine

DASHBOARD = Path(__file__).parents[1] / "docs" / "grafana.json"

Samples = dict[str, dict[str, float]]


@contextmanager
def exporter(*arguments: str) -> Iterator[str]:
    """A running exporter; its URL. Ended by SIGTERM, well."""
    command = [sys.executable, "-m", "ksmpy", "export", "--port", "0", *arguments]
    with Popen(command, stdout=PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().removeprefix("serving ").strip()
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0


def scrape(url: str) -> tuple[dict[str, str], Samples]:
    """HELP by family, and the samples by name and by their last label's value."""
    with build_opener(ProxyHandler({})).open(url, timeout=30) as answer:
        text = answer.read().decode()
    helps: dict[str, str] = {}
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        helps[family.name] = family.documentation
        for sample in family.samples:
            key = sample.labels.get("store") or sample.labels.get("pid") or ""
            samples.setdefault(sample.name, {})[key] = sample.value
    return helps, samples


def test_processes_save_together_what_their_store_saves(place: Path) -> None:
    """Whoever of them has touched the frames, and has them in its PSS alone."""
    with user("weights") as (one, sharing), user("weights") as (two, both):
        assert both == 3 * sharing
        seen = [each for each in observe_all()[0] if each.pid in (one, two)]
        assert abs(sum(each.saved_bytes for each in seen) - both * 4096) <= 1 << 20
        assert abs(seen[0].saved_bytes - seen[1].saved_bytes) <= 1 << 16
        assert abs(observe(one).saved_bytes - seen[0].saved_bytes) <= 1 << 16


def test_a_scrape_tells_of_processes_and_stores(place: Path) -> None:
    """The figures of a process and its store by name; when it was killed, what the store keeps."""
    place.mkdir(mode=0o700)
    (place / "junk.ksmpy").write_bytes(b"x" * 9000)
    with exporter() as url:
        assert url.startswith("http://127.0.0.1:")
        with user("weights") as (pid, sharing):
            helps, samples = scrape(url)
            assert all(helps.values())
            process = str(pid)
            assert samples["ksmpy_process_merged_bytes"][process] == 2 * sharing * 4096
            saved = samples["ksmpy_process_saved_bytes"]
            assert abs(saved[process] - sharing * 4096) <= 1 << 20
            together = samples["ksmpy_saved_bytes"][""]
            assert together <= sum(saved.values()) + 8
            # Processes of other tests may be there, and cost more than they save.
            assert together > 0 or len(saved) > 1
            assert samples["ksmpy_store_sharing_pages"] == {"weights": sharing}
            assert samples["ksmpy_store_processes"] == {"weights": 1}
            assert 0 < samples["ksmpy_store_saved_bytes"]["weights"] <= sharing * 4096
            assert samples["ksmpy_unused_store_bytes"][""] == 0
            assert samples["ksmpy_unreadable_stores"][""] == 1  # junk, which others may read
            assert samples["ksmpy_process_mappings"][process] > 10
            assert samples["ksmpy_mappings_limit"][""] >= 1000
        _, samples = scrape(url)
    assert process not in samples.get("ksmpy_process_merged_bytes", {})
    assert samples["ksmpy_store_saved_bytes"] == {"weights": 0}
    kept = os.stat(place / "weights.ksmpy").st_blocks * 512
    assert samples["ksmpy_unused_store_bytes"][""] == kept > sharing * 4096


def names() -> set[str]:
    """What an exporter's samples are called, with a store and a process there or not."""
    found = set()
    for metric in Collector().collect():
        found.add(metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, ""))
    return found


def test_names_and_units_are_prometheus_conventions(place: Path) -> None:
    """One prefix, base units at the end, _total for counters only, HELP for each; names once."""
    Store.open("fresh").close()
    metrics = list(Collector().collect())
    assert len({metric.name for metric in metrics}) == len(metrics) > 20
    for metric in metrics:
        assert re.fullmatch(r"ksmpy(_[a-z]+)+", metric.name), metric.name
        assert metric.documentation.endswith((".", ")")), metric.name
        assert not re.search(r"(_ns|_ms|_kib|_mib|_kb)(_|$)", metric.name)
        assert metric.type in ("gauge", "counter", "info")
        assert not metric.name.endswith(("_total", "_info"))


def test_it_goes_beside_a_programs_own_metrics(place: Path) -> None:
    """In a registry of the program's: registering looks at nothing, collecting does."""
    registry = CollectorRegistry()
    registry.register(Collector())
    assert registry.get_sample_value("ksmpy_stores") == 0
    Store.open("odd\nname").close()
    assert registry.get_sample_value("ksmpy_stores") == 1
    assert registry.get_sample_value("ksmpy_store_processes", {"store": "odd\\nname"}) == 0


def test_a_directory_that_is_not_safe_counts_as_unreadable(place: Path) -> None:
    """The scrape is answered all the same."""
    place.mkdir(mode=0o755)
    registry = CollectorRegistry()
    registry.register(Collector())
    assert registry.get_sample_value("ksmpy_unreadable_stores") == 1
    assert registry.get_sample_value("ksmpy_stores") == 0


def test_the_dashboard_asks_for_what_is_served(place: Path) -> None:
    """Every metric in its queries is one of the exporter's, and every label one that it has."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"\bksmpy_\w+", query)}
    assert len(asked) >= 10
    assert asked <= names(), asked - names()
    legends = " ".join(t["legendFormat"] for p in dashboard["panels"] for t in p["targets"])
    assert set(re.findall(r"{{(\w+)}}", legends)) == {"pid", "command", "store"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_without_the_client_it_is_one_line() -> None:
    """The extra is named; nothing else of ksmpy needs it."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from ksmpy.cli import main; sys.exit(main(['export', '--port', '0']))"
    )
    told = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.returncode == 1
    assert "prometheus_client is not installed (pip install 'ksmpy[metrics]')" in one_line(
        told.stderr
    )


@pytest.mark.parametrize("arguments", [(), ("--port", "65536"), ("--port", "x")])
def test_wrong_ports_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Exit 2, one line; there is no default to collide with others."""
    told = ksmpy("export", *arguments)
    assert told.returncode == 2 and "--port" in one_line(told.stderr)


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    """A port in use, an address of another machine, no name at all."""
    with exporter() as url:
        port = url.rpartition(":")[2].partition("/")[0]
        told = ksmpy("export", "--port", port)
        assert told.returncode == 1 and "Address already in use" in one_line(told.stderr)
    told = ksmpy("export", "--port", "0", "--address", "192.0.2.1")
    assert told.returncode == 1 and "cannot listen at 192.0.2.1" in one_line(told.stderr)
