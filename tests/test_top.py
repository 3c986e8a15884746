"""`ksmpy top`: the lines of its screen, its keys, and itself on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ksmpy.cli.board import SORTS, Board, Look, spark
from ksmpy.cli.output import progress
from ksmpy.watch.buffers import Buffer
from ksmpy.watch.observe import Observation
from support.patience import patience
from test_cli import ksmpy, needs_engine
from test_report import workers

MIB = 1 << 20


def seen(count: int) -> list[Observation]:
    """Processes that differ in everything: of larger numbers less is saved."""
    return [
        Observation(
            4000000 + number,
            f"worker-with-a-name-{number}",
            pss_bytes=number * MIB,
            merged_bytes=1000 * MIB - number,
            written_bytes=number,
            saved_bytes=(900 - number) * MIB,
            vmas=100 + number,
            vma_limit=65530,
        )
        for number in range(count)
    ]


def board(count: int, buffers: int = 3) -> Board:
    """One with processes, each of which has buffers."""
    processes = seen(count)
    inside = {
        each.pid: [Buffer(f"buffer-{number}", MIB, MIB, 0, 0) for number in range(buffers)]
        for each in processes
    }
    return Board(
        Look(time.time(), processes, [], inside, sum(each.saved_bytes for each in processes))
    )


def listed(shown: Board, height: int = 24, width: int = 80) -> list[str]:
    """The rows of processes and buffers."""
    lines = shown.lines(width, height)
    assert len(lines) == height
    assert all(len(text) <= width for text, _ in lines)
    return [text for text, style in lines if style in ("row", "chosen", "buffer")]


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("height", [7, 24, 60])
def test_lines_fit_the_window(width: int, height: int) -> None:
    """In all sizes, with more processes than there is room for, and none at all."""
    shown = board(50)
    shown.press("enter")
    assert listed(shown, height, width)
    empty = Board(Look(time.time(), [], [], {}, 0))
    assert any("no process" in text[:width] for text, _ in empty.lines(80, height))
    for key in ("down", "up", "enter", "s"):
        assert empty.press(key)


def test_80_columns_are_enough_for_every_figure() -> None:
    """Sizes of three digits and a unit, a long command, the trend."""
    shown = board(3)
    shown.take(shown.look)
    first = listed(shown)[0]
    assert re.search(r"4000000 worker-with  900\.0 MiB 1000\.0 MiB +0 B +0 B +0 %  █", first)


@pytest.mark.parametrize("key", SORTS)
def test_keys_sort(key: str) -> None:
    """By the column that is marked then; the cursor stays with its process."""
    shown = board(5)
    listed(shown)
    shown.press("down")
    chosen = shown.chosen
    shown.press(key)
    rows = [text for text, style in shown.lines(200, 30) if style in ("row", "chosen")]
    ascending = rows[0].split()[1].endswith("0")
    assert ascending == (key in "smni"), rows
    (head,) = (text for text, style in shown.lines(200, 30) if style == "head")
    assert f"{SORTS[key][0]}▾" in head and shown.chosen == chosen


def test_a_process_opens_and_shuts() -> None:
    """Enter shows its buffers, and again not; more than a dozen are counted."""
    shown = board(3, buffers=20)
    listed(shown)
    shown.press("down")
    shown.press("enter")
    rows = listed(shown, 40)
    assert rows[1].startswith("-") and "buffer-0" in rows[2] and "and 8 buffers more" in rows[14]
    shown.press("enter")
    assert len(listed(shown)) == 3
    shown.press("right")
    shown.press("right")
    assert len(listed(shown, 40)) == 3 + 13
    shown.press("left")
    assert len(listed(shown)) == 3
    assert shown.press("x") and not shown.press("q") and not shown.press("escape")


def test_the_cursor_stays_in_sight() -> None:
    """Down to the last one and back; one that ends gives it to the first."""
    shown = board(50)
    for _ in range(60):
        shown.press("down")
        lines = shown.lines(80, 12)
        assert sum(style == "chosen" for _, style in lines) == 1
    assert shown.chosen == 4000049
    for _ in range(60):
        shown.press("up")
        assert sum(style == "chosen" for _, style in shown.lines(80, 12)) == 1
    shown.press("down")
    rest = [each for each in shown.look.processes if each.pid != shown.chosen]
    shown.take(Look(time.time(), rest, [], {}, 0))
    assert sum(style == "chosen" for _, style in shown.lines(80, 12)) == 1


def test_the_trend_is_drawn_from_nothing_to_the_most() -> None:
    """The newest at the right; letters of ASCII where the terminal has no others."""
    assert spark([0, 1, 2, 4, 8], 5) == "▁▁▂▄█"
    assert spark([5, 8], 1) == "█" and spark([], 3) == "   " and spark([0, 0], 2) == "▁▁"
    plain = board(2)
    plain.ascii = True
    assert all(text.isascii() for text, _ in plain.lines(100, 20))


def on_screen(keys: list[tuple[str, str]], *arguments: str, place: Path) -> tuple[int, str]:
    """Run it on a terminal of 80 by 24 and, when some words are there, press a key; its exit code
    and all that it wrote.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {"TERM": "xterm", "KSMPY_STORE_DIR": str(place), "LANG": "C.UTF-8"}
        path = os.environ["PATH"]
        argv = [sys.executable, "-m", "ksmpy", "top", *arguments]
        os.execve(sys.executable, argv, {**environment, "PATH": path})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    text, fresh = "", ""
    deadline = time.monotonic() + patience(40)
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            part = os.read(terminal, 65536).decode(errors="replace")
            text, fresh = text + part, fresh + part
            if keys and keys[0][0] in fresh:
                os.write(terminal, keys.pop(0)[1].encode())
                fresh = ""
    except OSError:  # it has ended
        pass
    finally:
        os.close(terminal)
    assert not keys, text[-2000:]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@needs_engine
