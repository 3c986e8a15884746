"""The only module that touches the extension: typed calls, errno turned into OSError.

Calls release the GIL. An engine's pointer is freed by whichever call is the last one inside
it once it has been closed, so that closing never waits for another thread and never frees
memory that a running call still uses.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ksmpy import limits
from ksmpy.errors import KsmpyError, Unsupported

# Free-threaded Pythons are refused: their objects' fields lie elsewhere than the extension reads
# them, and it relies on the GIL.
_FREE_THREADED = "t" in getattr(sys, "abiflags", "")


def _is_main_interpreter() -> bool:
    """Whether the whole process ends with this interpreter, and not a part of it."""
    api = getattr(ctypes, "pythonapi", None)
    if api is None:  # an interpreter of another kind, for which there is no extension
        return True
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetID.argtypes = (ctypes.c_void_p,)
    api.PyInterpreterState_GetID.restype = ctypes.c_int64
    return bool(api.PyInterpreterState_GetID(api.PyInterpreterState_Get()) == 0)


def _unbuilt() -> str | None:
    """What to say where this is the source, found before an installed ksmpy, as in its folder."""
    package = os.path.dirname(os.path.abspath(__file__))
    folder = os.path.dirname(package)
    if not os.path.exists(os.path.join(folder, "csrc")):  # nor may it be a folder: a zip file
        return None
    if any(name.startswith("_ksmpy.") for name in os.listdir(package)):
        return None
    return (
        f"{folder} has ksmpy's source, whose extension module has not been built (make build): "
        "Python finds an installed ksmpy when it is started in another folder"
    )


_missing: str | None = None
if _FREE_THREADED:
    _missing = "ksmpy merges nothing in a free-threaded Python: it needs one with a GIL"
elif not _is_main_interpreter():
    # Up to Python 3.11 the process is aborted where such an interpreter ends before its threads.
    _missing = "ksmpy merges nothing in a subinterpreter: use it in the main interpreter"

#: Whether it is this interpreter that cannot have an engine, however ksmpy is installed.
UNSUITED = _missing is not None

if not UNSUITED:
    try:
        from ksmpy._ksmpy import ffi, lib
    except ImportError as _error:
        _missing = (
            f"ksmpy merges memory on Linux only, this is {sys.platform}"
            if not sys.platform.startswith("linux")
            else _unbuilt() or f"ksmpy's extension module is missing or does not load: {_error}"
        )


def _constant(name: str, without: int = 0) -> int:
    """The value of one of the extension's enumerators, or `without` where there is no extension."""
    return int(getattr(lib, f"KSMPY_{name}")) if _missing is None else without


def _words(enum: str) -> tuple[str, ...]:
    """An enum's names as users write them, in their order: "uffd-wp" for .._UFFD_WP."""
    if _missing is not None:
        return ("auto",)
    prefix = f"KSMPY_{enum.upper()}_"
    names = sorted(ffi.typeof(f"enum ksmpy_{enum}").elements.items())
    return tuple(name.removeprefix(prefix).lower().replace("_", "-") for _, name in names)


PAGE_SIZE = _constant("PAGE_SIZE", 4096)  # in bytes; estimate() counts pages on every system
MAX_NODES = _constant("MAX_NODES")

FREEZES = _words("freeze")
TRACKINGS = _words("tracking")

VMA_HUGEPAGE = _constant("VMA_HUGEPAGE")
VMA_NOHUGEPAGE = _constant("VMA_NOHUGEPAGE")
VMA_DONTDUMP = _constant("VMA_DONTDUMP")
VMA_UNKNOWN = _constant("VMA_UNKNOWN")
VMA_GROWING = _constant("VMA_GROWING")

SCAN_EAGER = _constant("SCAN_EAGER")
SCAN_RESTART = _constant("SCAN_RESTART")
SCAN_PATIENT = _constant("SCAN_PATIENT")
SCAN_BACK_OFF = _constant("SCAN_BACK_OFF")

OWNER_MALLOC = _constant("OWNER_MALLOC")
OWNER_PYTHON = _constant("OWNER_PYTHON")

KNOB_NUMBERS = {
    word.replace("-", "_"): number for number, word in enumerate(_words("knob")) if word != "count"
}


def check(rc: int, call: str) -> int:
    """Return `rc`; a negative one raises OSError with that errno and the call's name."""
    if rc < 0:
        raise OSError(-rc, f"{call}: {os.strerror(-rc)}{limits.why(-rc, memory_left)}")
    return rc


