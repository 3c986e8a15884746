"""A memory cgroup with a limit, of version 1 or 2, for a child to live in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .patience import until

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cgroup:
    """A cgroup's directory, and what its files are called."""

    path: Path
    version: int

    def limit(self, nbytes: int) -> None:
        """Allow so many bytes from now on, of memory and of swap together."""
        if self.version == 1:
            (self.path / "memory.limit_in_bytes").write_text(str(nbytes))
        else:
            (self.path / "memory.max").write_text(str(nbytes))
            swap = self.path / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")

    def squeeze(self, nbytes: int) -> None:
        """Drive what is in it into swap, as far as the kernel can; then there is no limit.

        The kernel chooses what goes by counts that may be two seconds old, and gives up early then:
        it is asked again, and looking at the counts renews them.
        """
        file = self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.high")
        for _ in range(100):
            with suppress(OSError):  # version 1: it cannot do with so little yet
                file.write_text(str(max(nbytes, self.used() * 3 // 4)))
            if self.used() <= nbytes:
                break
            (self.path / "memory.stat").read_text()
            time.sleep(0.02)
        file.write_text("-1" if self.version == 1 else "max")

    def kills(self) -> int:
        """How many processes were killed in it for want of memory."""
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.path / file).read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
        return 0

    def enter(self) -> None:
        """Move the calling process into one below it, which has no limit of its own."""
        (self.path / "inner/cgroup.procs").write_text(str(os.getpid()))

    def used(self) -> int:
        """Bytes that count against the limit."""
        file = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return int((self.path / file).read_text())


def _place() -> tuple[Path, int] | None:
    """Where memory cgroups can be made: a directory, and the version."""
    v1 = _ROOT / "memory"
    if (v1 / "memory.limit_in_bytes").exists():
        return (v1, 1) if os.access(v1, os.W_OK) else None
    children = _ROOT / "cgroup.subtree_control"
    try:
        if "memory" not in children.read_text().split():
            children.write_text("+memory")
    except OSError:
        return None
    return _ROOT, 2


def refusal() -> str | None:
    """Why no memory cgroup can be made here, or None."""
    return None if _place() else "this user can make no memory cgroup here"


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True


@contextmanager
def made() -> Iterator[Cgroup]:
    """A new cgroup, which nobody is in at the end."""
    place = _place()
    assert place is not None
    path = place[0] / f"ksmpy-test-{os.getpid()}"
    path.mkdir()
    inner = path / "inner"
    inner.mkdir()
    try:
        yield Cgroup(path, place[1])
    finally:
        inner.rmdir()
        until(lambda: _removed(path), f"{path} is in use")
