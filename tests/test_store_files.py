"""Named stores as files: where they lie, what they are called, who may use them.

A store is one trust domain, so everything that is not this user's alone is refused and left as it
was found.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ksmpy
from ksmpy import Store, StoreError
from ksmpy.store.files import store_directory
from support.procs import python_ok

NOBODY = 65534


def made(place: Path, name: str = "name") -> Path:
    """The file of a store that was made."""
    Store.open(name).close()
    return place / f"{name}.ksmpy"


def refused(number: int, *words: str, name: str = "name", create: bool = True) -> None:
    """Opening fails with this errno and says these words."""
    with pytest.raises(StoreError) as caught:
        Store.open(name, create=create)
    assert caught.value.errno == number, caught.value
    for word in words:
        assert word in str(caught.value)


def mode_of(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


# ---- where stores lie ---------------------------------------------------------------------


def test_a_store_is_a_file_of_this_user_alone(place: Path) -> None:
    """Directory and file are made for the owner only, whatever the umask would give others."""
    before = os.umask(0)
    try:
        with Store.open("weights") as store:
            assert store.name == "weights"
            assert store.path == str(place / "weights.ksmpy")
            assert os.path.samestat(os.stat(store.path), os.fstat(store.fileno()))
            assert not os.get_inheritable(store.fileno())
    finally:
        os.umask(before)
    assert mode_of(place) == 0o700 and mode_of(place / "weights.ksmpy") == 0o600


def test_the_directory_is_the_callers_the_environments_or_the_users(
    above: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`directory` goes before KSMPY_STORE_DIR, and that before the user's own in /dev/shm."""
    with Store.open("name", directory=above / "mine") as store:
        assert store.path == str(above / "mine" / "name.ksmpy")
    assert not place.exists()
    assert store_directory() == str(place)
    monkeypatch.setenv("KSMPY_STORE_DIR", "")
    assert store_directory() == f"/dev/shm/ksmpy-{os.geteuid()}"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "0 bytes"),
        ("a" * 201, "201 bytes"),
        ("é" * 101, "202 bytes"),
        (".hidden", "begins with '.'"),
        ("..", "begins with '.'"),
        ("a/b", "'/'"),
        ("/dev/shm/a", "'/'"),
        ("a\0b", "NUL"),
        ("\ud800", "encoded"),
    ],
)
def test_names_that_cannot_be_are_refused(place: Path, name: str, word: str) -> None:
    """EINVAL with the reason, and nothing was made."""
    refused(errno.EINVAL, repr(name), word, name=name)
    assert not place.exists()


@pytest.mark.parametrize(
    "name", ["a", "a" * 200, "é" * 100, "two words", "x.ksmpy", "a.b", "\udcff"]
)
def test_names_that_can_be(place: Path, name: str) -> None:
    """Anything of 1 to 200 bytes without '/' and without '.' in front, not only ASCII."""
    path = made(place, name)
    assert path.exists()
    Store.open(name, create=False).close()


def test_other_types_are_no_names() -> None:
    """Even bytes and paths are TypeErrors, for Engine as well."""
    for name in (b"name", Path("name"), 7, None):
        with pytest.raises(TypeError, match="must be a str"):
            Store.open(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be None, a name or a Store, not int"):
        ksmpy.Engine(store=7)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="names no store"):
        ksmpy.Engine(store="a/b")


def test_a_missing_store_is_made_only_when_asked_for(place: Path) -> None:
    """create=False: ENOENT, and neither directory nor file afterwards."""
    refused(errno.ENOENT, "no store 'name'", str(place), create=False)
    assert not place.exists()
    made(place, "other")
    refused(errno.ENOENT, "no store 'name'", create=False)
    assert os.listdir(place) == ["other.ksmpy"]


