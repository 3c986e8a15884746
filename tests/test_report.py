"""`ksmpy report`: what it says is what engines and the kernel say, and a browser shows it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from importlib import resources
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

import ksmpy
from ksmpy import proc
from ksmpy.cli import main
from ksmpy.cli.board import take_a_look
from ksmpy.cli.output import human_bytes
from ksmpy.cli.report import _put
from ksmpy.watch import pages, subjects
from ksmpy.watch.charts import charts
from ksmpy.watch.pages import Kind
from ksmpy.watch.portrait import portrait
from ksmpy.watch.savings import observe
from support import memory
from test_cli import ksmpy as command
from test_cli import needs_engine, one_line

pytestmark = needs_engine

MADV_DONTNEED = 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

WORKER = """
import sys, numpy as np, ksmpy
mine = int(sys.argv[2])
engine = ksmpy.Engine(store=sys.argv[1])
def random(seed, pages):
    return ksmpy.array(np.random.default_rng(seed).integers(0, 256, pages << 12, np.uint8))

kept = {"model": random(0, 1024), "index <b>": random(1, 512), "own": random(100 + mine, 512)}
for name, array in kept.items():
    engine.register(array, name=name)
engine.scan(3)
kept["model"][: 8 << 12 : 4096] += 1 + mine
print(flush=True)
input()
engine.scan(3)
print(engine.stats().merging_pages, flush=True)
input()
"""

# As WORKER, but what it shares is its own, twice.
TWICE = """
import sys, numpy as np, ksmpy
engine = ksmpy.Engine(store=sys.argv[1])
one = ksmpy.array(np.random.default_rng(int(sys.argv[2])).integers(0, 256, 1 << 20, np.uint8))
other = ksmpy.copy(one)
engine.register(one, name="one")
engine.register(other, name="other")
engine.scan(3)
print(flush=True)
input()
print(engine.stats().merging_pages, flush=True)
input()
"""


@contextmanager
def workers(store: str, count: int, program: str = WORKER) -> Iterator[list[tuple[int, int]]]:
    """Processes that share what they loaded; (pid, pages on frames) of each."""
    started: list[Popen[str]] = []
    try:
        for number in range(count):
            arguments = [sys.executable, "-c", program, store, str(number)]
            started.append(Popen(arguments, stdin=PIPE, stdout=PIPE, text=True))
        for again in range(2):
            told = [child.stdout.readline() for child in started if child.stdout]
            for child in started if again == 0 else ():
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
        yield [(child.pid, int(text)) for child, text in zip(started, told, strict=True)]
    finally:
        for child in started:
            child.kill()
            child.communicate()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """What --json says of three workers, and the page of the same moment."""
    pytest.importorskip("bokeh")
    place = tmp_path_factory.mktemp("stores")
    directory = Path("/dev/shm") / f"ksmpy-report-{os.getpid()}"
    file = place / "report.html"
    before = os.environ.get("KSMPY_STORE_DIR")
    os.environ["KSMPY_STORE_DIR"] = str(directory)
    try:
        with workers("app", 3):
            done = command(
                "report", "--store", "app", "-o", str(file), "--json",
                env={"KSMPY_STORE_DIR": str(directory)},
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout), file
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.environ.pop("KSMPY_STORE_DIR")
        if before is not None:
            os.environ["KSMPY_STORE_DIR"] = before


def test_pages_are_told_apart_as_the_engine_does(engine: Any) -> None:
    """From the page tables alone: on frames, written since, alone; zeros take nothing."""
    one = memory.distinct(64)
    other, zeros, alone = memory.twin(one), memory.distinct(16), memory.distinct(32, seed=7)
    zeros[:] = 0
    for name, each in (("one", one), ("other", other), ("zeros", zeros), ("alone", alone)):
        engine.register(each, name=name)
    engine.scan(2, eager=True)
    other[: 5 * 4096 : 4096] += 1
    seen = pages.look(os.getpid(), proc.smaps(), {})
    counts = {kind: int(seen.pages[seen.kind == kind].sum()) for kind in Kind}
    assert counts[Kind.SHARED] == 123 and counts[Kind.WRITTEN] == 5
    assert engine.stats().merging_pages == 123
    assert counts[Kind.ALONE] + counts[Kind.HUGE] + counts[Kind.OFTEN] >= 32


def zeros_told() -> set[int]:
    """The zeros of this process, in pages, as its report, its line of top and its counters from
    outside say. What it saves is no more than these, less its own tables.
    """
    seen = portrait([os.getpid()])
    (process,) = seen.processes
    (line,) = take_a_look(os.getpid(), set()).processes
    told = observe(os.getpid())
    assert process.zero_bytes == seen.totals.zero_bytes
    assert process.saved_bytes == line.saved_bytes == told.saved_bytes
    assert process.saved_bytes <= max(0, process.zero_bytes - process.metadata_bytes)
    assert process.metadata_bytes > 0
    return {each // 4096 for each in (process.zero_bytes, line.zero_bytes, told.zero_bytes)}


@pytest.mark.parametrize("call", [pages._PAGEMAP_SCAN, 0], ids=["scan", "entries"])
def test_zeros_count_as_saved_while_they_take_nothing(
    call: int, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when they were written since the engine noted them, nor when their region has ended; and
    what was never touched is none of them.
    """
    monkeypatch.setattr(pages, "_PAGEMAP_SCAN", call)
    whole = memory.pages(96)
    zeros = whole[: 64 << 12]
    zeros[:] = 0
    region = engine.register(whole)
    engine.scan(2, eager=True)
    assert zeros_told() == {64}
    assert not zeros[: 8 << 12].any()  # what is read is on the kernel's zero page at least now
    assert zeros_told() == {64}
    zeros[: 16 << 12 : 4096] = 1
    assert zeros_told() == {48}
    region.release()
    assert zeros_told() == {0}
    libc = ctypes.CDLL(None)
    assert libc.madvise(ctypes.c_void_p(memory.address_of(whole)), 96 << 12, MADV_DONTNEED) == 0
    # Now it takes nothing, but that is none of the engine's doing.
    assert zeros_told() == {0}
    whole[:] = 1
    assert zeros_told() == {0}


