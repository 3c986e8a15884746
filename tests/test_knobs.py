"""The knobs: the kernel's names, defaults, ranges and error codes."""

from __future__ import annotations

import errno
import time
from typing import Any

import numpy as np
import pytest

from conftest import FREEZES, Mode
from ksmpy import KnobError, KsmpyError, threads
from ksmpy.engine.advisor import Advisor, Limits
from ksmpy.engine.knobs import KNOBS
from ksmpy.whole.options import environment
from support import memory
from support.knobs import LONE_PAGE, refused, visits
from support.patience import patience, until

DEFAULTS = {
    "run": 0,
    "pages_to_scan": 4096,
    "sleep_millisecs": 20,
    "merge_across_nodes": 1,
    "max_page_sharing": 256,
    "stable_node_chains_prune_millisecs": 2000,
    "use_zero_pages": 1,
    "smart_scan": 1,
    "advisor_mode": "none",
    "advisor_target_scan_time": 200,
    "advisor_max_cpu": 70,
    "advisor_min_pages_to_scan": 500,
    "advisor_max_pages_to_scan": 30000,
    "vma_share_percent": 50,
}
SWITCHES = {"run", "merge_across_nodes", "use_zero_pages", "smart_scan"}
#: How long the background scanner may take, in seconds.
PATIENCE = patience(20)


def test_defaults(auto: Any) -> None:
    """A new engine has the kernel's defaults, but for pages_to_scan and use_zero_pages."""
    assert auto.knobs.asdict() == DEFAULTS


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("run", [0, 2, 1], [-1, 3]),
        ("pages_to_scan", [0, 1, 2**32 - 1], [-1, 2**32]),
        ("sleep_millisecs", [0, 1, 2**32 - 1], [-1, 2**32]),
        ("merge_across_nodes", [0, 1], [-1, 2]),
        ("max_page_sharing", [2, 1000], [-1, 0, 1]),
        ("stable_node_chains_prune_millisecs", [0, 5000], [-1, 2**32]),
        ("use_zero_pages", [1, 0], [-1, 2]),
        ("smart_scan", [0, 1], [-1, 2]),
        ("advisor_target_scan_time", [1, 1000], [-1, 0]),
        ("advisor_max_cpu", [1, 100], [-1]),
        ("advisor_min_pages_to_scan", [1, 1000], [-1]),
        ("advisor_max_pages_to_scan", [1, 1000], [-1]),
        ("vma_share_percent", [1, 100], [0, 101]),
    ],
)
def test_range(auto: Any, name: str, good: list[int], bad: list[int]) -> None:
    """Values in range are kept; others are EINVAL and change nothing."""
    for value in good:
        setattr(auto.knobs, name, value)
        assert getattr(auto.knobs, name) == value
        for wrong in bad:
            refused(auto, name, wrong, errno.EINVAL)


def test_types(auto: Any) -> None:
    """Numbers must be ints (numpy's too), the mode a str: anything else is a TypeError, and so is
    a bool where 1 is a number and no switch.
    """
    for value in (True, 1.0, "1", None):
        for name in KNOBS:
            if value is True and name in SWITCHES:
                continue
            with pytest.raises(TypeError, match=name):
                setattr(auto.knobs, name, value)
    with pytest.raises(TypeError):
        auto.knobs.advisor_mode = 1
    auto.knobs.sleep_millisecs = np.int64(5)
    assert auto.knobs.sleep_millisecs == 5


def test_switches_take_bools(auto: Any) -> None:
    """True is 1 and False is 0, and read back as such; numpy's too."""
    for name in SWITCHES:
        for value in (False, True, np.False_, np.True_):
            setattr(auto.knobs, name, value)
            assert getattr(auto.knobs, name) == value
            assert type(getattr(auto.knobs, name)) is int
    for value in (True, np.True_):
        with pytest.raises(TypeError, match="pages_to_scan must be an int, not bool"):
            auto.knobs.pages_to_scan = value


def test_a_refused_value_is_a_value_error_too(auto: Any) -> None:
    """KnobError is a ValueError, and an OSError with the kernel's errno."""
    for name, value, number in (
        ("smart_scan", 2, errno.EINVAL),
        ("advisor_mode", "x", errno.EINVAL),
        ("run", -1, errno.EINVAL),
    ):
        with pytest.raises(KnobError) as caught:
            setattr(auto.knobs, name, value)
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, OSError)
        assert not isinstance(caught.value, KsmpyError)
        assert caught.value.errno == number and name in str(caught.value)


def test_what_is_shared_is_a_knob_error_too(auto: Any) -> None:
    """EBUSY of the native engine's, as EINVAL of the range."""
    first = memory.distinct(8)
    second = memory.twin(first)
    auto.register(first), auto.register(second)
    auto.scan(eager=True)
    with pytest.raises(KnobError) as caught:
        auto.knobs.merge_across_nodes = False
    assert caught.value.errno == errno.EBUSY and isinstance(caught.value, ValueError)
    assert auto.knobs.merge_across_nodes == 1