def memory_left() -> tuple[int, str]:
    """Bytes that this process may still take, and what allows no more: "" if nothing does."""
    which = ffi.new("char[]", 512)
    left = int(lib.ksmpy_memory_left(which, 512))
    return max(left, 0), ffi.string(which).decode(errors="replace") if left >= 0 else ""


def know_interpreter() -> None:
    """Freeze beside no system call that would fail, as far as that can be known."""
    lib.ksmpy_know_interpreter()


def know_no_interpreter() -> None:
    """Freeze beside system calls that fail: for whoever stops single threads to look at them.

    A thread that is stopped while something is frozen would keep the interpreter's lock (the GIL).
    """
    lib.ksmpy_know_no_interpreter()


def interpreter_ends() -> None:
    """Freeze nothing any more where the interpreter's lock would be needed; idempotent."""
    if _missing is None:
        lib.ksmpy_interpreter_ends()


if _missing is None:
    know_interpreter()
    atexit.register(interpreter_ends)


def missing() -> str | None:
    """Why no engine can be made here at all, or None."""
    if _missing is not None:
        return _missing
    if has_other_pages():
        return f"ksmpy works with pages of 4096 bytes, here they have {os.sysconf('SC_PAGE_SIZE')}"
    return None


def has_other_pages() -> bool:
    """Whether this kernel has larger pages than the engine works with, as some on Arm have."""
    return os.sysconf("SC_PAGE_SIZE") != PAGE_SIZE


def no_proc() -> str | None:
    """Why no engine can be made without /proc, which says what is mapped; None if it is there."""
    return None if os.access("/proc/self", os.F_OK) else "/proc is not mounted here"


def require() -> None:
    """Raise Unsupported where no engine can be made."""
    reason = missing()
    if reason is not None:
        raise Unsupported(reason)


def _fields(struct: Any) -> dict[str, int]:
    return {name: int(getattr(struct, name)) for name, _ in ffi.typeof(struct).item.fields}


def probe() -> dict[str, int]:
    """What this machine offers, by trying it: the fields of struct ksmpy_caps."""
    require()
    caps = ffi.new("struct ksmpy_caps *")
    check(lib.ksmpy_probe(caps), "ksmpy_probe")
    return _fields(caps)


def has_devices() -> bool:
    """Whether io_uring, libaio or devices may write into this process's memory unseen."""
    require()
    return bool(lib.ksmpy_has_devices())


def try_huge_frames() -> int:
    """0 where frames can lie on huge pages; or why not, as an errno."""
    require()
    return -int(lib.ksmpy_try_huge_frames())


def own_memory() -> list[tuple[int, int]]:
    """(start, end) of what the engines of this process use for themselves."""
    room = 256
    while True:
        out = ffi.new("struct ksmpy_range[]", room)
        count = check(lib.ksmpy_own_memory(out, room), "ksmpy_own_memory")
        if count <= room:
            return [(out[i].start, out[i].end) for i in range(count)]
        room = count + count // 4


def find_owners(start: int, end: int, *, heap: bool) -> list[tuple[int, int, int]]:
    """(start, end, owner) of what of the mappings in [start, end) allocators have that do not count
    on zeros where they gave memory back, in order. heap: it is the memory of brk().
    """
    room = 64
    while True:
        out = ffi.new("struct ksmpy_owned[]", room)
        found = lib.ksmpy_find_owners(start, end, int(heap), out, room)
        count = check(found, "ksmpy_find_owners")
        if count <= room:
            return [(out[i].start, out[i].end, int(out[i].owner)) for i in range(count)]
        room = count + count // 4


def next_in_memory(start: int, end: int) -> int:
    """The address of the first page in [start, end), whole pages, that is in memory; `end` if there
    is none, or if nothing is mapped there. To ask takes no longer where terabytes are reserved.
    """
    return int(lib.ksmpy_next_in_memory(start, end))


def checksum(data: object) -> int:
    """The 64-bit page checksum of contiguous bytes; their number must be a multiple of 64."""
    require()
    view = ffi.from_buffer(data)
    if len(view) % 64:
        raise ValueError("the checksum takes a multiple of 64 bytes")
    return int(lib.ksmpy_checksum(view, len(view)))


def read_only(data: object) -> int:
    """Read contiguous bytes as fast as this machine can: the yardstick of the checksum."""
    require()
    view = ffi.from_buffer(data)
    return int(lib.ksmpy_read_only(view, len(view)))


def store_stats(fd: int) -> dict[str, int]:
    """The fields of struct ksmpy_store_stats, for the store behind a descriptor."""
    out = ffi.new("struct ksmpy_store_stats *")
    check(lib.ksmpy_store_stats(fd, out), "ksmpy_store_stats")
    return _fields(out)