def test_nowhere_to_make_the_directory(above: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last folder of the path is made; the error names the one above."""
    monkeypatch.setenv("KSMPY_STORE_DIR", str(above / "no" / "stores"))
    refused(errno.ENOENT, f"{above / 'no'},", "does not exist")


# ---- what is not safe is refused --------------------------------------------------------------


def _root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")


def test_a_file_or_directory_of_another_user_is_refused(place: Path) -> None:
    """Even by root, who could open it."""
    _root_only()
    path = made(place)
    os.chown(path, NOBODY, NOBODY)
    refused(errno.EPERM, str(path), f"user {NOBODY}")
    os.chown(path, 0, 0)
    os.chown(place, NOBODY, NOBODY)
    refused(errno.EPERM, str(place), f"user {NOBODY}")
    refused(errno.EPERM, create=False)


# Everything is imported before the user changes: the interpreter may lie where nobody can look.
_AS_NOBODY = """
import os, sys
import ksmpy.store.store
libc = __import__("ctypes").CDLL(None)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for directory in sys.argv[1:]:
    try:
        with ksmpy.Store.open("name", directory=directory) as store:
            print("opened", oct(os.fstat(store.fileno()).st_mode))
    except ksmpy.StoreError as error:
        print(error.errno, error.strerror)
"""


def test_another_user_gets_at_nothing_and_has_stores_of_its_own(above: Path, place: Path) -> None:
    """nobody: root's directory is refused, also when opened wide; a new one is made."""
    _root_only()
    made(place)
    above.chmod(0o1777)
    directories = [str(place), str(above / "own")]
    told = python_ok("-c", _AS_NOBODY, *directories).splitlines()
    assert told[0].startswith(f"{errno.EACCES} ") and str(place) in told[0]
    assert told[1] == "opened 0o100600"
    place.chmod(0o755)
    told = python_ok("-c", _AS_NOBODY, *directories).splitlines()
    assert told[0].startswith(f"{errno.EPERM} ") and "belongs to user 0" in told[0]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_file_open_to_others_is_refused(place: Path, mode: int) -> None:
    """Any right of group or others: EPERM with the command that helps; nothing is changed."""
    path = made(place)
    path.chmod(mode)
    refused(errno.EPERM, "open to other users", f"chmod 600 {path}")
    assert mode_of(path) == mode
    path.chmod(0o600)
    Store.open("name").close()


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701, 0o777, 0o1777])
def test_a_directory_open_to_others_is_refused(place: Path, mode: int) -> None:
    """The same for the directory; no file is made in it."""
    place.mkdir()
    place.chmod(mode)
    refused(errno.EPERM, "open to other users", f"chmod 700 {place}")
    assert mode_of(place) == mode and not os.listdir(place)


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_links_are_refused(above: Path, place: Path, target: str) -> None:
    """A link in place of the file or the directory, also with a slash behind: ELOOP."""
    (above / "there").mkdir(mode=0o700)
    (above / "there" / "name.ksmpy").touch(mode=0o600)
    place.symlink_to(above / target)
    refused(errno.ELOOP, str(place), "symbolic link")
    with pytest.raises(StoreError, match="symbolic link"):
        Store.open("name", directory=f"{place}/")
    place.unlink()
    place.mkdir(mode=0o700)
    (place / "name.ksmpy").symlink_to(above / target / "name.ksmpy")
    refused(errno.ELOOP, "name.ksmpy", "symbolic link")
    refused(errno.ELOOP, create=False)
    assert not (above / "nowhere").exists()


def test_what_is_no_file_is_refused(place: Path) -> None:
    """A pipe, a directory or a socket by that name; a file in place of the directory."""
    path = made(place)
    path.unlink()
    os.mkfifo(path, 0o600)
    refused(errno.EINVAL, "not a regular file")
    path.unlink()
    path.mkdir(mode=0o700)
    refused(errno.EISDIR, str(path))
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        refused(errno.ENXIO, str(path))
    path.unlink()
    place.rmdir()
    place.touch(mode=0o700)
    refused(errno.ENOTDIR, str(place))


def test_other_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store on a disk would be written out: refused, whether the directory is there or not."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind == "tmpfs":
        pytest.skip("the tests' own directory is on tmpfs")
    place = tmp_path / "stores"
    monkeypatch.setenv("KSMPY_STORE_DIR", str(place))
    refused(errno.EOPNOTSUPP, "not on tmpfs", "KSMPY_STORE_DIR")
    assert not place.exists()
    place.mkdir(mode=0o700)
    refused(errno.EOPNOTSUPP, str(place), "not on tmpfs")
    assert not os.listdir(place)
    with open(tmp_path / "file", "w+b") as file, pytest.raises(StoreError, match="not on tmpfs"):
        Store.from_fd(file.fileno())


def test_doctor_says_whether_stores_can_be_had(place: Path) -> None:
    """It names directory and room, makes nothing, and repeats why one cannot be opened."""

    def told() -> Any:
        return next(check for check in ksmpy.doctor() if check.name == "named stores")

    assert str(place) in told().detail and "free" in told().detail
    assert not place.exists()
    place.mkdir()
    place.chmod(0o755)
    assert not told().ok and f"chmod 700 {place}" in told().detail