def test_start_and_stop_are_run(engine: Any) -> None:
    """start() scans in the background, stop() ends it with what is merged; both can be repeated."""
    first = memory.distinct(16)
    second = memory.twin(first)
    engine.register(first), engine.register(second)
    engine.start(), engine.start()
    assert engine.knobs.run == 1
    until(lambda: engine.stats().pages_sharing == 16, engine.stats, limit=PATIENCE)
    engine.stop(), engine.stop()
    assert engine.knobs.run == 0 and engine.stats().pages_sharing == 16
    engine.close()
    for call in (engine.start, engine.stop):
        with pytest.raises(KsmpyError, match="closed"):
            call()


def test_unknown_knob(auto: Any) -> None:
    """A knob that does not exist is an AttributeError that names those that do."""
    with pytest.raises(AttributeError, match="pages_to_scan"):
        auto.knobs.pages_to_scna = 1
    with pytest.raises(AttributeError, match="pages_to_scan"):
        _ = auto.knobs.pages_to_scna
    with pytest.raises(AttributeError):
        del auto.knobs.run


def test_pages_to_scan_belongs_to_the_advisor(auto: Any) -> None:
    """While the advisor is on, writing pages_to_scan is EINVAL; off, its default is back."""
    auto.knobs.advisor_mode = "scan-time"
    assert auto.knobs.pages_to_scan == 500
    refused(auto, "pages_to_scan", 1000, errno.EINVAL)
    refused(auto, "advisor_mode", "always", errno.EINVAL)
    auto.knobs.advisor_mode = "none"
    assert auto.knobs.pages_to_scan == DEFAULTS["pages_to_scan"]


def test_advisor_sets_the_rate(auto: Any) -> None:
    """With the advisor on, the background scanner moves pages_to_scan after a pass."""
    data = memory.distinct(64)
    auto.register(data)
    auto.knobs.advisor_mode = "scan-time"
    auto.knobs.run = 1
    until(lambda: auto.knobs.pages_to_scan != 500, "nobody sets the rate", limit=PATIENCE)
    assert 0 < auto.knobs.pages_to_scan <= 30000


def test_run_merges_in_the_background(engine: Any) -> None:
    """Run 1 merges by itself, 0 keeps what is merged, 2 gives it back."""
    first = memory.distinct(32)
    second = memory.twin(first)
    engine.register(first)
    engine.register(second)
    assert engine.stats().pages_sharing == 0
    engine.knobs.run = 1
    until(lambda: engine.stats().pages_sharing == 32, engine.stats, limit=PATIENCE)
    engine.knobs.run = 0
    assert engine.stats() == engine.stats()
    assert engine.stats().pages_sharing == 32
    engine.knobs.run = 2
    assert engine.knobs.run == 2
    assert (engine.stats().pages_sharing, engine.stats().pages_shared) == (0, 0)
    assert len(engine.regions()) == 2


def test_unmerge_puts_run_back(engine: Any) -> None:
    """unmerge() is run 2, and then the earlier run again."""
    first = memory.distinct(8)
    second = memory.twin(first)
    engine.register(first)
    engine.register(second)
    engine.scan(eager=True)
    assert engine.stats().pages_sharing == 8
    engine.unmerge()
    assert engine.knobs.run == 0
    assert engine.stats().pages_sharing == 0
    engine.knobs.run = 1
    engine.unmerge()
    assert engine.knobs.run == 1


def test_stopping_is_quick(auto: Any) -> None:
    """The scanner is gone when the write to run returns, also in the middle of a sleep."""
    auto.knobs.sleep_millisecs = 600_000
    auto.knobs.run = 1
    time.sleep(0.05)
    begin = time.monotonic()
    auto.knobs.run = 0
    assert time.monotonic() - begin < PATIENCE
    assert not auto._core._daemon.running


def test_an_interrupt_while_the_scanner_starts(auto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the thread is there already, but nobody has been told: it ends by itself."""
    start = threads.start

    def interrupted(*args: Any) -> None:
        start(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            auto.knobs.run = 1
    assert not auto._core._daemon.running  # that no thread is left is seen after each test
    auto.knobs.run = 1
    assert auto._core._daemon.running


def test_an_interrupt_while_the_scanner_stops(auto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the thread was told to stop: it can still be stopped."""
    auto.knobs.run = 1

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(threads.event()), "set", interrupted)
        with pytest.raises(KeyboardInterrupt):
            auto.knobs.run = 0
    assert auto._core._daemon.running
    auto.knobs.run = 0
    assert not auto._core._daemon.running