def test_the_zero_page_is_told_from_what_a_fork_left_without_a_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither is the process's alone: the zero page counts only where all of that is in no RSS."""
    monkeypatch.setattr(pages, "_PAGEMAP_SCAN", 0)
    zeros, common = memory.guarded(64), memory.guarded(64)
    for each in (zeros, common):
        each[: 32 << 12] = 1
        assert not each[32 << 12 : 48 << 12].any()
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        zeros[: 32 << 12] = 2
        seen = pages.look(os.getpid(), proc.smaps(), {}, [])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for each, count in ((zeros, 16), (common, 0)):
        start = memory.address_of(each)
        inside = (seen.start >= start) & (seen.start < start + each.nbytes)
        assert int(seen.pages[inside & (seen.kind == Kind.ZERO)].sum()) == count


@pytest.mark.parametrize("call", [pages._PAGEMAP_SCAN, 0], ids=["scan", "entries"])
def test_a_process_that_ends_while_it_is_looked_at_is_gone(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page tables go while its pagemap is open; kernels without PAGEMAP_SCAN say less."""
    child = Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=PIPE, stdout=PIPE)
    with child:
        assert child.stdout and child.stdout.readline()
        mappings = proc.smaps(child.pid)

        def open_and_kill(path: str, flags: int) -> int:
            descriptor = os_open(path, flags)
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            return descriptor

        os_open = os.open
        monkeypatch.setattr(pages, "_PAGEMAP_SCAN", call)
        monkeypatch.setattr(os, "open", open_and_kill)
        with pytest.raises(ProcessLookupError):
            pages.look(child.pid, mappings, {})


def test_files_are_told_apart_by_their_device_too() -> None:
    """A memfd and a file of /dev/shm may have the same inode: their frames are not common ones."""
    rows = [
        proc.Mapping(start, start + 4096, "rw-p", device, 7, path, b"", 0)
        for start, device, path in (
            (1 << 20, "00:01", "/memfd:ksmpy (deleted)"),
            (2 << 20, "00:17", "/dev/shm/ksmpy-0/app.ksmpy"),
            (3 << 20, "00:17", "/dev/shm/ksmpy-0/app.ksmpy"),
        )
    ]
    overlays, spans = pages._private(rows, {})
    assert [file for _, _, file, _ in overlays] == [0, 1, 1] and len(spans) == 3


def test_it_says_what_the_engine_says_of_itself(place: Path) -> None:
    """Ties are Engine.shares(), pages on frames its merging_pages; saved is its own net gain."""
    with ksmpy.Store.open("mine") as store, ksmpy.Engine(store=store) as engine:
        one = memory.distinct(256)
        other, part = memory.twin(one), memory.distinct(64, seed=3)
        part[: 16 * 4096] = one[: 16 * 4096]
        for name, each in (("one", one), ("other", other), ("part", part)):
            engine.register(each, name=name)
        engine.scan(2, eager=True)
        seen = portrait([os.getpid()])
        stats = engine.stats()
        (process,) = seen.processes
        assert process.on_frames_bytes == stats.merging_pages * 4096
        assert seen.totals.frames_bytes == stats.pages_shared * 4096
        shares = {frozenset(share.names): share.pages for share in engine.shares()}
        ties = {frozenset((tie.a.buffer, tie.b.buffer)): tie.nbytes // 4096 for tie in seen.ties}
        assert ties == shares == {
            frozenset({"one", "other"}): 256,
            frozenset({"one", "part"}): 16,
            frozenset({"other", "part"}): 16,
        }  # fmt: skip
        saved = stats.pages_sharing * 4096 - seen.totals.overhead_bytes
        assert seen.totals.saved_bytes == max(0, saved)
        # Its own tables cost as much as what is saved, though the store's are all others'.
        own = stats.metadata_bytes - store.stats().metadata_bytes
        assert process.metadata_bytes == pytest.approx(own, rel=0.2) and own > 1 << 16
        assert process.mappings == pytest.approx(stats.vmas, abs=20)
        assert (process.freeze, process.tracking) == (engine.freeze, engine.tracking)


def test_figures_of_a_group_agree_with_each_other_and_with_the_kernel(
    told: tuple[dict[str, Any], Path],
) -> None:
    """Sums are sums; what is mapped less what was copied lies on frames; copies add up."""
    data, _ = told
    totals, processes = data["totals"], data["processes"]
    assert len(processes) == 3 and data["unseen"] == []
    for name in ("pss_bytes", "rss_bytes", "on_frames_bytes", "written_bytes", "mappings"):
        assert totals[name] == sum(each[name] for each in processes)
    assert totals["would_be_bytes"] == totals["paid_bytes"] + totals["saved_bytes"]
    gained = totals["on_frames_bytes"] - totals["frames_bytes"] + totals["zero_bytes"]
    assert totals["saved_bytes"] == gained - totals["overhead_bytes"] > 5 << 20
    shown = totals["kernel_mapped_bytes"] - totals["kernel_copied_bytes"]
    assert shown == totals["on_frames_bytes"]
    beyond = sum(copy["mapped_bytes"] - copy["kept_bytes"] for copy in data["copies"])
    assert beyond == gained - totals["zero_bytes"]
    assert abs(sum(each["saved_bytes"] for each in processes) - totals["saved_bytes"]) < 8
    largest = data["copies"][0]
    assert {holder["buffer"] for holder in largest["holders"]} == {"model"}
    assert largest["kept_bytes"] == 1016 * 4096 and len(largest["holders"]) == 3
    for process in processes:
        assert sum(process["kinds"].values()) > process["on_frames_bytes"]
    assert totals["since"] <= data["taken"] and data["timeline"]["times"][-1] == data["taken"]


def resolve(data: Any, path: str) -> int:
    """The figure of a path."""
    for part in path.split("."):
        data = data[int(part)] if isinstance(data, list) else data[part]
    assert isinstance(data, int), path
    return data


def figures(html: str) -> list[tuple[str, str, str]]:
    """(kind, path, text) of each marked one."""
    return re.findall(r'data-(bytes|count)="([^"]+)">([^<]*)<', html)


def agree(html: str, data: dict[str, Any]) -> int:
    """Compare each figure with the data; how many there were."""
    found = figures(html)
    for kind, path, text in found:
        value = resolve(data, path)
        assert unescape(text) == (human_bytes(value) if kind == "bytes" else str(value)), path
    return len(found)


def test_every_figure_is_that_of_json(told: tuple[dict[str, Any], Path]) -> None:
    """On the page as it is written, and in the data that lies in it."""
    data, file = told
    html = file.read_text()
    assert agree(html, data) > 60
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert json.loads(inside) == data


def test_the_page_is_one_file_and_names_are_words(told: tuple[dict[str, Any], Path]) -> None:
    """Nothing is fetched, by its own policy; a buffer's name with HTML in it stays a name."""
    _, file = told
    html = file.read_text()
    assert file.stat().st_size < 1_700_000
    assert "default-src 'none'" in html and "<b>index <b></b>" not in html
    own = html[: html.index('<script type="application/json"')]
    assert not re.search(r"(src|href)\s*=|url\(|@import", own)


def test_names_that_look_like_marks_of_the_template(place: Path, tmp_path: Path) -> None:
    """Names stay names, even one that UTF-8 has no bytes for: neither the page's script nor its
    style is put where they stand.
    """
    pytest.importorskip("bokeh")
    names = {"/*script*/", "/*style*/", "<!--data-->", "\ud800"}
    file = tmp_path / "report.html"
    with ksmpy.Engine(store="mine") as engine:
        first = memory.distinct(64)
        arrays = dict(zip(names, (first, *(memory.twin(first) for _ in range(3))), strict=True))
        for name, each in arrays.items():
            engine.register(each, name=name)
        engine.scan(3)
        assert main(["report", str(os.getpid()), "-o", str(file)]) == 0
    html = file.read_text()
    for part in ("report.css", "report.js"):
        assert html.count((resources.files("ksmpy.watch.assets") / part).read_text()) == 1
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    holders = {holder["buffer"] for holder in json.loads(inside)["copies"][0]["holders"]}
    assert holders == names


def test_the_page_before_stays_until_the_next_is_complete(tmp_path: Path) -> None:
    """A file is exchanged, and keeps its mode; what is none is written to."""
    file = tmp_path / "report.html"
    _put(str(file), b"first")
    file.chmod(0o640)
    kept = os.open(file, os.O_RDONLY)
    _put(str(file), b"second")
    assert os.read(kept, 100) == b"first" and file.read_bytes() == b"second"
    os.close(kept)
    assert file.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link"
    link.symlink_to(file)
    _put(str(link), b"third")
    assert link.is_symlink() and file.read_bytes() == b"third"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    _put(str(pipe), b"fourth")
    assert os.read(reader, 100) == b"fourth"
    os.close(reader)
    with pytest.raises(FileNotFoundError) as raised:
        _put(str(tmp_path / "nowhere" / "file"), b"")
    assert raised.value.filename == str(tmp_path / "nowhere" / "file")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "report.html"]


