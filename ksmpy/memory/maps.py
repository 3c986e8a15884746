"""Which of the process's own mappings can hold a region, and why the others cannot."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right

from ksmpy import limits, native, proc
from ksmpy.errors import RegionError
from ksmpy.native import VMA_DONTDUMP, VMA_HUGEPAGE, VMA_NOHUGEPAGE
from ksmpy.own import own
from ksmpy.proc import Mapping
from ksmpy.store.files import is_store

__all__ = [
    "MERGED",
    "AddressSpace",
    "Allowance",
    "is_unwatched",
    "is_watched",
    "may_be_region",
    "refusal",
    "register_error",
    "vma_flags",
]

_ENGINE_FLAGS = {"hg": VMA_HUGEPAGE, "nh": VMA_NOHUGEPAGE, "dd": VMA_DONTDUMP}

# Letters of VmFlags (Documentation/filesystems/proc.rst), most telling first.
#: Why overlays are refused.
MERGED = "it is merged already, by an engine"
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
    "mt": "its bytes have tags (PROT_MTE on Arm), which merged ones would not have",
    "um": "another userfaultfd of this process has registered it",
    "uw": "another userfaultfd of this process has registered it",
    "ui": "another userfaultfd of this process has registered it",
}
_USERFAULTFD = frozenset({"um", "uw", "ui"})


class AddressSpace:
    """A snapshot of the mappings, taken once for many look-ups: the bytes of smaps or maps."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._starts, self._lines = proc.places(data)

    @classmethod
    def read(cls, limit: int) -> AddressSpace:
        """The mappings below the address `limit`, as they are now. OSError with the way out."""
        try:
            return cls(proc.read_smaps(limit=limit))
        except OSError as error:
            way_out = limits.why(error.errno or 0, native.memory_left)
            raise OSError(error.errno, f"{error.strerror}{way_out}", error.filename) from None

    def covering(self, start: int, end: int) -> list[Mapping]:
        """The mappings that touch [start, end), in order."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        last = bisect_left(self._starts, end)
        lines = [*self._lines[first : last + 1], len(self._data)]
        touched = proc.parse(self._data[lines[0] : lines[max(last - first, 0)]])
        return [mapping for mapping in touched if mapping.end > start]


class Allowance:
    """How much time one registration after the other may spend on reading the mappings.

    The kernel takes 10 us for each mapping below the one in question. When a program registers
    thousands of buffers one by one, the first ones are looked at right away (up to _CREDIT seconds
    in all). After that only so many are that a registration takes _EACH seconds on average; the
    others have to be looked at later.
    """

    _CREDIT = 0.25
    _EACH = 0.0003
    _SHARE = 0.02  # so much of the time that goes by may be spent, besides

    def __init__(self) -> None:
        self._spent = 0.0
        self._last = 0.0  # seconds that the next reading is expected to take
        self._then = 0.0

    def read(self, limit: int) -> AddressSpace | None:
        """As AddressSpace.read(); None if it would take too long at the moment."""
        begin = own.monotonic()
        earned = self._EACH + self._SHARE * (begin - self._then)
        self._spent, self._then = max(self._spent - earned, 0.0), begin
        if self._spent + self._last > self._CREDIT:
            self._last = max(self._last - earned, 0.0)
            return None
        space = AddressSpace.read(limit)
        self._last = own.monotonic() - begin
        self._spent += self._last
        return space


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
        return MERGED
    if mapping.perms[3] == "s":
        # The kernel shows anonymous shared memory as a deleted file /dev/zero.
        file = "" if mapping.path.startswith("/dev/zero") else f" and file-backed ({mapping.path})"
        return f"it is shared memory (MAP_SHARED){file}"
    if mapping.path.startswith("/"):
        return f"it is file-backed ({mapping.path}): copy it into memory of its own"
    if mapping.perms[:3] != "rw-":
        return f"its memory is mapped {mapping.perms[:3]}, not rw-"
    return next((text for flag, text in _REFUSED.items() if flag in flags), None)


def is_unwatched(mapping: Mapping) -> bool:
    """Whether it is private anonymous memory that no userfaultfd has; False where nothing tells."""
    return not mapping.inode and mapping.perms == "rw-p" and not is_watched(mapping)


def is_watched(mapping: Mapping) -> bool:
    """Whether a userfaultfd has it; True where nothing tells."""
    return mapping.flags is None or bool(mapping.flags & _USERFAULTFD)


def may_be_region(mapping: Mapping) -> bool:
    """Whether an engine may have registered it, whose zeros may be in it; True where nothing tells.
    Not so what a userfaultfd has and is kept from children: that is no region, and uffd-move's
    window is such memory.
    """
    kept = mapping.flags is not None and "dc" in mapping.flags
    return not mapping.inode and is_watched(mapping) and not kept


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
