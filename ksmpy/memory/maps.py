"""The process's own mappings, from /proc/self/smaps: which of them can hold a region."""

from __future__ import annotations

import errno
import re
import time
from bisect import bisect_right
from dataclasses import dataclass

from ksmpy.errors import RegionError
from ksmpy.native import VMA_DONTDUMP, VMA_HUGEPAGE, VMA_NOHUGEPAGE
from ksmpy.store.files import is_store

__all__ = ["Allowance", "AddressSpace", "Mapping", "refusal", "register_error", "vma_flags"]

_HEADER = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([rwxsp-]{4}) [0-9a-f]+ \S+ \d+ *(.*)$", re.MULTILINE
)
_ENGINE_FLAGS = {"hg": VMA_HUGEPAGE, "nh": VMA_NOHUGEPAGE, "dd": VMA_DONTDUMP}

# Letters of VmFlags (Documentation/filesystems/proc.rst), most telling first.
_REFUSED = {
    "ht": "it lies on huge pages of hugetlbfs",
    "io": "it is a device's memory (VM_IO)",
    "pf": "it is a device's memory (VM_PFNMAP)",
    "lo": "it is locked in memory (mlock): unlock it first",
    "wf": "it is wiped on fork (MADV_WIPEONFORK)",
    "dc": "it is kept from forked children (MADV_DONTFORK)",
    "gd": "it is a stack",
    "sl": "it is sealed (mseal)",
    "ss": "it is a shadow stack",
    "um": "another userfaultfd of this process has registered it",
    "uw": "another userfaultfd of this process has registered it",
    "ui": "another userfaultfd of this process has registered it",
}
_USERFAULTFD = frozenset({"um", "uw", "ui"})


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/self/maps, and its VmFlags (None where the kernel does not tell)."""

    start: int
    end: int
    perms: str
    path: str
    flags: frozenset[str] | None


class AddressSpace:
    """A snapshot of the mappings, taken once for many look-ups."""

    def __init__(self, mappings: list[Mapping]) -> None:
        self._mappings = mappings
        self._starts = [mapping.start for mapping in mappings]

    @classmethod
    def read(cls, limit: int) -> AddressSpace:
        """The mappings below the address `limit`, as they are now.

        The kernel counts every page of each mapping for this file, 10 ms for a few hundred
        mappings. The newest ones have low addresses: stopping early saves most of it.
        """
        try:
            return cls(_parse(_text("/proc/self/smaps", limit)))
        except FileNotFoundError:
            # Kernels without CONFIG_PROC_PAGE_MONITOR: permissions and paths only.
            return cls(_parse(_text("/proc/self/maps", limit)))

    def covering(self, start: int, end: int) -> list[Mapping]:
        """The mappings that touch [start, end), in order."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        found = []
        while index < len(self._mappings) and self._mappings[index].start < end:
            if self._mappings[index].end > start:
                found.append(self._mappings[index])
            index += 1
        return found


class Allowance:
    """How much time one registration after the other may spend on reading the mappings.

    The kernel takes 10 us for each mapping below the one in question. So a program that registers
    thousands of buffers one by one has that read at once while it is cheap, then only as often as
    keeps each registration at _EACH on average; what is not read at once must be read later.
    """

    _CREDIT = 0.25
    _EACH = 0.0003
    _SHARE = 0.02  # of the time that goes by

    def __init__(self) -> None:
        self._spent = 0.0
        self._last = 0.0  # what the next reading is thought to take
        self._then = 0.0

    def read(self, limit: int) -> AddressSpace | None:
        """As AddressSpace.read(), or None: too dear at the moment."""
        begin = time.monotonic()
        earned = self._EACH + self._SHARE * (begin - self._then)
        self._spent, self._then = max(self._spent - earned, 0.0), begin
        if self._spent + self._last > self._CREDIT:
            self._last = max(self._last - earned, 0.0)
            return None
        space = AddressSpace.read(limit)
        self._last = time.monotonic() - begin
        self._spent += self._last
        return space


def _text(path: str, limit: int) -> bytes:
    """The file up to the end, or at least to the first mapping that begins at `limit` or above."""
    data = bytearray()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(1 << 16):
            data += part
            if any(int(header[1], 16) >= limit for header in _HEADER.finditer(part)):
                break
    return bytes(data)


def _parse(data: bytes) -> list[Mapping]:
    headers = list(_HEADER.finditer(data))
    ends = [header.start() for header in headers[1:]] + [len(data)]
    mappings = []
    for header, limit in zip(headers, ends, strict=True):
        begin = data.find(b"VmFlags:", header.end(), limit)
        flags = data[begin + 8 : data.find(b"\n", begin, limit)] if begin >= 0 else None
        mappings.append(
            Mapping(
                int(header[1], 16),
                int(header[2], 16),
                header[3].decode(),
                header[4].decode(errors="replace"),
                frozenset(flags.decode().split()) if flags is not None else None,
            )
        )
    return mappings


def refusal(
    mappings: list[Mapping], start: int, end: int, *, registered: bool = False
) -> str | None:
    """Why [start, end), which `mappings` cover, cannot be a region; None when it can.

    `registered`: an engine has it registered with its userfaultfd already.
    """
    position = start
    for mapping in mappings:
        if mapping.start > position:
            break
        position = mapping.end
        reason = _mapping_refusal(mapping, _USERFAULTFD if registered else frozenset())
        if reason is not None:
            return reason
    return "part of it is not mapped" if position < end else None


def _mapping_refusal(mapping: Mapping, ours: frozenset[str]) -> str | None:
    flags = (mapping.flags or frozenset()) - ours
    if "ht" in flags:
        return _REFUSED["ht"]
    if is_store(mapping.path):
        return "it is merged already, by an engine"
    if mapping.perms[3] == "s":
        # Anonymous shared memory is a deleted /dev/zero in the kernel's eyes.
        file = "" if mapping.path.startswith("/dev/zero") else f" and file-backed ({mapping.path})"
        return f"it is shared memory (MAP_SHARED){file}"
    if mapping.path.startswith("/"):
        return f"it is file-backed ({mapping.path}): copy it into memory of its own"
    if mapping.perms[:3] != "rw-":
        return f"its memory is mapped {mapping.perms[:3]}, not rw-"
    return next((text for flag, text in _REFUSED.items() if flag in flags), None)


def vma_flags(mappings: list[Mapping]) -> int:
    """The flags for ksmpy_register that all of the mappings have."""
    common = -1
    for mapping in mappings:
        flags = mapping.flags or frozenset()
        common &= sum(bit for letter, bit in _ENGINE_FLAGS.items() if letter in flags)
    return max(common, 0)


def register_error(error: OSError) -> Exception:
    """What the native engine's refusal of memory that looked right means."""
    if error.errno == errno.EEXIST:
        return RegionError("the buffer overlaps a registered region")
    if error.errno == errno.EDQUOT:
        return RegionError(
            "the buffer cannot be registered: that would take mappings, of which the process has"
            " nearly as many as it may; raise vm.max_map_count, or register fewer and larger"
            " buffers"
        )
    if error.errno == errno.EBUSY:
        return RegionError(
            "the buffer cannot be merged: another userfaultfd of this process has registered it"
        )
    return error
