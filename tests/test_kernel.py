"""The kernel's own KSM, by ksmpy.watch.kernel: what is read, what is set, and that it is all put
back.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ksmpy.errors import KsmpyError, Unsupported
from ksmpy.watch import kernel
from support.patience import patience, until

readable = pytest.mark.skipif(
    not kernel.available(writable=False), reason=str(kernel.available(writable=False))
)
writable = pytest.mark.skipif(not kernel.available(), reason=str(kernel.available()))

TUNED = {"run": 1, "pages_to_scan": 10000, "sleep_millisecs": 0}
if (kernel.SYSFS / "smart_scan").exists():  # Linux 6.7
    TUNED["smart_scan"] = 0


def knobs() -> dict[str, kernel.Value]:
    return {
        name: value
        for name, value in kernel.read().items()
        if (kernel.SYSFS / name).stat().st_mode & 0o200
    }


@pytest.fixture
def unchanged() -> Iterator[dict[str, kernel.Value]]:
    """The knobs before the test, and the check that they are the same after it."""
    with kernel._machine:
        before = knobs()
        yield before
        assert knobs() == before


def twins(pages: int) -> mmap.mmap:
    """Private memory whose second half equals its first, in which no other page occurs twice."""
    area = mmap.mmap(-1, 2 * pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    half = os.urandom(pages * 4096)
    area[: len(half)] = half
    area[len(half) :] = half
    return area


def address(area: mmap.mmap) -> int:
    return int(np.frombuffer(area, np.uint8).ctypes.data)


def merging_pages() -> kernel.Value | None:
    """The merged pages of this process; None where the kernel does not tell."""
    try:
        return kernel.process_stat().get("ksm_merging_pages")
    except Unsupported:
        return None


@readable
def test_every_file_is_read_as_a_number_or_a_word() -> None:
    """All names of the directory are there; advisor_mode is the word in brackets, the rest are
    integers.
    """
    values = kernel.read()
    assert set(values) == {path.name for path in kernel.SYSFS.iterdir()}
    assert {name for name, value in values.items() if isinstance(value, str)} <= {"advisor_mode"}
    assert values.get("advisor_mode", "none") in ("none", "scan-time")


def test_a_missing_ksm_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the directory, available() is false and says what is missing, and reading is
    Unsupported.
    """
    monkeypatch.setattr(kernel, "SYSFS", tmp_path / "ksm")
    state = kernel.available()
    assert not state
    assert "ksm" in str(state)
    with pytest.raises(KsmpyError, match="no KSM"):
        kernel.read()


@writable
def test_settings_are_restored(unchanged: dict[str, kernel.Value]) -> None:
    """Inside the block the values hold, after it every knob is as before."""
    with kernel.settings(**TUNED, max_page_sharing=64, use_zero_pages=1) as saved:
        assert saved == unchanged
        now = kernel.read()
        assert {**TUNED, "max_page_sharing": 64, "use_zero_pages": 1}.items() <= now.items()


@writable
def test_settings_are_restored_after_an_exception(unchanged: dict[str, kernel.Value]) -> None:
    """An exception passes through and takes the settings back with it."""
    with pytest.raises(ZeroDivisionError), kernel.settings(run=1, sleep_millisecs=7):
        raise ZeroDivisionError


@writable
def test_settings_may_nest(unchanged: dict[str, kernel.Value]) -> None:
    """The inner block gives the outer one its values back."""
    with kernel.settings(sleep_millisecs=3):
        with kernel.settings(sleep_millisecs=5):
            assert kernel.read()["sleep_millisecs"] == 5
        assert kernel.read()["sleep_millisecs"] == 3


@writable
@pytest.mark.skipif(
    not (kernel.SYSFS / "advisor_mode").exists(), reason="this kernel has no advisor (Linux 6.8)"
)
def test_settings_restore_the_advisor(unchanged: dict[str, kernel.Value]) -> None:
    """pages_to_scan comes back although the advisor changed it and refuses it while it is on."""
    with kernel.settings(pages_to_scan=1234, advisor_mode="none"):
        with kernel.settings(advisor_mode="scan-time"):
            with pytest.raises(OSError, match="Invalid argument"):
                kernel.write("pages_to_scan", 5)
        assert kernel.read()["pages_to_scan"] == 1234


@writable
def test_a_refused_value_restores_what_was_set_before_it(
    unchanged: dict[str, kernel.Value],
) -> None:
    """When the kernel refuses one of several values, none stays."""
    with pytest.raises(OSError), kernel.settings(sleep_millisecs=9, max_page_sharing=1):
        pytest.fail("max_page_sharing is at least 2")


@writable
def test_an_unknown_knob_changes_nothing(unchanged: dict[str, kernel.Value]) -> None:
    """A name that is no knob is refused before anything is written; a counter is no knob."""
    for name in ("no_such_knob", "pages_shared"):
        with pytest.raises(KsmpyError, match=name), kernel.settings(**{name: 1}):
            pytest.fail("it has been accepted")


