"""The files behind named stores: their names, their directory, and who may use them.

What is not this user's alone, or not on tmpfs, is refused and left as it is. Everything is opened
first and looked at then, through its descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from ksmpy.errors import StoreError

__all__ = [
    "check_regular",
    "check_tmpfs",
    "close_own",
    "is_own",
    "is_shared_store",
    "is_store",
    "look",
    "make_memfd",
    "names",
    "open_file",
    "remove_file",
    "store_directory",
    "store_path",
]

SUFFIX = ".ksmpy"
# The longest name of a store: with the suffix it stays below the 255 bytes of file systems.
NAME_BYTES = 200
MEMFD_NAME = "ksmpy-store"

# As /proc names them.
_PRIVATE = "/memfd:ksmpy"
_ANONYMOUS = f"/memfd:{MEMFD_NAME}"

_TMPFS_MAGIC = 0x01021994
_MFD_NOEXEC_SEAL = 8  # Linux 6.3; where vm.memfd_noexec is 2 there is no memfd without it


def is_store(path: str) -> bool:
    """Whether a file, as /proc names it, is a store: a mapping of it is a merged page or a run."""
    return path.startswith(_PRIVATE) or is_shared_store(path)


def is_shared_store(path: str) -> bool:
    """Whether it is a store that other processes may use too."""
    return path.removesuffix(" (deleted)").endswith(SUFFIX) or path.startswith(_ANONYMOUS)


def store_directory(directory: str | os.PathLike[str] | None = None) -> str:
    """Where named stores lie: `directory`, KSMPY_STORE_DIR, or the user's own in /dev/shm."""
    chosen = directory or os.environ.get("KSMPY_STORE_DIR") or f"/dev/shm/ksmpy-{os.geteuid()}"
    # abspath() takes a slash off the end: with one the kernel would follow a link there.
    return os.path.abspath(chosen)


def store_path(name: str, directory: str | os.PathLike[str] | None = None) -> str:
    """The file of a named store. StoreError (EINVAL) for a name that cannot be."""
    return os.path.join(store_directory(directory), _file_name(name))


def _file_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a store's name must be a str, not {type(name).__name__}")
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise StoreError(errno.EINVAL, f"{name!r} names no store: it cannot be encoded") from None
    if not 1 <= size <= NAME_BYTES:
        why = f"it has {size} bytes, not 1 to {NAME_BYTES}"
    elif name.startswith("."):
        why = "it begins with '.'"
    elif "/" in name or "\0" in name:
        why = "it holds '/' or a NUL"
    else:
        return name + SUFFIX
    raise StoreError(errno.EINVAL, f"{name!r} names no store: {why}")