def test_a_page_that_finds_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    """Nor does it leave half of itself."""
    file = tmp_path / "report.html"
    file.write_bytes(b"first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _put(str(file), bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == b"first" and os.listdir(tmp_path) == [file.name]


# Put in front of everything else: what goes wrong is noted, and what the charts have been given.
_PROBE = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => wrong.push("policy " + event.blockedURI));
for (const level of ["error", "warn"])
  console[level] = (...words) => wrong.push(words.map(String).join(" "));
addEventListener("load", () => setTimeout(() => {
  const charts = {};
  for (const doc of Bokeh.documents)
    for (const model of doc._all_models.values())
      if (model.type == "ColumnDataSource" && model.name) {
        const columns = {};
        for (const [key, value] of Object.entries(model.data)) columns[key] = Array.from(value);
        (charts[model.name] ??= []).push(columns);
      }
  const told = document.createElement("script");
  told.type = "application/json";
  told.id = "told";
  const canvases = [];
  const search = (root) => {
    for (const each of root.querySelectorAll("*")) {
      if (each.tagName == "CANVAS") canvases.push(each.width * each.height);
      if (each.shadowRoot) search(each.shadowRoot);
    }
  };
  search(document);
  const width = [document.documentElement.scrollWidth, innerWidth];
  const all = { wrong, charts, canvases, width, ready: document.documentElement.dataset.ready };
  told.textContent = JSON.stringify(all).replaceAll("<", "\\\\u003c");
  document.body.append(told);
}, 2500));
</script>"""


def browse(file: Path, place: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """The page as Chromium has it in the end, and what the probe has noted."""
    assert CHROMIUM is not None
    copy = place / "probed.html"
    copy.write_text(file.read_text().replace("<head>", "<head>" + _PROBE, 1))
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={place / 'profile'}",
            "--virtual-time-budget=20000", "--dump-dom", *options, copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, "HOME": str(place), "XDG_RUNTIME_DIR": str(place)},
    )  # fmt: skip
    found = re.search(r'<script type="application/json" id="told">(.*?)</script>', done.stdout)
    assert found, done.stderr[-2000:]
    return done.stdout, json.loads(found[1])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt-get install chromium)")
@pytest.mark.parametrize(
    "option", ["--window-size=500,900", "--blink-settings=preferredColorScheme=0"]
)
def test_a_browser_shows_it_without_a_word_of_complaint(
    told: tuple[dict[str, Any], Path], tmp_path: Path, option: str
) -> None:
    """No error, no fetch; every figure and every chart's data are those of --json; in a narrow
    window, where nothing stands out at the side, and in the dark.
    """
    data, file = told
    html, seen = browse(file, tmp_path, option)
    assert seen["width"][0] <= seen["width"][1]
    assert seen["wrong"] == [] and seen["ready"] == "1"
    assert len(seen["canvases"]) >= 5 and all(seen["canvases"])
    assert agree(html, data) > 60
    charts = seen["charts"]
    line = data["timeline"]
    (over_time,) = charts["over_time"]
    for each in line["lines"]:
        assert over_time[str(each["pid"])] == [value / (1 << 20) for value in each["pss"]]
    assert over_time["saved"][-1] == sum(e["saved"][-1] for e in line["lines"]) / (1 << 20)
    (strengths,) = charts["strengths"]
    first, second = (str(process["pid"]) for process in data["processes"][:2])
    common = sum(
        tie["nbytes"]
        for tie in data["ties"]
        if {str(tie["a"]["pid"]), str(tie["b"]["pid"])} == {first, second}
    )
    pairs = dict(zip(zip(strengths["a"], strengths["b"]), strengths["nbytes"]))  # noqa: B905
    assert pairs[first, second] == pairs[second, first] == common > 4 << 20
    (ribbons,) = charts["ribbons"]
    holders = [holder for copy in data["copies"] for holder in copy["holders"]]
    assert set(ribbons["held"]) <= {human_bytes(holder["nbytes"]) for holder in holders}
    cells = sum(len(strip["cells"]) for strip in data["strips"])
    assert sum(len(each["left"]) for each in charts["map"]) == cells


def test_processes_that_share_each_with_itself_alone(place: Path) -> None:
    """There are no pairs of processes to draw; what they share is drawn all the same."""
    pytest.importorskip("bokeh")
    with workers("app", 2, TWICE) as both:
        seen = portrait(pid for pid, _ in both)
    assert [on_frames for _, on_frames in both] == [512, 512]
    assert {(tie.a.pid, tie.b.pid) for tie in seen.ties} == {(pid, pid) for pid, _ in both}
    made = charts(seen)
    assert "ribbons" in made and "strengths" not in made


def test_pids_bring_those_who_share_with_them_and_nobody_else(place: Path) -> None:
    """Two stores, three processes: one names its partner, too."""
    with workers("one", 2) as pair, workers("two", 1):
        data = json.loads(report("--json", str(pair[0][0])).stdout)
        assert [each["pid"] for each in data["processes"]] == sorted(pid for pid, _ in pair)
        for pid, on_frames in pair:
            (mine,) = (each for each in data["processes"] if each["pid"] == pid)
            assert mine["on_frames_bytes"] == on_frames * 4096
        assert [store["name"] for store in data["stores"]] == ["one"]
        both = json.loads(report("--json").stdout)["processes"]
        assert len({each["pid"] for each in both} & {pid for pid, _ in pair}) == 2


@pytest.mark.parametrize("which", ["below", "store"])
def test_a_worker_that_ends_meanwhile_is_left_out(
    which: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has given its number: the others are told of. If none is left, that is told."""
    with workers("app", 3) as started:
        pids = [pid for pid, _ in started]
        arguments = ["--store", "app"] if which == "store" else [str(os.getpid())]
        ending = pids[:1]

        def in_use_when_some_have_ended() -> dict[int, set[Any]]:
            for pid in ending:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            ending.clear()
            return {pid: files for pid, files in stores_in_use().items() if pid in pids}

        stores_in_use = subjects.stores_in_use
        monkeypatch.setattr(subjects, "stores_in_use", in_use_when_some_have_ended)
        assert main(["report", "--json", *arguments]) == 0
        seen = json.loads(capsys.readouterr().out)
        assert [each["pid"] for each in seen["processes"]] == sorted(pids[1:])
        assert seen["unseen"] == []
        ending += pids[1:]
        assert main(["report", "--json", *arguments]) == 1
        assert "no process here uses ksmpy" in one_line(capsys.readouterr().err)


