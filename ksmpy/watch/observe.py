"""What can be seen of a process that uses ksmpy, from outside and without its help."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ksmpy import proc
from ksmpy.errors import CommandError
from ksmpy.store.files import is_shared_store, is_store

__all__ = ["Observation", "observe", "observe_all", "users"]


@dataclass
class Observation:
    """Sizes in bytes. From /proc/PID/smaps, and the files behind its descriptors."""

    pid: int
    command: str
    pss_bytes: int = 0
    uss_bytes: int = 0
    merged_bytes: int = 0  # memory mapped onto frames, what was written since included
    written_bytes: int = 0  # the part of it that was written since: it has memory of its own again
    frame_bytes: int = 0  # what the stores hold; shared ones are counted by each process
    saved_bytes: int = 0  # merged, less written, less frames; of shared frames its part (PSS)
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


# Of a file: its device, as /proc writes it, and its inode number.
_File = tuple[str, int]


@dataclass
class _Stores:
    """The stores that a process has mapped."""

    shared: dict[_File, bool] = field(default_factory=dict)
    # Of the shared ones, less what was written: the process's part of what its page tables hold of
    # frames, how much that is, and how much is mapped, of which some was not touched since.
    part_bytes: int = 0
    present_bytes: int = 0
    mapped_bytes: int = 0
    index_bytes: int = 0  # its part of the index

    def part(self, frame_bytes: int) -> int:
        """The process's part of the shared stores' memory. Frames that it has not touched since
        they were merged are in nobody's PSS: they count as those do that it has.
        """
        if self.mapped_bytes == 0:
            return min(frame_bytes, self.index_bytes)
        if self.present_bytes == 0:
            return frame_bytes
        frames = self.part_bytes * self.mapped_bytes // self.present_bytes
        return min(frame_bytes, frames + self.index_bytes)

    def frame_bytes(self, pid: int) -> tuple[int, int]:
        """Memory held by the private ones, and by the shared ones, found by the descriptors that
        the process has on them.
        """
        sizes: dict[_File, int] = {}
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if is_store(os.readlink(entry)):
                    status = entry.stat()
                    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
                    sizes[f"{major:02x}:{minor:02x}", status.st_ino] = status.st_blocks * 512
            except OSError:
                continue  # closed meanwhile
        total = [0, 0]
        for file, shared in self.shared.items():
            total[shared] += sizes.get(file, 0)
        return total[False], total[True]


def _add_mapping(seen: Observation, stores: _Stores, mapping: proc.Mapping) -> None:
    sizes = mapping.sizes
    seen.vmas += 1
    seen.pss_bytes += sizes.get("Pss", 0)
    seen.uss_bytes += sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0)
    if not is_store(mapping.path):
        return
    shared = is_shared_store(mapping.path)
    stores.shared[mapping.device, mapping.inode] = shared
    private = mapping.perms[3] == "p"
    anonymous = sizes.get("Anonymous", 0)
    part = max(0, sizes.get("Pss", 0) - anonymous)
    if shared and private:
        stores.part_bytes += part
        stores.present_bytes += sizes.get("Rss", 0) - anonymous
        stores.mapped_bytes += sizes.get("Size", 0) - anonymous - sizes.get("Swap", 0)
    elif shared:
        stores.index_bytes += part
    if private:
        seen.merged_vmas += 1
        seen.merged_bytes += sizes.get("Size", 0)
        seen.written_bytes += sizes.get("Anonymous", 0) + sizes.get("Swap", 0)


def observe(pid: int, mappings: list[proc.Mapping] | None = None) -> Observation:
    """Look at one process; CommandError when there is none, or when it may not be looked at.

    `mappings`: what proc.smaps() has just told of it.
    """
    try:
        seen = Observation(pid, Path(f"/proc/{pid}/comm").read_text().strip())
        stores = _Stores()
        for mapping in proc.smaps(pid) if mappings is None else mappings:
            _add_mapping(seen, stores, mapping)
        private, shared = stores.frame_bytes(pid)
        seen.vma_limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError as error:
        raise _refusal(pid, error) from None
    seen.stores = sorted(inode for _, inode in stores.shared)
    seen.frame_bytes = private + shared
    frames = private + stores.part(shared)
    seen.saved_bytes = max(0, seen.merged_bytes - seen.written_bytes - frames)
    return seen


def users() -> list[int]:
    """The processes that have a ksmpy store mapped, as far as this user may see."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = proc.read("maps", entry.name)
        except OSError:
            continue  # gone, or not ours to look at
        if b"ksmpy" in text and any(is_store(mapping.path) for mapping in proc.parse(text)):
            found.append(int(entry.name))
    return sorted(found)


def observe_all() -> list[Observation]:
    """All processes that use ksmpy; one that ends while it is looked at is left out."""
    found: list[Observation] = []
    for pid in users():
        try:
            found.append(observe(pid))
        except CommandError:
            continue
    return found
