"""What can be seen of a process that uses ksmpy, from outside and without its help."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ksmpy import proc
from ksmpy.errors import CommandError
from ksmpy.store.files import is_store

__all__ = [
    "File",
    "Observation",
    "describe",
    "descriptors",
    "file_of",
    "glance",
    "mapped_stores",
    "mappings_of_user",
    "outline",
    "refusal",
    "store_sizes",
    "stores_in_use",
    "stores_of",
    "users",
]

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
    zero_bytes: int = 0  # zeros that its engines have given back, and that take no memory still
    saved_bytes: int = 0  # see watch.savings
    package_bytes: int = 0  # what ksmpy took to be imported, as far as its engines know
    vmas: int = 0
    vma_limit: int = 0
    merged_vmas: int = 0
    stores: list[int] = field(default_factory=list)  # inode numbers of the stores' files
    full_stores: list[int] = field(default_factory=list)  # those that are full, as engines noted


def refusal(pid: int, error: OSError) -> CommandError:
    """Why a process cannot be looked at, in words."""
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return CommandError(f"no process {pid}")
    if isinstance(error, PermissionError):
        return CommandError(
            f"no permission to look at process {pid}", "run it as the same user, or as root"
        )
    return CommandError(f"process {pid}: {error.strerror}")


def descriptors(pid: int) -> list[tuple[str, str]]:
    """The path in /proc of each descriptor of a process, and its file, in the order of the numbers.

    OSError when the process is gone, or may not be looked at.
    """
    found = []
    for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        entry = f"/proc/{pid}/fd/{number}"
        with contextlib.suppress(OSError):  # the process has closed it meanwhile
            found.append((entry, os.readlink(entry)))
    return found


def store_sizes(pid: int, opened: Iterable[tuple[str, str]] | None = None) -> dict[File, int]:
    """The memory that the files of its stores take, read through the descriptors that it has
    (`opened`: what descriptors() has told).
    """
    found: dict[File, int] = {}
    for entry, file in descriptors(pid) if opened is None else opened:
        with contextlib.suppress(OSError):  # the process has closed it meanwhile
            if is_store(file):
                status = os.stat(entry)
                found[file_of(status)] = status.st_blocks * 512
    return found


def file_of(status: os.stat_result) -> File:
    """The file of which this is the status."""
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino


def stores_of(mappings: list[proc.Mapping]) -> set[File]:
    """The files of stores among them."""
    return {(each.device, each.inode) for each in mappings if is_store(each.path)}


#: In the path of each store's file.
_IN_PATHS = b"ksmpy"


def mappings_of_user(pid: int | str) -> proc.Lines:
    """proc.raw_mappings() of a process, or an empty list if it has no store mapped."""
    return proc.raw_mappings(pid, naming=_IN_PATHS)


def mapped_stores(lines: proc.Lines) -> set[File]:
    """As stores_of(), in what proc.raw_mappings() has told."""
    files = {each[4:] for each in lines if _IN_PATHS in each[6]}
    return {
        (device.decode(), int(inode))
        for device, inode, path in files
        if is_store(path.decode(errors="replace"))
    }


def describe(
    pid: int, mappings: list[proc.Mapping], sums: dict[str, int], sizes: dict[File, int]
) -> Observation:
    """What proc.smaps(), proc.rollup() and store_sizes() have told of a process. OSError when it
    has gone since then.
    """
    seen = outline(pid, len(mappings), sums, sizes, stores_of(mappings))
    for mapping in mappings:
        if mapping.perms[3] == "p" and is_store(mapping.path):
            sizes_here = mapping.sizes
            seen.merged_vmas += 1
            seen.merged_bytes += mapping.end - mapping.start
            seen.written_bytes += sizes_here.get("Anonymous", 0) + sizes_here.get("Swap", 0)
    return seen


def outline(
    pid: int, count: int, sums: dict[str, int], sizes: dict[File, int], stores: set[File]
) -> Observation:
    """The same but for what is merged: of a process with so many mappings and these stores."""
    return Observation(
        pid,
        proc.command(pid),
        pss_bytes=sums.get("Pss", 0),
        uss_bytes=sums.get("Private_Clean", 0) + sums.get("Private_Dirty", 0),
        frame_bytes=sum(sizes.get(file, 0) for file in stores),
        vmas=count,
        vma_limit=int(Path("/proc/sys/vm/max_map_count").read_text()),
        stores=sorted(inode for _, inode in stores),
    )


def glance(pid: int) -> Observation:
    """Look at one process alone, which does not tell what it saves (`saved_bytes` is 0).

    CommandError when there is none, or when it may not be looked at.
    """
    try:
        return describe(pid, proc.smaps(pid), proc.rollup(pid), store_sizes(pid))
    except OSError as error:
        raise refusal(pid, error) from None


def stores_in_use() -> dict[int, set[File]]:
    """Which files of stores each process has mapped, as far as this user may see."""
    found: dict[int, set[File]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            files = mapped_stores(mappings_of_user(name))
        except OSError:
            continue  # the process is gone, or may not be looked at
        if files:
            found[int(name)] = files
    return found


def users() -> list[int]:
    """The processes that have a ksmpy store mapped, as far as this user may see."""
    return sorted(stores_in_use())
