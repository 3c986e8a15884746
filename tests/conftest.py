"""What all tests share: one run for each way of freezing and tracking, and nothing left behind."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import oracle, short, swap
from support.patience import patience, until

if TYPE_CHECKING:
    from ksmpy import Store
    from support.nursery import Nursery

FREEZES = ("uffd-wp", "uffd-move", "uffd-remap", "signal")
TRACKINGS = ("wp-async", "checksum")
#: How long threads and descriptors may take to go after a test, in seconds.
PATIENCE = patience(5)
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Mode:
    """A way of freezing and a way of tracking."""

    freeze: str
    tracking: str

    @property
    def options(self) -> dict[str, str]:
        """The keyword arguments for Engine."""
        return {"freeze": self.freeze, "tracking": self.tracking}

    @property
    def efault_ok(self) -> bool:
        """Whether a system call that touches a frozen page may fail with EFAULT."""
        return self.freeze == "signal" or not capabilities()["uffd_kernel_mode"]

    def missing(self) -> str | None:
        """What this machine lacks for it, or None."""
        needs = {
            "uffd-wp": ("uffd", "uffd_wp_shmem", "mremap_dontunmap"),
            "uffd-move": ("uffd", "uffd_move"),
            "uffd-remap": ("uffd", "mremap_dontunmap"),
            "signal": (),
            "wp-async": ("uffd", "uffd_wp_async", "pagemap_scan"),
            "checksum": (),
        }
        for need in needs[self.freeze] + needs[self.tracking]:
            if not capabilities()[need]:
                return f"this machine has no {need}"
        return None

    def __iter__(self) -> Iterator[str]:
        return iter((self.freeze, self.tracking))

    def __str__(self) -> str:
        return f"{self.freeze}+{self.tracking}"


@cache
def capabilities() -> dict[str, int]:
    """What the engine's own probe says."""
    from ksmpy import native

    return native.probe()


