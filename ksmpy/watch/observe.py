"""What can be seen of a process that uses ksmpy, from outside and without its help."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ksmpy import proc
from ksmpy.errors import CommandError
from ksmpy.store.files import is_shared_store, is_store

__all__ = ["File", "Observation", "glance", "observe", "observe_all", "stores_in_use", "users"]

File = tuple[str, int]
"""A file's device, as /proc writes it, and its inode: either alone may be another's."""


@dataclass
class Observation:
    """Sizes in bytes. From /proc/PID/smaps, and the files behind its descriptors."""

    pid: int
    command: str
    pss_bytes: int = 0
    uss_bytes: int = 0
    merged_bytes: int = 0  # memory mapped onto frames, including what was written since
    written_bytes: int = 0  # the part of it that was written since: it has memory of its own again
    frame_bytes: int = 0  # what the stores hold; shared ones are counted by each process
    # Merged, less written, less what came by fork, less frames (its part of shared ones).
    saved_bytes: int = 0
    vmas: int = 0
    vma_limit: int = 0
    merged_vmas: int = 0
    stores: list[int] = field(default_factory=list)  # inode numbers of the stores' files


def _refusal(pid: int, error: OSError) -> CommandError:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return CommandError(f"no process {pid}")
    if isinstance(error, PermissionError):
        return CommandError(
            f"no permission to look at process {pid}", "run it as the same user, or as root"
        )
    return CommandError(f"process {pid}: {error.strerror}")


@dataclass
class _Look:
    """One process, and the files of stores that it has mapped."""

    seen: Observation
    shared: dict[File, bool] = field(default_factory=dict)
    # Bytes mapped onto each file's frames and not written since, whether they were read or not.
    mapped: dict[File, int] = field(default_factory=dict)
    sizes: dict[File, int] = field(default_factory=dict)  # memory that the file takes

    def add(self, mapping: proc.Mapping) -> None:
        """One of its mappings."""
        seen, sizes = self.seen, mapping.sizes
        seen.vmas += 1
        seen.pss_bytes += sizes.get("Pss", 0)
        seen.uss_bytes += sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
        if not is_store(mapping.path):
            return
        file = mapping.device, mapping.inode
        self.shared[file] = is_shared_store(mapping.path)
        if mapping.perms[3] != "p":
            return
        written = sizes.get("Anonymous", 0) + sizes.get("Swap", 0)
        seen.merged_vmas += 1
        seen.merged_bytes += sizes.get("Size", 0)
        seen.written_bytes += written
        self.mapped[file] = self.mapped.get(file, 0) + sizes.get("Size", 0) - written

    def find_sizes(self) -> None:
        """By the descriptors that the process has on its stores."""
        for entry in Path(f"/proc/{self.seen.pid}/fd").iterdir():
            try:
                if is_store(os.readlink(entry)):
                    status = entry.stat()
                    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
                    self.sizes[f"{major:02x}:{minor:02x}", status.st_ino] = status.st_blocks * 512
            except OSError:
                continue  # the process has closed it meanwhile
        self.seen.frame_bytes = sum(self.sizes.get(file, 0) for file in self.shared)

    def disown(self, by_fork: int) -> None:
        """Leave out so much of what is mapped, in equal parts of each store."""
        total = sum(self.mapped.values())
        for file, mapped in self.mapped.items():
            self.mapped[file] = mapped - by_fork * mapped // max(total, 1)

    def settle(self, together: dict[File, int]) -> None:
        """Find what the process saves. `together`: what all processes have mapped of each shared
        store. The process bears the same share of the store's memory as it has of that. PSS does
        not tell this: frames that nobody has touched since they were merged are in nobody's PSS.
        """
        frames = 0.0
        for file, shared in self.shared.items():
            size = self.sizes.get(file, 0)
            mine = self.mapped.get(file, 0)
            frames += size * mine / together[file] if shared and mine else 0 if shared else size
        self.seen.saved_bytes = max(0, sum(self.mapped.values()) - round(frames))


def _look(pid: int, mappings: list[proc.Mapping] | None = None) -> _Look:
    try:
        looked = _Look(Observation(pid, proc.command(pid)))
        for mapping in proc.smaps(pid) if mappings is None else mappings:
            looked.add(mapping)
        looked.find_sizes()
        looked.seen.vma_limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError as error:
        raise _refusal(pid, error) from None
    looked.seen.stores = sorted(inode for _, inode in looked.shared)
    return looked


def _looks(pids: list[int]) -> list[_Look]:
    """Look at these processes; those that end meanwhile are left out."""
    found: list[_Look] = []
    for pid in pids:
        try:
            found.append(_look(pid))
        except CommandError:
            continue
    return found


def _settle(looks: list[_Look]) -> None:
    together: dict[File, int] = {}
    by_fork = proc.by_fork({each.seen.pid: sum(each.mapped.values()) for each in looks})
    for looked in looks:
        looked.disown(by_fork[looked.seen.pid])
        for file, mapped in looked.mapped.items():
            together[file] = together.get(file, 0) + mapped
    for looked in looks:
        looked.settle(together)


def glance(pid: int, mappings: list[proc.Mapping] | None = None) -> Observation:
    """Look at one process alone, which does not tell what it saves (`saved_bytes` is 0).

    CommandError when there is none, or when it may not be looked at. `mappings`: what proc.smaps()
    has just told of it.
    """
    return _look(pid, mappings).seen


def observe(pid: int) -> Observation:
    """Look at one process, and at those it shares a store with; CommandError as glance()."""
    looked = _look(pid)
    files = set(looked.shared)
    found = stores_in_use() if files else {}
    _settle([looked, *_looks([other for other in found if other != pid and found[other] & files])])
    return looked.seen


def stores_in_use() -> dict[int, set[File]]:
    """Which files of stores each process has mapped, as far as this user may see."""
    found: dict[int, set[File]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = proc.read("maps", entry.name)
        except OSError:
            continue  # the process is gone, or may not be looked at
        if b"ksmpy" in text:
            files = {(each.device, each.inode) for each in proc.parse(text) if is_store(each.path)}
            if files:
                found[int(entry.name)] = files
    return found


def users() -> list[int]:
    """The processes that have a ksmpy store mapped, as far as this user may see."""
    return sorted(stores_in_use())


def observe_all() -> list[Observation]:
    """All processes that use ksmpy; one that ends while it is looked at is left out."""
    looks = _looks(users())
    _settle(looks)
    return [looked.seen for looked in looks]
