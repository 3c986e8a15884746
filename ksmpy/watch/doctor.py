"""What works on this machine, what does not, and how to get the rest."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ksmpy import limits, native
from ksmpy.engine import numa
from ksmpy.engine.core import Core, live_engines
from ksmpy.errors import KsmpyError, StoreError
from ksmpy.store import files
from ksmpy.store.store import MORE_ROOM
from ksmpy.text import human_bytes, shown
from ksmpy.watch.stores import named_stores

__all__ = ["Check", "doctor"]

_KSM = "/sys/kernel/mm/ksm"
# A store with less room than this gets a warning: Docker gives a container 64 MiB of /dev/shm.
_STORE_ROOM = 256 << 20
# Unused stores that take no more than so many bytes are fine: that is what an index takes.
_LITTLE = 1 << 20
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of doctor(): does it work here, what was found, how to get the rest."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def doctor() -> list[Check]:
    """Try what the engine builds on, and ask this process's engines what they lack.

    Changes nothing; works on every system, and where a limit keeps it from looking it says so.
    """
    checks = [_python(), *_answers("packages", _packages)]
    reason = native.missing()
    if reason is not None:
        return [*checks, Check("extension", False, reason, _remedy())]
    return [
        *checks,
        Check("extension", True, "loaded"),
        Check("kernel", True, f"Linux {platform.release()}, {platform.machine()}"),
        *(check for name, look in _LOOKS for check in _answers(name, look)),
    ]


def _answers(name: str, look: Callable[[], Check | Iterable[Check]]) -> list[Check]:
    """What a look finds, or why it could not be taken."""
    try:
        found = look()
        return [found] if isinstance(found, Check) else list(found)
    except (OSError, MemoryError, ImportError, KsmpyError) as error:
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", 0)
        words = os.strerror(number) if number else str(error)
        reason = limits.why(number or 0, native.memory_left)
        return [Check(name, False, f"cannot be looked at: {words}", reason.removeprefix(": "))]


def _remedy() -> str:
    if not sys.platform.startswith("linux") or native.UNSUITED:
        return "estimate() works everywhere"
    if native.has_other_pages():
        return "boot a kernel with pages of 4096 bytes; estimate() works everywhere"
    return "install again with a C compiler at hand: pip install --force-reinstall ksmpy"


def _python() -> Check:
    ok = sys.version_info >= (3, 10)
    return Check("python", ok, platform.python_version(), "" if ok else "needs Python 3.10")


def _packages() -> Iterator[Check]:
    for name in ("numpy", "mmh3", "psutil"):
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "not installed", f"pip install {name}")


def _kernel() -> Iterator[Check]:
    """What the kernel offers; without /proc some of it cannot be tried, and looks missing."""
    reason = native.no_proc()
    if reason is not None:
        yield Check("/proc", False, reason, "mount -t proc proc /proc")
    caps = native.probe()
    yield from _userfaultfd(caps)
    yield from _features(caps)


def _userfaultfd(caps: dict[str, int]) -> Iterator[Check]:
    if not caps["uffd"]:
        number = caps["uffd_errno"]
        hint = "freeze='signal' works without it; "
        if number == errno.ENOSYS:
            hint += "the kernel has none, or a sandbox hides it"
        else:
            hint += (
                "a container's seccomp profile must allow the userfaultfd system call, or this user"
                " be allowed to open /dev/userfaultfd (docker run --device)"
            )
        yield Check("userfaultfd", False, os.strerror(number), hint)
        return
    yield Check("userfaultfd", True, "available")
    if caps["uffd_kernel_mode"]:
        yield Check("faults in system calls", True, "handled")
    else:
        yield Check(
            "faults in system calls",
            False,
            "pages are left alone while a thread may read() or recv() into them",
            "run as root or with CAP_SYS_PTRACE, or allow this user to open /dev/userfaultfd",
        )


# capability, name of the check, what follows without it
_FEATURES = (
    ("uffd_move", "UFFDIO_MOVE", "Linux 6.8 has it: merging takes mremap instead"),
    ("mremap_dontunmap", "MREMAP_DONTUNMAP", "Linux 5.7 has it"),
    ("uffd_wp_async", "write tracking", "Linux 6.7 has it: each pass reads all pages instead"),
    ("pagemap_scan", "PAGEMAP_SCAN", "Linux 6.7 has it: each pass reads all pages instead"),
    ("uffd_wp_shmem", "write tracking of merged pages", "Linux 5.19 has it"),
    ("madv_populate", "MADV_POPULATE", "Linux 5.14 has it: unmerging goes page by page"),
    ("memfd", "memfd", "merged pages cannot be kept without memfd_create (Linux 3.17)"),
)
# Features that can be neither tried nor used if the kernel hands out no userfaultfd.
_BY_USERFAULTFD = ("uffd_move", "uffd_wp_async", "pagemap_scan", "uffd_wp_shmem")


def _features(caps: dict[str, int]) -> Iterator[Check]:
    for capability, name, hint in _FEATURES:
        ok = bool(caps[capability])
        if not caps["uffd"] and capability in _BY_USERFAULTFD:
            hint = "goes with userfaultfd: see above"
        yield Check(name, ok, "available" if ok else "missing", "" if ok else hint)


def _devices() -> Check:
    if not native.has_devices():
        return Check("device I/O", True, "no io_uring, libaio or device that pins memory")
    return Check(
        "device I/O",
        False,
        "this process has io_uring, libaio, a device that pins memory, or pinned memory (VmPin):"
        " only freeze='uffd-move' sees what is written into a page so in the microseconds of its"
        " merge, and auto takes it",
        "make the engine after them, or with freeze='uffd-move'",
    )


def _auto() -> Check:
    try:
        engine = Core()
        detail = f"freeze={engine.freeze!r}, tracking={engine.tracking!r}"
        engine.close()
    except (KsmpyError, OSError) as error:
        return Check("engine", False, str(error), "the lines above say what is missing")
    return Check("engine", True, f"auto chooses {detail}")


def _stores() -> Check:
    """Whether processes can share named stores, and how much memory these may take."""
    try:
        path, room = files.look()
    except StoreError as error:
        return Check("named stores", False, error.strerror or str(error), "or leave store=None")
    ok = room >= _STORE_ROOM
    return Check(
        "named stores",
        ok,
        f"in {path}, {human_bytes(room)} free",
        "" if ok else "mount it larger: mount -o remount,size=..., docker run --shm-size=...",
    )


def _unused_stores() -> Check:
    """Named stores that no process uses: their memory stays taken until they are removed."""
    what = "unused stores"
    try:
        unused = [store for store in named_stores() if store.unused]
    except StoreError:
        return Check(what, True, "not looked for: see named stores")
    if not unused:
        return Check(what, True, "none")
    kept = sum(store.kept_bytes for store in unused)
    unused.sort(key=lambda store: -store.kept_bytes)
    first = ", ".join(shown(store.name) for store in unused[:3])
    detail = (
        f"{len(unused)} keep {human_bytes(kept)} of memory while nobody uses them: {first}"
        f"{', ...' * (len(unused) > 3)}"
    )
    hint = "remove what is not needed: ksmpy store list, ksmpy store rm NAME"
    return Check(what, kept < _LITTLE, detail, hint)


def _mappings() -> Check:
    used, limit = limits.mappings()
    ok = used < limit // 4 and limit >= 65530
    hint = "" if ok else "raise the limit: sysctl vm.max_map_count=1048576 (root)"
    return Check("mappings", ok, f"{used} of {limit} (vm.max_map_count) in use", hint)


_MORE_MAPPINGS = (
    "raise the limit (sysctl vm.max_map_count=1048576, as root) or the engine's share of it"
    " (knobs.vma_share_percent); arrays that begin at the same place in a page"
    " (ksmpy.copy, ksmpy.empty) merge in long runs, which take few mappings"
)


def _budget() -> Check:
    """What the engines of this process did not merge for want of mappings."""
    told, left_out = [], 0
    for engine in live_engines():
        try:
            if engine.inherited:
                continue
            share = engine.knobs.vma_share_percent
            stats = engine.stats()
        except KsmpyError:  # closed
            continue
        left_out += stats.pages_no_budget
        told.append(
            f"{stats.vmas} of {stats.vma_limit} in use ({share} % of vm.max_map_count),"
            f" {stats.pages_no_budget} times a page was left out"
        )
    detail = "; ".join(told) or "no engine in this process"
    return Check("mapping budget", not left_out, detail, _MORE_MAPPINGS if left_out else "")


def _room() -> Check:
    """The stores that are full: named ones, and those of this process's engines."""
    full, known = [], set()
    for engine in live_engines():
        try:
            store = engine.full_store()
        except KsmpyError:  # closed
            continue
        if store is not None:
            full.append(repr(store))
            known.add(store.path)
    with contextlib.suppress(StoreError):  # that is said by the check of named stores
        named = [store for store in named_stores() if store.full and store.path not in known]
        full += [shown(store.name) for store in named if not store.unused]
    if full:
        what = f"none left in {', '.join(full)}: equal pages are left apart"
        return Check("room in stores", False, what, MORE_ROOM)
    return Check("room in stores", True, "no store in use is full")