MODES = [Mode(freeze, tracking) for freeze in FREEZES for tracking in TRACKINGS]
#: For tests that take long: each way of freezing once.
EACH_FREEZE = [
    Mode("uffd-wp", "wp-async"),
    Mode("uffd-move", "wp-async"),
    Mode("uffd-remap", "checksum"),
    Mode("signal", "checksum"),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--short`: what `make test` runs, in two halves; after it, `--rest` makes it everything."""
    parser.addoption(
        "--short",
        action="store_true",
        help="each test in one or two modes, which its name decides, shorter tortures, and not what"
        " is marked `rest`",
    )
    parser.addoption("--rest", action="store_true", help="all that --short leaves out")
    parser.addoption("--half", type=int, choices=(1, 2), help="of two that may run side by side")


def pytest_configure(config: pytest.Config) -> None:
    """A length that somebody has set by name stays."""
    config.addinivalue_line("markers", "rest: takes long, and a newcomer can do without it")
    if config.getoption("short") and config.getoption("rest"):
        raise pytest.UsageError("--short and --rest are two parts of the suite")
    if config.getoption("short"):
        for name, length in short.LENGTHS.items():
            os.environ.setdefault(name, length)


def _in_a_mode(item: pytest.Item) -> tuple[str, str] | None:
    """The test's name without its mode, and the mode; None: it has none, or it is not here."""
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        if isinstance(value, Mode) and value.missing() is None:
            return item.nodeid.replace(str(value), ""), str(value)
    return None


def _modes_of_the_short_form(items: list[pytest.Item]) -> dict[str, set[str]]:
    """By test, chosen among those that were asked for (-k)."""
    import ksmpy

    with ksmpy.Engine() as engine:
        own = f"{engine.freeze}+{engine.tracking}"
    there: dict[str, set[str]] = {}
    two = set()
    for item in items:
        if (found := _in_a_mode(item)) is not None:
            there.setdefault(found[0], set()).add(found[1])
            if item.path.stem in short.IN_TWO_MODES:
                two.add(found[0])
    return {
        test: short.modes_of(test, modes, own, count=2 if test in two else 1)
        for test, modes in there.items()
    }


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not in the part (short form, rest) or the half that was asked for."""
    left_out: list[pytest.Item] = []

    def keep(which: Callable[[pytest.Item], bool]) -> None:
        left_out.extend(item for item in items if not which(item))
        items[:] = [item for item in items if which(item)]

    if config.getoption("short") or config.getoption("rest"):
        chosen = _modes_of_the_short_form(items)

        def is_short(item: pytest.Item) -> bool:
            at = _in_a_mode(item)
            return not item.get_closest_marker("rest") and (not at or at[1] in chosen[at[0]])

        keep(lambda item: is_short(item) == bool(config.getoption("short")))
    if half := config.getoption("half"):
        keep(lambda item: short.half_of(item.path.stem) == half)
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    """What is there before the first test is for the collector to pass over from here on.

    It is looked through after each test otherwise, which takes longer than most tests do.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way of freezing with each way of tracking that this machine offers."""
    chosen: Mode = request.param
    reason = chosen.missing()
    if reason is not None:
        pytest.skip(f"{chosen}: {reason}")
    return chosen


MakeEngine = Callable[..., Any]


@pytest.fixture
def make_engine(mode: Mode) -> Iterator[MakeEngine]:
    """Makes engines of the mode at hand and closes them after the test."""
    import ksmpy

    made: list[Any] = []

    def make(**options: Any) -> Any:
        engine = ksmpy.Engine(**{**mode.options, **options})
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> Any:
    """One engine of the mode at hand."""
    return make_engine()


@pytest.fixture
def auto() -> Iterator[Any]:
    """One engine that chooses its mode by itself."""
    import ksmpy

    with ksmpy.Engine() as engine:
        yield engine


@pytest.fixture(params=EACH_FREEZE, ids=str)
def enabled(request: pytest.FixtureRequest) -> Iterator[Any]:
    """ksmpy.enable in each way of freezing, undone after the test."""
    import ksmpy

    reason = request.param.missing()
    if reason is not None:
        pytest.skip(reason)
    yield lambda **options: ksmpy.enable(sleep_millisecs=1, **request.param.options, **options)
    ksmpy.disable()


@pytest.fixture(scope="session")
def arrow() -> Any:
    """pyarrow, imported before a test counts threads: it starts some for good."""
    return pytest.importorskip("pyarrow")


@pytest.fixture
def above() -> Iterator[Path]:
    """A directory on tmpfs for the named stores' own directory."""
    if not os.access(SHM, os.W_OK):
        pytest.skip("this user may make nothing in /dev/shm")
    path = Path(tempfile.mkdtemp(dir=SHM, prefix="ksmpy-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def place(above: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The named stores' directory in this test; not there yet."""
    path = above / "stores"
    monkeypatch.setenv("KSMPY_STORE_DIR", str(path))
    return path


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """The interpreter that gives birth to the processes of a module's tests."""
    from support.nursery import Nursery

    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def store(nursery: Nursery) -> Iterator[Store]:
    """A store without a name, for the nursery's processes, which end with the test."""
    from ksmpy import Store

    with Store.anonymous() as store:
        yield store
        nursery.reap_all()


@pytest.fixture
def swap_area(tmp_path: Path) -> Iterator[str]:
    """A place to swap to, which is not in use before the test and after it."""
    reason = swap.refusal()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(swap.place(tmp_path))
        except OSError as error:
            pytest.skip(f"no swap area on this file system: {error}")
        except swap.Failed as error:
            pytest.skip(f"no swap area on this file system: {error.stderr!r}")
        yield path


def _threads() -> dict[int, str]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # it ended meanwhile
            continue
        if not name.startswith("iou-"):  # io_uring's workers stay as long as the process
            found[int(task.name)] = name
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def _stores() -> dict[int, str]:
    return {m.start: m.path for m in oracle.store_mappings()}


def _new(look: Callable[[], dict[int, str]], before: dict[int, str]) -> dict[int, str]:
    return {key: what for key, what in look().items() if before.get(key) != what}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After each test: no thread, no descriptor and no mapping of a store more than before it."""
    looks = (_threads, _descriptors, _stores)
    before = [look() for look in looks]
    yield

    def left() -> list[dict[int, str]]:
        gc.collect()
        return [new for look, old in zip(looks, before, strict=True) if (new := _new(look, old))]

    until(
        lambda: not left(),
        lambda: f"left behind: {left()}; {threading.enumerate()}",
        limit=PATIENCE,
    )
