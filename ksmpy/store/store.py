"""Stores that several processes share: a file on tmpfs with a name, or a memfd without one.

A store is one trust domain: who can open it can read and change what is merged in it. So a named
one must be this user's alone, file and directory, and what is not so is refused, not repaired.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from ksmpy import native
from ksmpy.context import Ending
from ksmpy.errors import KnobError, StoreError
from ksmpy.store import files
from ksmpy.store.stats import StoreStats

__all__ = ["Store", "StoreProcess", "attach"]

# How often an engine opens a name again when the store behind it was retired in the meantime. Each
# time another process has to remove it between two steps, so more than one is rare.
_ATTEMPTS = 10

_Made = TypeVar("_Made")


class StoreProcess(int):
    """A process that uses a store: its pid, and what is known of it."""

    pid: int
    inherited: bool
    """Whether it is a forked child that has not used the engine that it inherited."""
    merging_pages: int
    """Its pages on the store's frames."""

    def __new__(cls, pid: int, inherited: bool = False, merging_pages: int = 0) -> StoreProcess:
        """The pid, with the rest as attributes."""
        self = super().__new__(cls, pid)
        self.pid = pid
        self.inherited = inherited
        self.merging_pages = merging_pages
        return self

    def __reduce__(self) -> tuple[type[StoreProcess], tuple[int, bool, int]]:
        """Copies and pickles are made of these."""
        return StoreProcess, (self.pid, self.inherited, self.merging_pages)

    def __str__(self) -> str:
        return str(self.pid)

    def __repr__(self) -> str:
        return (
            f"StoreProcess(pid={self.pid}, inherited={self.inherited},"
            f" merging_pages={self.merging_pages})"
        )


class Store(Ending):
    """Frames that several processes share: give it to their engines, as Engine(store=...).

    Made by Store.open(), Store.anonymous() or Store.from_fd(). A context manager: close() at the
    end lets go of this handle; engines made with it keep their own. It goes to child processes
    by fork and by multiprocessing: a named store is opened again by its name there, of an
    anonymous one a descriptor is sent.

    Equal handles are of the same store. A closed one raises StoreError.
    """

    name: str | None
    """None for a store without a name."""
    directory: str | None
    """Where the named store's file lies."""

    def __init__(self, fd: int, name: str | None, directory: str | None) -> None:
        # Only the constructors below call this. The descriptor belongs to the Store from now on.
        if fd <= 2:  # a daemon has closed its standard files: a print() would write into the store
            fd = files.dup_above_standard(fd, closing=True)
        status = os.fstat(fd)
        self.name = name
        self.directory = directory
        self._identity = status.st_dev, status.st_ino
        self._fd = fd
        self._finalizer = weakref.finalize(self, files.close_own, fd, self._identity)
        self._finalizer.atexit = False

    @classmethod
    def open(
        cls, name: str, *, create: bool = True, directory: str | os.PathLike[str] | None = None
    ) -> Store:
        """The store of this name, made if it is missing and `create` is true.

        `name`: 1 to 200 bytes, no '/' and no '.' in front. It is the file NAME.ksmpy in
        `directory`, or in KSMPY_STORE_DIR, or in /dev/shm/ksmpy-UID; the directory is made too.

        Raises StoreError: EINVAL for a name that cannot be, ENOENT when it is missing, and for
        files and directories that are not safe to use: EPERM (another's, or open to others),
        ELOOP, ENOTDIR, EINVAL (not a regular file), EOPNOTSUPP (not on tmpfs).
        """
        native.require()
        place = files.store_directory(directory)
        return cls(files.open_file(name, place, create=create), name, place)

    @classmethod
    def anonymous(cls) -> Store:
        """A new store without a name, for the processes that get a descriptor of it."""
        native.require()
        return cls(files.make_memfd(), None, None)

    @classmethod
    def from_fd(cls, fd: int) -> Store:
        """The store behind a descriptor that another process gave; `fd` itself stays open.

        Raises StoreError: EBADF, EINVAL (not a regular file), EACCES (not open for reading and
        writing), EOPNOTSUPP (not on tmpfs).
        """
        import fcntl

        native.require()
        try:
            own = files.dup_above_standard(fd)
        except OSError as error:
            raise StoreError(error.errno, f"no store: descriptor {fd} is not open") from None
        try:
            files.check_regular(os.fstat(own), f"descriptor {fd}")
            if fcntl.fcntl(own, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                raise StoreError(
                    errno.EACCES, f"descriptor {fd} is not open for reading and writing"
                )
            files.check_tmpfs(own, f"descriptor {fd}")
        except BaseException:
            os.close(own)
            raise
        return cls(own, None, None)

    @property
    def path(self) -> str | None:
        """The named store's file; None for a store without a name."""
        if self.name is None or self.directory is None:
            return None
        return files.store_path(self.name, self.directory)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return not self._finalizer.alive

    def fileno(self) -> int:
        """The descriptor, for a Unix socket to send; it stays the Store's."""
        if self.closed:
            raise StoreError(errno.EBADF, f"{self} is closed")
        if not files.is_own(self._fd, self._identity):
            raise StoreError(errno.EBADF, f"the program has closed the descriptor of {self}")
        return self._fd

    def processes(self) -> list[StoreProcess]:
        """The processes that use the store, as it knows them."""
        try:
            found = native.store_processes(self.fileno())
        except OSError as error:
            raise self.refusal(error) from None
        return [StoreProcess(pid, inherited != 0, pages) for pid, inherited, pages in found]

    def stats(self) -> StoreStats:
        """The counters of the whole store, of all processes together."""
        try:
            return StoreStats.from_native(native.store_stats(self.fileno()))
        except OSError as error:
            raise self.refusal(error) from None

    def unlink(self, *, unused_only: bool = False) -> bool:
        """Remove the name: who uses the store goes on, who opens the name gets a new store.

        `unused_only`: only if no process uses it, and nobody can from then on. Returns False when
        that is refused, else True; a name that is gone, or another store's by now, is no error.
        """
        fd = self.fileno()
        try:
            if unused_only and not native.store_retire(fd):
                return False
        except OSError as error:
            raise self.refusal(error) from None
        self.remove_name()
        return True

    def close(self) -> None:
        """Let go of the store. No-op on a closed one."""
        self._finalizer()

    # ---- for the engine -----------------------------------------------------------------

    def duplicate(self) -> Store:
        """Another handle of the same store."""
        return Store(files.dup_above_standard(self.fileno()), self.name, self.directory)

    def remove_name(self) -> None:
        """Remove the file's name, if it still is this store's."""
        if self.path is not None:
            files.remove_file(self.path, self._identity)

    def refusal(self, error: OSError) -> StoreError:
        """What the native engine's error means for this store, and the way out."""
        if isinstance(error, StoreError):
            return error
        text = _REFUSALS.get(error.errno or 0, f"cannot be used: {error.strerror}")
        if error.errno == errno.ETIMEDOUT:
            text = text.format(self._holder())
        return StoreError(error.errno, f"{self} {text}")

    def _holder(self) -> str:
        pid = 0 if self.closed else native.store_holder(self._fd)
        return f"process {pid}; see whether it" if pid else "a process; see whether one of its own"

    def held(self, knob: int) -> KnobError | None:
        """The error for a knob of the whole store, with the processes that stand in its way.

        None when there is none that could be named: it let go meanwhile, or the store is locked.
        """
        name = next(name for name, number in native.KNOB_NUMBERS.items() if number == knob)
        try:
            # A forked child that has not used its engine yet holds frames but counts no pages.
            pids = [str(p) for p in self.processes() if p.merging_pages or p.inherited]
        except StoreError:
            pids = []
        if not pids:
            return None
        return KnobError(errno.EBUSY, f"{name}: frames are held by processes {', '.join(pids)}")

    # ---- inside -------------------------------------------------------------------------

    def __enter__(self) -> Store:
        self.fileno()
        return self

    def _leave(self) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, Store) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    def __str__(self) -> str:
        return f"the store {self.name!r}" if self.name is not None else "the anonymous store"

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Store {self.path or 'without a name'}{state}>"

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        """A named store by its name; of another a descriptor, to a process of multiprocessing."""
        fd = self.fileno()
        if self.name is not None:
            return _open_again, (self.name, self.directory)
        from multiprocessing import reduction

        return _from_sent, (reduction.DupFd(fd),)


