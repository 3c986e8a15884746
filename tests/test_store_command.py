"""`ksmpy store`, and what doctor() says of stores that nobody uses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

import pytest

import ksmpy
from ksmpy import Store
from ksmpy.watch.stores import NamedStore, look_at, named_stores
from test_cli import ksmpy as command
from test_cli import needs_engine, one_line

pytestmark = needs_engine

PAGES = 1024
USER = f"""
import sys, numpy as np, ksmpy
a = np.random.default_rng(0).integers(0, 256, {PAGES} * 4096, np.uint8)
b = a.copy()
engine = ksmpy.Engine(store=sys.argv[1])
engine.register(a), engine.register(b)
engine.scan(eager=True)
print(engine.stats().pages_sharing, flush=True)
input()
"""


def store(*arguments: str) -> CompletedProcess[str]:
    """Run ksmpy store, in this test's directory of stores."""
    where = {"KSMPY_STORE_DIR": os.environ["KSMPY_STORE_DIR"]}
    return command("store", *arguments, env=where)


@contextmanager
def user(name: str) -> Iterator[tuple[int, int]]:
    """A process with merged pages in a store, killed at the end; its pid, and pages saved."""
    with Popen([sys.executable, "-c", USER, name], stdin=PIPE, stdout=PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.pid, int(child.stdout.readline())
        finally:
            child.kill()


def unused_check() -> ksmpy.Check:
    """What doctor() says of stores without users."""
    return next(check for check in ksmpy.doctor() if check.name == "unused stores")


def test_a_store_is_listed_with_its_users_and_then_with_what_it_keeps(place: Path) -> None:
    """While a process lives it saves; when it was killed the memory is kept, and nothing saved."""
    with user("weights") as (pid, sharing):
        (used,) = json.loads(store("list", "--json").stdout)
        assert [process["pid"] for process in used["processes"]] == [pid]
        assert sharing > PAGES // 2
        assert 0 < used["saved_bytes"] <= sharing * 4096 < used["kept_bytes"]
        assert "in use" in store("list").stdout
    kept = os.stat(place / "weights.ksmpy").st_blocks * 512
    (left,) = json.loads(store("list", "--json").stdout)
    assert left["processes"] == [] and left["saved_bytes"] == 0
    assert left["kept_bytes"] == kept > sharing * 4096
    assert left["path"] == str(place / "weights.ksmpy") and left["error"] is None
    assert "nobody uses it" in store("list").stdout
    shown = json.loads(store("show", "weights", "--json").stdout)
    assert shown["kept_bytes"] == kept and shown["stats"]["saved_bytes"] == 0
    assert "no process uses it (ksmpy store rm weights)" in store("show", "weights").stdout


def test_without_a_directory_there_is_none(place: Path) -> None:
    """Neither list nor doctor makes anything."""
    assert store("list").stdout == f"no stores in {place}\n"
    assert store("list", "--json").stdout == "[]\n"
    assert unused_check() == ksmpy.Check("unused stores", True, "none")
    assert not place.exists()


def test_rm_takes_only_what_nobody_uses(place: Path) -> None:
    """A used store stays, unless --force: its process goes on, and the name is a new store's."""
    with user("weights") as (pid, _):
        told = store("rm", "weights")
        assert told.returncode == 1 and (place / "weights.ksmpy").exists()
        assert f"used by processes {pid} (--force" in one_line(told.stderr)
        told = store("rm", "weights", "--force")
        assert told.returncode == 0 and "removed the name weights" in told.stdout
        assert named_stores() == []
        Store.open("weights").close()
        assert look_at("weights").processes == ()
    told = store("rm", "weights")
    assert told.stdout == "removed weights, which kept 0 B\n"
    assert list(place.iterdir()) == []
    told = store("rm", "weights")
    assert told.returncode == 1 and "there is no store 'weights'" in one_line(told.stderr)


def test_one_that_cannot_be_read_hides_no_other(place: Path) -> None:
    """A directory, a link, another's file, damaged bytes: listed with the reason."""
    for name in ("good", "odd\nname", "\udcff"):
        Store.open(name).close()
    (place / "folder.ksmpy").mkdir()
    (place / "link.ksmpy").symlink_to(place / "good.ksmpy")
    (place / "open.ksmpy").touch()
    (place / "open.ksmpy").chmod(0o644)
    (place / "junk.ksmpy").write_bytes(b"x" * 9000)
    (place / "junk.ksmpy").chmod(0o600)
    (place / "no-store").touch()
    found = {each.name: each for each in named_stores()}
    assert sorted(found) == ["folder", "good", "junk", "link", "odd\nname", "open", "\udcff"]
    assert {name for name, each in found.items() if each.error} == {
        "folder",
        "junk",
        "link",
        "open",
    }
    assert "is open to other users" in found["open"].error
    listed = store("list")
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == 1 + len(found)
    assert "\\udcff" in listed.stdout and "odd\\nname" in listed.stdout
    assert "another layout" in one_line(store("show", "junk").stderr)
    assert store("rm", "junk").returncode == 0  # nobody has it locked
    assert not (place / "junk.ksmpy").exists()
    assert store("rm", "open").returncode == 1 and (place / "open.ksmpy").exists()


def test_a_directory_that_is_not_safe_is_an_error(place: Path) -> None:
    """It is not looked into: one line, exit 1; doctor says so in the line of named stores."""
    place.mkdir(mode=0o755)
    told = store("list")
    assert told.returncode == 1 and "open to other users" in one_line(told.stderr)
    assert unused_check().ok


def test_doctor_mentions_what_unused_stores_keep(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of all of them, the largest by name first; an empty one is worth no alarm."""
    Store.open("empty").close()
    assert unused_check().ok and "1 keep 0 B" in unused_check().detail
    with user("weights"):
        assert "weights" not in unused_check().detail
    check = unused_check()
    kept = sum(each.kept_bytes for each in named_stores())
    assert not check.ok and "ksmpy store rm NAME" in check.hint
    assert check.detail == (
        f"2 keep {kept / 2**20:.1f} MiB of memory while nobody uses them: weights, empty"
    )


def test_what_is_not_known_is_not_called_unused() -> None:
    """A store that could not be asked has no processes to show, and is not said to be unused."""
    assert not NamedStore("name", "path", 1, error="is locked").unused
    assert NamedStore("name", "path", 1).unused