def store_processes(fd: int) -> list[tuple[int, int, int]]:
    """(pid, inherited, pages on frames) for each process that uses a store."""
    room = 64
    while True:
        out = ffi.new("struct ksmpy_store_process[]", room)
        count = check(lib.ksmpy_store_processes(fd, out, room), "ksmpy_store_processes")
        if count <= room:
            rows = (out[i] for i in range(count))
            return [(row.pid, row.inherited, int(row.merging_pages)) for row in rows]
        room = count + count // 4


def store_holder(fd: int) -> int:
    """The process that has a store locked just now, or 0."""
    return int(lib.ksmpy_store_holder(fd))


def store_retire(fd: int) -> bool:
    """Keep everybody from using a store from now on; False when somebody uses it."""
    rc = lib.ksmpy_store_retire(fd)
    return rc != -errno.EBUSY and check(rc, "ksmpy_store_retire") == 0


def _holding_the_gil(name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
    """A native function that takes Python objects, and so must be called with the GIL held."""
    address = int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
    return ctypes.PYFUNCTYPE(result, *arguments)(address)


def collector_callback(sweep: Callable[[bool], object]) -> Callable[[str, dict[str, int]], object]:
    """Make a function for gc.callbacks that has `sweep` called some time after each collection.

    `sweep` gets whether the collection was one of all generations. What it raises is raised in the
    code that happens to run then. A second call replaces the first one's `sweep`.
    """
    _holding_the_gil("ksmpy_sweep_by", ctypes.py_object)(sweep)
    callback = _holding_the_gil("ksmpy_collection", ctypes.py_object, ctypes.py_object)
    _collector_callbacks.append(callback)
    return callback


_collector_callbacks: list[object] = []


@functools.cache
def _looking(name: str, arguments: int) -> Callable[..., Any]:
    return _holding_the_gil(name, *[ctypes.py_object] * arguments, result=ctypes.py_object)


# The arguments of look_into(), and its results.
Query = tuple[dict[type, int], type | None, object, tuple[type, ...], int]
Found = list[tuple[int, int, Any, type]]
Others = list[tuple[Any, Any, type]]


def look_into(containers: list[object], query: Query) -> tuple[Found, Others]:
    """Look at what the objects in a list refer to, and at the untracked containers among that.

    Returns (address, bytes, key, type of the container) of numpy arrays, bytes and bytearrays, to
    which no reference is taken, and (object, key, type of the container) of objects of the types
    `asked`. The query: `kinds` is a cache that the call fills for the next one, then the array type
    and its descriptor `nbytes`, the types `asked`, and the least bytes.
    """
    found: tuple[Found, Others] = _looking("ksmpy_look_into", 2)(containers, query)
    return found


def look_around(query: Query) -> tuple[Found, Others, list[object]]:
    """Look into those of the collector's objects to which no reference may be kept: tuples, which
    another thread may be filling, arrays, what has a finalizer, and what is young. And into the
    local variables of all threads from Python 3.13 on, unless there are other interpreters: before
    that a frame that is asked for its variables keeps them, and they would outlive their `del`.

    Returns what look_into() does, and the rest of the collector's objects.
    """
    found: tuple[Found, Others, list[object]]
    frames = sys._current_frames if sys.version_info >= (3, 13) else None
    found = _looking("ksmpy_look_around", 3)(gc.get_objects, frames, query)
    return found


def allocated_blocks() -> int:
    """How many blocks the interpreter has for objects, or 0 where there are other interpreters:
    from Python 3.12 on `sys.getallocatedblocks()` goes through their memory, too, while they
    change it.
    """
    count = sys.getallocatedblocks
    old = sys.version_info < (3, 12)
    return count() if old else _looking("ksmpy_call_alone", 1)(count) or 0


def sweep_no_more() -> None:
    """Call no `sweep` any more: from now on collections are only noted, for collecting()."""
    _holding_the_gil("ksmpy_sweep_by", ctypes.c_void_p)(None)


def collecting() -> bool:
    """Whether this is called from within a run of the garbage collector in this thread, or nobody
    knows, as collector_callback()'s function is not in gc.callbacks (any more).
    """
    told = any(each is ours for each in gc.callbacks for ours in _collector_callbacks)
    return not told or bool(lib.ksmpy_collecting())


class NativeEngine:
    """One `ksmpy_engine *` and the calls on it."""

    def __init__(
        self,
        freeze: str,
        tracking: str,
        nodes: int = 1,
        node_ids: Sequence[int] | None = None,
        store_fd: int = -1,
    ) -> None:
        """Make the engine, on the store behind a descriptor or, with -1, on one of its own.

        Raises Unsupported when the machine lacks the way of freezing or tracking asked for,
        OSError with the native engine's errno for a store that cannot be used.
        """
        require()
        options = ffi.new("struct ksmpy_options *")
        ids = ffi.new("int[]", list(node_ids)) if node_ids is not None else ffi.NULL
        options.freeze = FREEZES.index(freeze)
        options.tracking = TRACKINGS.index(tracking)
        options.nodes = nodes
        options.node_ids = ids
        options.store_fd = store_fd
        # No lock is used below, only single atomic operations on a dict or a list: a garbage
        # collection may call into this engine again, in the middle of a call in the same thread.
        self._inside: dict[object, None] = {}
        self._closed = False
        self._pointer: list[Any] = []
        # Ctrl-C may come when the call returns, and then nobody else knows what it has made.
        out = self._made = ffi.new("ksmpy_engine **")
        rc = lib.ksmpy_engine_new(options, out)
        reason = no_proc() if rc < 0 else None
        if reason is not None:
            raise Unsupported(f"{reason}, an engine cannot do without: mount -t proc proc /proc")
        if rc in (-errno.ENOSYS, -errno.EOPNOTSUPP, -errno.EPERM):
            raise Unsupported(
                f"this machine does not offer freeze={freeze!r} with tracking={tracking!r}"
                f" ({os.strerror(-rc)}); see ksmpy.doctor()"
            )
        check(rc, "ksmpy_engine_new")
        lib.ksmpy_note_main_stack()
        self._pointer.append(out[0])
        self.freeze: str = FREEZES[lib.ksmpy_engine_freeze(out[0])]
        self.tracking: str = TRACKINGS[lib.ksmpy_engine_tracking(out[0])]

    def __del__(self) -> None:
        """Free an engine whose construction was interrupted: nobody else would."""
        if sys.is_finalizing() or not hasattr(self, "_made"):
            return
        if self._made[0] != ffi.NULL and (self._pointer or not self._closed):
            lib.ksmpy_engine_close(self._made[0])

    def _call(self, function: Callable[..., Any], *args: Any) -> int:
        token = object()
        self._inside[token] = None
        try:
            if self._closed:
                raise KsmpyError("engine is closed")
            return int(function(self._pointer[0], *args))
        finally:
            self._inside.pop(token, None)
            if self._closed:
                self._free()

    def _free(self) -> None:
        if self._inside:
            return
        # Not by pop(): Ctrl-C may come after a call, and the pointer would be lost.
        try:
            pointer = self._pointer[0]
            del self._pointer[0]
        except IndexError:
            return
        rc = lib.ksmpy_engine_close(pointer)
        if rc < 0:  # a region is left, and nothing was freed
            self._pointer.append(pointer)
            self._closed = False
        check(rc, "ksmpy_engine_close")

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._closed

    def close(self) -> None:
        """Free the engine, now or when the last running call leaves it; no region may be left."""
        self._closed = True
        self._free()

    def forget_threads(self) -> None:
        """Drop what is known about running calls: after a fork there is no other thread."""
        self._inside = {}

    def forked(self) -> bool:
        """Whether this process inherited the engine by fork."""
        return self._call(lib.ksmpy_engine_forked) != 0

    def revive(self) -> None:
        """Make an engine on a shared store, inherited by fork, one of this process."""
        check(self._call(lib.ksmpy_revive), "ksmpy_revive")

    def register(self, address: int, length: int, vma_flags: int) -> int:
        """Adopt page-aligned memory; returns the region's number."""
        out = ffi.new("uint32_t *")
        rc = self._call(lib.ksmpy_register, address, length, vma_flags, out)
        check(rc, "ksmpy_register")
        return int(out[0])

    def find_region(self, address: int, length: int) -> int | None:
        """The lowest region with a page in that range."""
        rc = self._call(lib.ksmpy_find_region, address, length)
        return None if rc == -errno.ENOENT else check(rc, "ksmpy_find_region")

    def set_vma_flags(self, region: int, address: int, vma_flags: int) -> None:
        """Say what was left open by VMA_UNKNOWN when the region at that address was registered."""
        check(
            self._call(lib.ksmpy_set_vma_flags, region, address, vma_flags), "ksmpy_set_vma_flags"
        )

    def release(self, region: int, *, discard: bool) -> None:
        """Let a region go; its bytes stay unless `discard` says that they are not needed."""
        check(self._call(lib.ksmpy_release, region, int(discard)), "ksmpy_release")

    def find_lost(self) -> list[int]:
        """The regions whose memory was unmapped or replaced behind our back."""
        room = 64
        while True:
            out = ffi.new("uint32_t[]", room)
            count = check(self._call(lib.ksmpy_find_lost, out, room), "ksmpy_find_lost")
            if count <= room:
                return [int(out[i]) for i in range(count)]
            room = count

    def unmerge_region(self, region: int) -> None:
        """Give a region its own pages back."""
        check(self._call(lib.ksmpy_unmerge_region, region), "ksmpy_unmerge_region")

    def unmerge(self) -> None:
        """Give all regions their own pages back."""
        check(self._call(lib.ksmpy_unmerge), "ksmpy_unmerge")

    def scan(self, max_pages: int, flags: int) -> dict[str, int]:
        """Scan at most `max_pages` pages: the fields of struct ksmpy_scan_result."""
        result = ffi.new("struct ksmpy_scan_result *")
        rc = self._call(lib.ksmpy_scan, max_pages, flags, result)
        if rc == -errno.EBADF:
            raise OSError(
                errno.EBADF,
                "the program has closed the engine's descriptors (os.closerange?): nothing is"
                " merged any more; make the engine after that, or leave its descriptors open",
            )
        check(rc, "ksmpy_scan")
        return _fields(result)

    def store_full(self) -> bool:
        """Whether a shared store's frames have taken what its file system has for them."""
        return bool(self._call(lib.ksmpy_store_full))

    def interrupt(self) -> None:
        """Make a scan in another thread return early."""
        self._call(lambda pointer: lib.ksmpy_interrupt(pointer) or 0)

    def knob_get(self, knob: int) -> int:
        """Value of a knob of the engine's own."""
        out = ffi.new("uint64_t *")
        check(self._call(lib.ksmpy_knob_get, knob, out), "ksmpy_knob_get")
        return int(out[0])

    def knob_set(self, knob: int, value: int) -> None:
        """Set a knob of the engine's own; OSError with the kernel's errno."""
        check(self._call(lib.ksmpy_knob_set, knob, value), "ksmpy_knob_set")

    def refresh(self) -> None:
        """Take apart merged pages that were written since, so that the counters are exact."""
        check(self._call(lib.ksmpy_refresh), "ksmpy_refresh")

    def exact_stats(self) -> dict[str, int]:
        """The fields of struct ksmpy_stats after a refresh(), for one wait for the engine."""
        out = ffi.new("struct ksmpy_stats *")
        check(self._call(lib.ksmpy_exact_stats, out), "ksmpy_exact_stats")
        return _fields(out)

    def stats(self) -> dict[str, int]:
        """The fields of struct ksmpy_stats, as they are."""
        out = ffi.new("struct ksmpy_stats *")
        check(self._call(lib.ksmpy_stats, out), "ksmpy_stats")
        return _fields(out)

    def counters(self) -> dict[str, int]:
        """The same in less time, without `vmas`, which is 0."""
        out = ffi.new("struct ksmpy_stats *")
        check(self._call(lib.ksmpy_counters, out), "ksmpy_counters")
        return _fields(out)

    def region_stats(self, region: int) -> tuple[dict[str, int], dict[str, int]]:
        """The fields of struct ksmpy_region_stats, and counters(), after a refresh()."""
        out, whole = ffi.new("struct ksmpy_region_stats *"), ffi.new("struct ksmpy_stats *")
        check(self._call(lib.ksmpy_region_stats, region, out, whole), "ksmpy_region_stats")
        return _fields(out), _fields(whole)

    def shares(self) -> list[tuple[int, int, int]]:
        """(region, region, pages) for each pair of regions that share frames."""
        room = 64
        while True:
            out = ffi.new("struct ksmpy_share[]", room)
            count = check(self._call(lib.ksmpy_shares, out, room), "ksmpy_shares")
            if count <= room:
                return [(out[i].region_a, out[i].region_b, int(out[i].pages)) for i in range(count)]
            room = count + count // 4

    def set_nodes(self, region: int, nodes: bytes) -> None:
        """Say on which node each page of a region lies: one byte a page, a node's index."""
        view = ffi.from_buffer("uint8_t[]", nodes)
        check(self._call(lib.ksmpy_set_nodes, region, view, len(nodes)), "ksmpy_set_nodes")

    def check(self) -> None:
        """Walk every structure; KsmpyError with the engine's own words when one is wrong."""
        text = ffi.new("char[]", 512)
        rc = self._call(lib.ksmpy_check, text, 512)
        if rc == -errno.EUCLEAN:
            raise KsmpyError(ffi.string(text).decode(errors="replace"))
        check(rc, "ksmpy_check")