MORE_ROOM = (
    "free some of its file system, or mount it larger (mount -o remount,size=..., docker run"
    " --shm-size=...)"
)

_REFUSALS = {
    errno.EUCLEAN: (
        "is damaged: its header or its index does not fit; let its processes end,"
        " and remove it with Store.unlink()"
    ),
    errno.EPROTO: (
        "was made with another layout, checksum, page size or C library (glibc, musl), or is no"
        " store of ksmpy; use another name, or remove it with Store.unlink()"
    ),
    errno.EUSERS: "is used by 1000 processes, which is all that it takes; use a second one",
    errno.ENOSPC: (
        "has no room left: its file system is full; free some of it, or mount it larger"
        " (in a container: docker run --shm-size)"
    ),
    errno.EXDEV: (
        "is in use with another number of NUMA nodes; give the engines the same topology,"
        " or use another store"
    ),
    errno.EREMOTE: (
        "is in use in another pid namespace, by which its lock tells who holds it; share that, too"
        " (docker run --pid=container:FIRST, shareProcessNamespace), or use another store"
    ),
    errno.ETIMEDOUT: (
        "is locked for more than 5 seconds by {} is stopped, by a signal, a debugger or a freezer"
        " (ksmpy stats --store lists them)"
    ),
    errno.ESTALE: "was removed while nobody used it; open it again by its name",
}


def attach(store: str | Store | None, make: Callable[[int], _Made]) -> tuple[_Made, Store | None]:
    """Call `make` with a store's descriptor, -1 for a private store.

    Returns what it made, and a handle of the store that is the caller's to close. Raises
    StoreError for an OSError of `make`, TypeError for what is no store.
    """
    if store is None:
        return make(-1), None
    if isinstance(store, Store):
        return _attached(store.duplicate(), make)
    if not isinstance(store, str):
        raise TypeError(f"store must be None, a name or a Store, not {type(store).__name__}")
    for _ in range(_ATTEMPTS):
        handle = Store.open(store)
        try:
            return _attached(handle, make)
        except StoreError as error:
            if error.errno != errno.ESTALE:
                raise
            # The process that retired the store may have died before it removed the name.
            handle.remove_name()
    return _attached(Store.open(store), make)


def _attached(handle: Store, make: Callable[[int], _Made]) -> tuple[_Made, Store]:
    try:
        return make(handle.fileno()), handle
    except OSError as error:
        refusal = handle.refusal(error)
        handle.close()
        raise refusal from None
    except BaseException:
        handle.close()
        raise


def _open_again(name: str, directory: str) -> Store:
    return Store.open(name, directory=directory)


def _from_sent(sent: Any) -> Store:
    fd = sent.detach()
    # The descriptor came through an exec; programs that this process starts do not need it.
    os.set_inheritable(fd, False)
    return Store(fd, None, None)