def _numa() -> Check:
    topology = numa.SystemTopology()
    nodes = topology.nodes
    detail = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, from {topology.source}"
    ok = topology.source == "libnuma" or len(nodes) == 1
    return Check("NUMA", ok, detail, "" if ok else "install libnuma (Debian: libnuma1)")


def _swap() -> Check:
    devices = _read("/proc/swaps").splitlines()[1:]
    detail = (
        f"{len(devices)} swap devices in use" if devices else "none: unmerging needs free memory"
    )
    return Check("swap", True, detail)


_DUMP_MEMORY, _DUMP_FILES = 1, 4  # bits of /proc/PID/coredump_filter (core(5))


def _core_dumps() -> Check:
    """Whether merged pages, which lie in private mappings of a file, are in the core of a crash."""
    path = "/proc/self/coredump_filter"
    text = _read(path)
    chosen = int(text, 16) if text else 0
    hint = f"echo {chosen | _DUMP_FILES:#x} > {path} in the shell that starts the program"
    if chosen & _DUMP_FILES:
        return Check("core dumps", True, f"hold merged pages (coredump_filter {chosen:#x})")
    if not chosen & _DUMP_MEMORY:
        return Check("core dumps", True, f"hold no memory (coredump_filter {chosen:#x})")
    merged = any(not engine.inherited and engine.stats().merging_pages for engine in live_engines())
    if merged or not os.access(path, os.W_OK):
        return Check("core dumps", False, f"lack merged pages (coredump_filter {chosen:#x})", hint)
    detail = f"will hold merged pages: the first merge sets {chosen | _DUMP_FILES:#x}"
    return Check("core dumps", True, detail)