@writable
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_settings_are_restored_when_the_process_is_ended(number: signal.Signals) -> None:
    """SIGTERM and SIGHUP end the process in the usual way, but not before the settings are back."""
    code = (
        "import signal, time; from ksmpy.watch import kernel\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # nohup has children ignore SIGHUP
        "with kernel.settings(sleep_millisecs=11):\n"
        "    print('inside', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with kernel._machine:
        before = knobs()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    assert kernel.read()["sleep_millisecs"] == 11
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 128 + number
    with kernel._machine:
        assert knobs() == before


@writable
def test_settings_are_restored_when_the_process_is_killed() -> None:
    """SIGKILL leaves nobody to restore the settings but the guard, and it does, nested or not."""
    code = (
        "import time; from ksmpy.watch import kernel\n"
        "with kernel.settings(sleep_millisecs=11, run=1, pages_to_scan=77):\n"
        "    with kernel.settings(sleep_millisecs=12):\n"
        "        print('inside', flush=True)\n"
        "        time.sleep(60)\n"
    )
    with kernel._machine:
        before = knobs()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    assert kernel.in_use()
    child.kill()
    child.communicate(timeout=30)
    with kernel._machine:  # waits until the guard is done
        assert knobs() == before


@writable
def test_a_forked_child_leaves_the_settings_alone(unchanged: dict[str, kernel.Value]) -> None:
    """A child that leaves the block it was born in restores nothing, and ends no guard."""
    parent = os.getpid()
    left = 1
    try:
        with kernel.settings(sleep_millisecs=15):
            child = os.fork()
            if child == 0:
                raise KeyError
            left = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert kernel.read()["sleep_millisecs"] == 15
    except KeyError:
        left = 0
    finally:
        if os.getpid() != parent:
            os._exit(left)
    assert left == 0


@writable
def test_two_processes_take_turns() -> None:
    """While one process has settings of its own, another one waits with its own."""
    code = (
        "from ksmpy.watch import kernel\n"
        "with kernel.settings(sleep_millisecs=13):\n"
        "    print(kernel.read()['sleep_millisecs'])\n"
    )
    with kernel.settings(sleep_millisecs=12):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        assert kernel.read()["sleep_millisecs"] == 12
    assert child.communicate(timeout=30)[0] == "13\n"


@writable
def test_the_kernel_merges_what_is_offered_and_settles(unchanged: dict[str, kernel.Value]) -> None:
    """Two equal halves: as many pages saved as a half has; taking them back unmerges."""
    pages = 256
    area = twins(pages)
    at = address(area)
    with kernel.settings(**TUNED):
        kernel.mergeable(at, len(area))
        after = kernel.settle(60)
        # These are the machine's: other programs, virtual machines say, may have offered memory.
        assert int(after["pages_shared"]) >= pages
        assert int(after["pages_sharing"]) >= pages
        assert merging_pages() in (2 * pages, None)
        kernel.unmergeable(at, len(area))
        # Unmerged at once, but counted only when the scanner comes by.
        until(lambda: merging_pages() in (0, None), merging_pages, limit=patience(30))


@writable
def test_settle_needs_a_scanner() -> None:
    """It refuses at once when the scanner is off, and gives up in time when nothing is ever
    scanned.
    """
    with kernel.settings(run=0), pytest.raises(KsmpyError, match="does not scan"):
        kernel.settle(1)


def test_a_range_without_a_whole_page_is_refused() -> None:
    """Fragments of pages cannot be offered."""
    area = mmap.mmap(-1, 2 * 4096)
    with pytest.raises(ValueError, match="no whole page"):
        kernel.mergeable(address(area) + 1, 4096)


def test_memory_that_is_not_there_is_refused() -> None:
    """The kernel's errno comes through, with the name of the call."""
    with pytest.raises(OSError, match="madvise") as caught:
        kernel.unmergeable(1 << 46, 4096)
    assert caught.value.errno


@writable
def test_a_whole_process_can_be_offered() -> None:
    """PR_SET_MEMORY_MERGE is on in a child process that asks for it, and off again."""
    code = (
        "from ksmpy.watch import kernel\n"
        "try:\n"
        "    kernel.merge_process()\n"
        "except OSError as error:\n"
        "    print('refused', error.errno)\n"
        "else:\n"
        "    on = kernel.process_merging(); kernel.merge_process(False)\n"
        "    print(on, kernel.process_merging())\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if told.stdout.startswith("refused 22"):
        pytest.skip("this kernel has no PR_SET_MEMORY_MERGE (Linux 6.4)")
    assert told.stdout == "True False\n"


def test_the_stat_of_no_process_is_an_error() -> None:
    """A process that does not exist is named in the error."""
    with pytest.raises(ProcessLookupError, match="999999999"):
        kernel.process_stat(999999999)


def test_a_knob_that_is_busy_for_a_moment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has merged meanwhile is unmerged again, and the knob written once more."""
    written = []
    busy = [3]

    def write(name: str, value: kernel.Value) -> None:
        written.append((name, value))
        if name == "max_page_sharing" and busy[0]:
            busy[0] -= 1
            raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(kernel, "write", write)
    monkeypatch.setattr(kernel, "read", lambda: {"max_page_sharing": 2})
    kernel._restore({"max_page_sharing": 256, "run": 0})
    assert written.count(("max_page_sharing", 256)) == 4 and written[-1] == ("run", 0)
    assert written.count(("run", 2)) == 4