def test_a_failing_scanner_says_so(
    auto: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in the background is logged once, and run says that nobody scans any more."""

    def fail(pages: int, flags: int) -> Any:
        raise OSError(errno.EIO, "ksmpy_scan: broken")

    with monkeypatch.context() as patch:
        patch.setattr(auto._core._native, "scan", fail)
        auto.knobs.run = 1
        until(lambda: auto.knobs.run == 0, "the scanner goes on", limit=PATIENCE)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "ksmd stops" in caplog.text and "broken" in caplog.text
    auto.knobs.run = 1
    assert auto.knobs.run == 1


@pytest.mark.parametrize("name", ["merge_across_nodes", "max_page_sharing"])
def test_busy_while_shared(auto: Any, name: str) -> None:
    """Knobs that the trees depend on are EBUSY while anything is shared."""
    first = memory.distinct(4)
    second = memory.twin(first)
    auto.register(first)
    auto.register(second)
    auto.scan(eager=True)
    other = 0 if name == "merge_across_nodes" else 7
    refused(auto, name, other, errno.EBUSY)
    auto.knobs.run = 2
    setattr(auto.knobs, name, other)
    assert getattr(auto.knobs, name) == other


def test_closed_engine(auto: Any) -> None:
    """The knobs of a closed engine raise KsmpyError."""
    knobs = auto.knobs
    auto.close()
    for name in ("run", "pages_to_scan", "use_zero_pages", "advisor_mode"):
        with pytest.raises(KsmpyError, match="closed"):
            setattr(knobs, name, "none" if name == "advisor_mode" else 1)


def test_environment() -> None:
    """KSMPY_* variables become options; a bad one is named."""
    env = {"KSMPY_FREEZE": "signal", "KSMPY_PAGES_TO_SCAN": " 7 ", "KSMPY_RUN": "", "HOME": "/"}
    assert environment(env) == {"freeze": "signal", "pages_to_scan": 7}
    for variable, value in (("KSMPY_TRACKING", "soft"), ("KSMPY_MIN_BYTES", "1k")):
        with pytest.raises(ValueError, match=variable):
            environment({variable: value})


# ---- the advisor's arithmetic ------------------------------------------------------------


def test_advisor_first_pass() -> None:
    """A first pass: change is 30 % of 100, as the previous change counts as 0."""
    # factor 200*100/100 = 200; pages 500*100/200 = 250; change (70*0+30*100)/100 = 30;
    # 250*30/100 = 75; per_cpu = 500/(1000*100/(100*1000) = 1) = 500; 75 is raised to 500*10.
    assert Advisor().advise(500, 100, 1000, Limits()) == 5000


def test_advisor_is_capped_by_cpu_and_by_its_maximum() -> None:
    """The rate stays between 10 and max_cpu percent of a core, and below the maximum."""
    slow = Advisor()
    # cpu% = 50_000*100/(100*1000) = 50; per_cpu = 1000/50 = 20: 200 to 1400 pages.
    assert slow.advise(1000, 100, 50_000, Limits(target_scan_time=1)) == 1400
    assert Advisor().advise(1000, 100, 50_000, Limits(target_scan_time=100_000)) == 200
    assert Advisor().advise(100_000, 1, 0, Limits()) == 30_000


def test_advisor_smooths_change() -> None:
    """Each pass counts 30 %, what was before 70 %."""
    advisor = Advisor()
    limits = Limits(target_scan_time=10, max_cpu=10**9, max_pages_to_scan=10**9)
    # Pass 1: change 30. Pass 2, twice as long: (70*30 + 30*200)/100 = 81; factor 10*100/20 = 50;
    # pages 1000*100/50*81/100 = 1620; cpu% = 2000*100/20000 = 10: at least 1000/10*10.
    advisor.advise(1000, 10, 1000, limits)
    assert advisor.advise(1000, 20, 2000, limits) == 1620


def test_advisor_counts_a_short_pass_as_a_second() -> None:
    """A pass below a second counts as one, and no division is by zero."""
    assert Advisor().advise(0, 0, 0, Limits(0, 0, 0)) == 0
    assert Advisor().advise(500, 0, 5, Limits()) == Advisor().advise(500, 1, 5, Limits())


@pytest.mark.parametrize(
    "mode", [Mode(freeze, "checksum") for freeze in FREEZES], indirect=True, ids=str
)
def test_smart_scan_skips_by_age(engine: Any) -> None:
    """Four visits come before the first skip of a page that never merges, and then more and more.

    The kernel's own KSM is asked in test_kernel_oracle.py. With write tracking such a page is not
    looked at again at all.
    """
    page = memory.distinct(1)
    engine.register(page)

    def work() -> tuple[int, int]:
        stats = engine.stats()
        return stats.pages_scanned, stats.pages_skipped

    assert visits(engine.scan, work) == LONE_PAGE
    engine._core.check()