def _huge_pages() -> Check:
    setting = _read(_THP)
    if not setting:
        return Check("transparent huge pages", True, "not in this kernel")
    chosen = setting[setting.find("[") + 1 : setting.find("]")]
    detail = f"{chosen}: huge pages are split where a part of them is merged"
    return Check("transparent huge pages", True, detail if chosen != "never" else chosen)


_SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


def _huge_frames() -> Check:
    """Whether what is merged can lie on huge pages, by making one (MADV_COLLAPSE)."""
    name = "merged memory on huge pages"
    error = native.try_huge_frames()
    if not error:
        return Check(name, True, "where a whole huge page is merged, by MADV_COLLAPSE")
    if error == errno.ENOMEM:
        return Check(name, True, "no: the machine has no huge page left, or the cgroup no memory")
    if "[deny]" in _read(_SHMEM):
        return Check(name, True, f"no: {_SHMEM} says deny", f"echo never > {_SHMEM}")
    needed = "MADV_COLLAPSE and PAGEMAP_SCAN, Linux 6.7"
    return Check(name, True, f"no: {os.strerror(error)} ({needed})")


def _kernel_ksm() -> Check:
    run = _read(f"{_KSM}/run")
    if not run:
        return Check("kernel KSM", True, "not in this kernel (ksmpy does not need it)")
    state = {"0": "stopped", "1": "running", "2": "stopped, unmerged"}.get(run, run)
    writable = os.access(f"{_KSM}/run", os.W_OK)
    detail = f"{state}, {'may' if writable else 'may not'} be changed here (ksmpy does not need it)"
    return Check("kernel KSM", True, detail)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


_LOOKS: tuple[tuple[str, Callable[[], Check | Iterable[Check]]], ...] = (
    ("what the kernel offers", _kernel),
    ("device I/O", _devices),
    ("engine", _auto),
    ("named stores", _stores),
    ("unused stores", _unused_stores),
    ("mappings", _mappings),
    ("mapping budget", _budget),
    ("room in stores", _room),
    ("NUMA", _numa),
    ("swap", _swap),
    ("core dumps", _core_dumps),
    ("transparent huge pages", _huge_pages),
    ("merged memory on huge pages", _huge_frames),
    ("kernel KSM", _kernel_ksm),
)