def report(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """In this test's directory of stores."""
    where = {"KSMPY_STORE_DIR": os.environ["KSMPY_STORE_DIR"]}
    return command("report", *arguments, env=where | env)


def test_who_has_merged_nothing_is_told_so(place: Path) -> None:
    """One line each: no such process, one without ksmpy, an unknown store, PID and store."""
    for arguments, words in (
        (["4194305"], "no process 4194305"),
        ([str(os.getpid())], f"process {os.getpid()} has merged nothing"),
        (["--store", "nowhere"], "there is no store 'nowhere'"),
    ):
        done = report("--json", *arguments)
        assert done.returncode == 1 and words in one_line(done.stderr)
    done = report("--store", "x", "1")
    assert done.returncode == 2 and "not allowed with" in one_line(done.stderr)
    ksmpy.Store.open("idle").close()
    done = report("--store", "idle")
    assert done.returncode == 1 and "no process uses the store 'idle'" in one_line(done.stderr)


def test_a_store_of_the_environment_is_for_who_names_nothing_else(place: Path) -> None:
    """PIDs and --store outweigh it; where it is not there, or nobody uses it, all are shown."""
    ksmpy.Store.open("idle").close()
    with workers("one", 1) as ((first, _),), workers("two", 1) as ((second, _),):
        for usual, arguments, expected in (
            ("one", [], {first}),
            ("one", [str(second)], {second}),
            ("one", ["--store", "two"], {second}),
            ("nowhere", [str(second)], {second}),
            ("nowhere", [], {first, second}),
            ("idle", [], {first, second}),
        ):
            done = report("--json", *arguments, KSMPY_STORE=usual)
            assert done.returncode == 0, (usual, arguments, done.stderr)
            seen = {each["pid"] for each in json.loads(done.stdout)["processes"]}
            # Whoever else uses ksmpy on this machine may be among all.
            assert seen & {first, second} == expected
        done = report("--json", "--store", "nowhere", KSMPY_STORE="nowhere")
        assert done.returncode == 1 and "no store 'nowhere'" in one_line(done.stderr)


def test_without_bokeh_it_is_one_line_and_json_needs_it_not(place: Path) -> None:
    """The extra is named."""
    code = (
        "import sys; sys.modules['bokeh'] = None\n"
        "from ksmpy.cli import main; sys.exit(main(['report', *sys.argv[1:]]))"
    )
    with workers("app", 1) as ((pid, _),):
        argv = [sys.executable, "-c", code, str(pid)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        line = one_line(done.stderr)
        assert "bokeh is not installed" in line and "pip install 'ksmpy[report]'" in line
        looking = [*argv[:2], code.replace("import sys;", "import sys, ksmpy.watch.portrait as p;"
            " p.portrait = None;"), str(pid)]  # fmt: skip
        done = subprocess.run(looking, capture_output=True, text=True, timeout=60)
        assert "bokeh is not installed" in done.stderr, "who cannot draw has not to look first"
        done = subprocess.run([*argv, "--json"], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["processes"][0]["pid"] == pid