def test_on_a_terminal_it_shows_stores_processes_and_buffers(place: Path) -> None:
    """Enter, "p" and "q" do what they say; the screen is given back as it was."""
    with workers("app", 2) as members:
        pid = str(members[0][0])
        keys = [(pid, "\r"), ("index <b>", "p"), ("PSS", "q")]
        code, text = on_screen(keys, pid, "--interval", "0.2", place=place)
        assert code == 0 and "ksmpy top" in text
        code, text = on_screen([("store app: 2 processes", "q")], place=place)
        assert code == 0 and "\x1b[?1049l" in text
        code, text = on_screen([], "--count", "2", "--interval", "0.1", place=place)
        assert code == 0 and pid in text


@needs_engine
def test_what_is_saved_is_counted_by_page(place: Path) -> None:
    """Together it is what the store says, whoever has touched its memory since."""
    with workers("app", 2) as members:
        top = ksmpy("top", str(members[0][0]), "--json", env={"KSMPY_STORE_DIR": str(place)})
        (mine,) = json.loads(top.stdout)
        stats = ksmpy("stats", "--store", "app", "--json", env={"KSMPY_STORE_DIR": str(place)})
        told = json.loads(stats.stdout)["stats"]
        assert mine["saved_bytes"] * 2 == pytest.approx(told["saved_bytes"], abs=2 * 4096)
        # What the store and the engines' own tables take is no page's share.
        gross = told["pages_sharing"] * 4096
        assert gross / 2 < told["saved_bytes"] < gross - told["metadata_bytes"]


def test_without_a_terminal_there_is_one_line_for_each_kind_of_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it ends; of what fails in between the line ends, too."""
    with pytest.raises(ValueError), progress() as update:
        for what in ("loading", "merging"):
            for done in range(4):
                update(what, done, 3)
        update("comparing", 0, 3)
        raise ValueError
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"[0-9.]+ s", "T", line) for line in lines] == [
        "loading ... done in T",
        "merging ... done in T",
        "comparing ...",
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_on_a_terminal_each_kind_of_work_has_one_bar(keep: bool) -> None:
    """Which comes again from the start when the work does."""
    pytest.importorskip("rich")
    code = (
        "from ksmpy.cli.output import progress\n"
        f"with progress(keep={keep}) as update:\n"
        "    for what in ('one', 'two', 'one'):\n"
        "        for done in range(3): update(what, done, 2)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen([sys.executable, "-c", code], stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:
        pass
    os.close(leader)
    assert child.wait(30) == 0
    last = shown.decode().rsplit("one", 1)[1]
    assert b"100 %" in shown and ("\x1b[2K" in last) != keep