def open_file(name: str, directory: str, *, create: bool) -> int:
    """A descriptor of a named store's file, which is this user's alone and on tmpfs.

    Raises StoreError; with `create` the directory is made too.
    """
    path = store_path(name, directory)
    what = f"the store {name!r} ({path})"
    try:
        folder = _open_directory(directory, create)
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
            fd = _open(os.path.basename(path), flags, what, folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise StoreError(errno.ENOENT, f"there is no store {name!r} in {directory}") from None
    try:
        status = os.fstat(fd)
        check_regular(status, what)
        _check_owner(status, what, f"chmod 600 {path}")
        check_tmpfs(fd, what)
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_file(path: str, identity: tuple[int, int]) -> None:
    """Remove a name, if it still is that of the file with this device and inode number."""
    import fcntl

    try:
        folder = os.open(os.path.dirname(path), os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # Everybody who removes a name locks the directory first, so the file that is looked at is
        # the one that is removed.
        fcntl.flock(folder, fcntl.LOCK_EX)
        file = os.path.basename(path)
        status = os.stat(file, dir_fd=folder, follow_symlinks=False)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(file, dir_fd=folder)
    except FileNotFoundError:
        pass
    finally:
        # close() alone would not unlock it if a child was forked meanwhile, which has the
        # descriptor too.
        fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


def look() -> tuple[str, int]:
    """The stores' directory, and how many bytes are free there; makes nothing.

    Raises StoreError where no store could be opened.
    """
    directory = store_directory()
    try:
        folder = _open_directory(directory, create=False)
    except FileNotFoundError:
        folder = _open_parent(directory)
    try:
        free = os.fstatvfs(folder)
        return directory, free.f_bavail * free.f_frsize
    finally:
        os.close(folder)


def names() -> list[str]:
    """What the files in the stores' directory are called as stores, sorted; makes nothing.

    Raises StoreError for a directory that is not safe to use.
    """
    try:
        folder = _open_directory(store_directory(), create=False)
    except FileNotFoundError:
        return []
    try:
        stems = (file.removesuffix(SUFFIX) for file in os.listdir(folder) if file.endswith(SUFFIX))
        return sorted(stem for stem in stems if stem and not stem.startswith("."))
    finally:
        os.close(folder)


def is_own(fd: int, identity: tuple[int, int]) -> bool:
    """Whether it still is the file of that device and inode.

    The program may have closed it, and opened a file of its own that has its number.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == identity


def close_own(fd: int, identity: tuple[int, int]) -> None:
    """Close it, unless it is another file by now."""
    if is_own(fd, identity):
        os.close(fd)


def make_memfd(name: str = MEMFD_NAME) -> int:
    """A descriptor of a new file that is in memory only; its name is for /proc to show."""
    flags = os.MFD_CLOEXEC
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    return fd if fd > 2 else dup_above_standard(fd, closing=True)


def dup_above_standard(fd: int, *, closing: bool = False) -> int:
    """A second descriptor above those of the standard files; `closing` closes the first."""
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        if closing:
            os.close(fd)


def _open_directory(path: str, create: bool) -> int:
    """A descriptor of the stores' directory. FileNotFoundError only if it need not be made."""
    what = f"the directory of the stores, {path},"
    if create and not os.path.lexists(path):
        _make_directory(path)
    fd = _open(path, os.O_DIRECTORY | os.O_NOFOLLOW, what)
    try:
        _check_owner(os.fstat(fd), what, f"chmod 700 {path}")
        check_tmpfs(fd, what)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_parent(path: str) -> int:
    """A descriptor of the directory on tmpfs in which the stores' one can be made."""
    above = os.path.dirname(path)
    what = f"{above}, where the directory of the stores belongs,"
    try:
        parent = _open(above, os.O_DIRECTORY, what)  # /dev/shm itself may be a link
    except FileNotFoundError:
        raise StoreError(errno.ENOENT, f"{what} does not exist") from None
    try:
        check_tmpfs(parent, what)
        if not os.access(above, os.W_OK):
            raise StoreError(errno.EACCES, f"{what} may not be written to")
    except BaseException:
        os.close(parent)
        raise
    return parent


def _make_directory(path: str) -> None:
    parent = _open_parent(path)
    try:
        os.mkdir(os.path.basename(path), 0o700, dir_fd=parent)
    except FileExistsError:
        pass  # another process has made it meanwhile
    except OSError as error:
        raise _unusable(error, f"the directory of the stores, {path},") from None
    finally:
        os.close(parent)


def _open(path: str, flags: int, what: str, folder: int | None = None) -> int:
    """As os.open(), with a StoreError for everything but FileNotFoundError."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        if flags & os.O_NOFOLLOW and _is_link(path, folder):
            raise StoreError(errno.ELOOP, f"{what} is a symbolic link") from None
        raise _unusable(error, what) from None


def _is_link(path: str, folder: int | None) -> bool:
    """For the kernel it is ENOTDIR where a directory is asked for."""
    try:
        return stat.S_ISLNK(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _unusable(error: OSError, what: str) -> StoreError:
    return StoreError(error.errno, f"{what} cannot be used: {error.strerror}")


def check_regular(status: os.stat_result, what: str) -> None:
    """StoreError (EINVAL) for what is no file with bytes in it."""
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(errno.EINVAL, f"{what} is not a regular file")


def _check_owner(status: os.stat_result, what: str, remedy: str) -> None:
    if status.st_uid != os.geteuid():
        raise StoreError(
            errno.EPERM, f"{what} belongs to user {status.st_uid}, not to {os.geteuid()}"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StoreError(errno.EPERM, f"{what} is open to other users: {remedy}")


def check_tmpfs(fd: int, what: str) -> None:
    """StoreError (EOPNOTSUPP) for what does not lie in memory."""
    if _file_system(fd) != _TMPFS_MAGIC:
        raise StoreError(
            errno.EOPNOTSUPP,
            f"{what} is not on tmpfs; set KSMPY_STORE_DIR to a directory that is, as in /dev/shm",
        )


def _file_system(fd: int) -> int:
    """The magic number of the file system that a file lies on: statfs(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 64)()  # struct statfs has 120 bytes and begins with f_type
    if libc.fstatfs(fd, buffer) != 0:
        raise OSError(ctypes.get_errno(), "fstatfs: " + os.strerror(ctypes.get_errno()))
    return buffer[0]
