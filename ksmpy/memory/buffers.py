"""From an object to memory: where its bytes are, which whole pages they fill, who owns them.

The owner decides how long a region lives. Where a weak reference's callback tells of its end in
time, it does: numpy's arrays up to numpy 2.4, torch's storages. Other owners are held, and count as
abandoned once ours are the only references.

An owner may also give its memory up, or change it, and live on: torch's storages are resized and
moved to shared memory, a bytearray grows, ctypes.resize() moves what it is given. So owners are
asked from time to time where their memory is, and at the end whether it is still the same. Only
then may its bytes be thrown away: it could be anybody's by now.
"""

from __future__ import annotations

import array
import ctypes
import functools
import mmap
import pickle
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ksmpy import native
from ksmpy.errors import RegionError
from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Buffer", "Held", "Lifetime", "Unowned", "Watched", "lifetime", "locate"]

_HAVE_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC
_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


@dataclass(frozen=True, slots=True)
class Buffer:
    """Contiguous bytes of some object."""

    address: int
    nbytes: int
    owner: Any = field(repr=False)
    """The object whose death ends the memory."""
    export: memoryview | None = field(repr=False)
    """Keeps memory that hangs on an export rather than on its owner, and mmap from resizing."""
    watched: bool = False
    """The owner's death can be told by a weak reference, and is the memory's end."""
    owned: bool = False
    """Nothing else can reach the memory once the owner is dead."""

    @property
    def pages(self) -> tuple[int, int]:
        """Start and end address of the whole pages inside; empty when end <= start."""
        start = -(-self.address // PAGE_SIZE) * PAGE_SIZE
        return start, (self.address + self.nbytes) // PAGE_SIZE * PAGE_SIZE


def is_ndarray(obj: object) -> bool:
    """Whether it is a numpy array, without importing numpy for the question."""
    # While another thread imports numpy it has no such class yet, and so there are no arrays.
    return issubclass(type(obj), getattr(sys.modules.get("numpy"), "ndarray", ()))


def locate(obj: Any) -> Buffer:
    """Where the bytes of `obj` are and who owns them.

    Raises TypeError when it has no buffer, RegionError when its bytes are not contiguous.
    """
    if is_ndarray(obj):
        address, nbytes = _array_bytes(obj)
    else:
        address, nbytes = _exported_bytes(obj)
    owner = _storage(ultimate_owner(obj))
    if is_storage(owner):
        return Buffer(address, nbytes, owner, None, watched=True)
    if is_ndarray(owner):
        # Classes made in Python clear their weak references themselves, and first of all.
        watched = _clears_weakrefs_first() or bool(type(owner).__flags__ & _HEAPTYPE)
        return Buffer(address, nbytes, owner, None, watched, owner.flags.owndata)
    if type(owner) in _KNOWN:
        # mremap() would let a merged mapping grow by what follows in the store.
        export = _export(owner) if type(owner) is mmap.mmap else None
        return Buffer(address, nbytes, owner, export, owned=True)
    return Buffer(address, nbytes, owner, None if _is_ctypes(owner) else _export(owner))


_KNOWN = (bytes, bytearray, array.array, mmap.mmap)


def _is_ctypes(obj: object) -> bool:
    return issubclass(type(obj), ctypes.c_int.__mro__[-2])


def _storage(obj: Any) -> Any:
    """The storage of a torch tensor, which the memory belongs to; anything else as it is."""
    torch = sys.modules.get("torch")
    if not issubclass(type(obj), getattr(torch, "Tensor", ())):
        return obj
    try:
        return obj.untyped_storage()
    except (AttributeError, NotImplementedError, RuntimeError):  # it has none
        return obj


def is_storage(obj: object) -> bool:
    """Whether it is a torch storage. torch keeps one Python object for each, which dies with it."""
    return issubclass(type(obj), getattr(sys.modules.get("torch"), "UntypedStorage", ()))


def home(owner: Any) -> tuple[int, int] | None:
    """(address, bytes) of all of the owner's memory; None when it has none, or nobody can tell."""
    try:
        if is_storage(owner):
            return int(owner.data_ptr()), int(owner.nbytes())
        if is_ndarray(owner):
            return int(owner.__array_interface__["data"][0]), int(owner.nbytes)
        if _is_ctypes(owner):
            return ctypes.addressof(owner), ctypes.sizeof(owner)
        return _exported_bytes(owner)
    except (TypeError, ValueError, RuntimeError, BufferError):
        return None


def _can_move(owner: Any) -> bool:
    """Whether the owner's memory may become other memory without a word, and home() tells."""
    return is_storage(owner) or _is_ctypes(owner) or type(owner) in (bytearray, array.array)


def ultimate_owner(obj: Any) -> Any:
    """Follow views to the object that the memory belongs to."""
    while True:
        if is_ndarray(obj):
            parent = obj.base
        elif isinstance(obj, pickle.PickleBuffer):
            parent = memoryview(obj)
        elif isinstance(obj, memoryview):
            parent = obj.obj
        else:
            return obj
        if parent is None:
            return obj
        obj = parent


@functools.cache
def _clears_weakrefs_first() -> bool:
    """Whether a dying array tells its weak references before it frees its data.

    numpy 2.5 turned that around, so that a callback comes too late. An array of objects shows
    the order: freeing its data drops the objects.
    """
    import numpy as np

    class Item:
        pass

    order: list[str] = []
    arr = np.empty(1, object)
    arr[0] = Item()
    # Both must be kept: a weak reference that is gone calls nobody.
    watchers = (
        weakref.ref(arr, lambda _: order.append("array")),
        weakref.ref(arr[0], lambda _: order.append("data")),
    )
    del arr
    return len(watchers) == 2 and order == ["array", "data"]


def _array_bytes(arr: np.ndarray[Any, Any]) -> tuple[int, int]:
    # Not by the buffer protocol, which does not know datetime64 and refuses it.
    if not (arr.flags.c_contiguous or arr.flags.f_contiguous):
        raise RegionError(_NOT_CONTIGUOUS)
    return int(arr.__array_interface__["data"][0]), int(arr.nbytes)


_NOT_CONTIGUOUS = "the buffer is not contiguous: make it so with numpy.ascontiguousarray"


class _PyBuffer(ctypes.Structure):
    """Py_buffer, whose layout is part of the stable ABI."""

    _fields_ = [  # noqa: RUF012
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_ANY_CONTIGUOUS = 0x0080 | 0x0010 | 0x0008  # PyBUF_ANY_CONTIGUOUS


def _exported_bytes(obj: Any) -> tuple[int, int]:
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(
            f"{type(obj).__name__} has no buffer; Engine.track() finds the buffers inside objects"
        ) from None
    except ValueError as error:
        raise RegionError(str(error)) from None
    if not view.contiguous:
        raise RegionError(_NOT_CONTIGUOUS)
    raw = _PyBuffer()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(raw), _ANY_CONTIGUOUS)
    try:
        return int(raw.buf or 0), int(raw.len)
    finally:
        api.PyBuffer_Release(ctypes.byref(raw))


def _export(owner: Any) -> memoryview | None:
    try:
        return memoryview(owner)
    except (TypeError, ValueError, BufferError):
        return None


class Lifetime(Protocol):
    """How long a region's memory lives, and what to do with its bytes when it ends."""

    @property
    def discard(self) -> bool:
        """The owner is at its end, the memory is still its own, and nobody else can see it: its
        bytes need not be kept.
        """

    @property
    def can_move(self) -> bool:
        """Whether moved() may ever be true."""

    def moved(self) -> bool:
        """Whether the owner lives on, with other memory."""

    def watch(self, ended: Callable[[], None]) -> None:
        """Call `ended` just before the owner's memory goes, if the owner tells by itself."""

    def abandoned(self) -> bool:
        """Whether nobody but us holds the owner any more."""

    def drop(self) -> None:
        """Let go of the owner."""


class Unowned:
    """Memory known by its address only, and by nobody's death. Also what an owner has left that
    could not be given back at once: `over`.
    """

    __slots__ = ("adopted", "over")

    discard = False
    can_move = False

    def __init__(self, *, adopted: bool = False, over: bool = False) -> None:
        self.adopted = adopted
        self.over = over

    def moved(self) -> bool:
        """Never: there is nobody to ask."""
        return False

    def watch(self, ended: Callable[[], None]) -> None:
        """Nothing tells."""

    def abandoned(self) -> bool:
        """Whether it is over."""
        return self.over

    def drop(self) -> None:
        """Nothing is held."""


class Watched:
    """An owner that is watched by a weak reference.

    When an object of a class that takes part in garbage collection dies in a cycle, its weak
    references are told before the finalizers of that cycle run. These may still read the memory,
    so it must keep its bytes then. An object whose last reference went is past its finalizer.
    """

    __slots__ = ("_array", "_collectable", "_home", "_kept", "_owner", "_ref", "can_move")

    def __init__(self, owner: Any, *, discard: bool, kept: object = None) -> None:
        self._collectable = bool(type(owner).__flags__ & _HAVE_GC)
        self.can_move = _can_move(owner) and kept is None
        self._home = home(owner) if self.can_move else None
        self._array = _Array.of(owner) if discard and is_ndarray(owner) else None
        self._owner: Any = owner
        self._kept = kept
        self._ref: weakref.ref[Any] | None = None

    @property
    def discard(self) -> bool:
        """Not when the collector of this very thread may have found the owner, nor when its
        memory is not what it was; which only an array can tell that is dying.
        """
        if self._array is None or (self._collectable and native.collecting()):
            return False
        return self._array.unchanged()

    def moved(self) -> bool:
        """Ask the owner."""
        owner = self._ref() if self.can_move and self._ref is not None else None
        return owner is not None and home(owner) != self._home

    def watch(self, ended: Callable[[], None]) -> None:
        """Call `ended` when the owner is about to be freed."""
        self._ref = weakref.ref(self._owner, lambda _: ended())
        self._owner = None

    def abandoned(self) -> bool:
        """Never: the callback tells."""
        return False

    def drop(self) -> None:
        """Stop watching."""
        self._ref = self._owner = self._kept = None


@dataclass(frozen=True, slots=True)
class _Array:
    """What a numpy array says of its memory, read where it cannot be asked: it is dying, but its
    weak references are told before the object itself goes.
    """

    place: int
    data: int

    # Of struct PyArrayObject_fields, part of numpy's binary interface since its version 1.7.
    _DATA = 16
    _FLAGS = 64
    _OWNS_DATA = 4

    @classmethod
    def of(cls, arr: Any) -> _Array | None:
        """None where the structure is another one (a debug build of Python)."""
        known = cls(id(arr), int(arr.__array_interface__["data"][0]))
        return known if known.unchanged() else None

    def unchanged(self) -> bool:
        """Whether it still owns the memory that it had."""
        data = ctypes.c_void_p.from_address(self.place + self._DATA).value
        flags = ctypes.c_int.from_address(self.place + self._FLAGS).value
        return data == self.data and bool(flags & self._OWNS_DATA)


class Held:
    """An owner that is kept until nobody else holds it."""

    __slots__ = ("_alone", "_discard", "_export", "_home", "_owner", "_pin", "can_move")

    def __init__(self, owner: Any, export: memoryview | None, *, discard: bool) -> None:
        self._discard = discard
        self.can_move = _can_move(owner)
        self._home = home(owner) if discard or self.can_move else None
        self._owner: Any = owner
        self._export = export
        # An array with a weak reference to it cannot be resized. One with a callback is not
        # shared with anybody, and so tells ours from the user's.
        self._pin = weakref.ref(owner, _ignore) if is_ndarray(owner) else None
        self._alone = _ALONE[export is not None]

    @property
    def discard(self) -> bool:
        """Not while somebody could get the owner back by a weak reference."""
        lonely = weakref.getweakrefcount(self._owner) == (self._pin is not None)
        own = self._pin is None or self._owner.flags.owndata
        return self._discard and lonely and own and home(self._owner) == self._home

    def moved(self) -> bool:
        """Ask the owner."""
        return self.can_move and self._owner is not None and home(self._owner) != self._home

    def watch(self, ended: Callable[[], None]) -> None:
        """Nothing tells: abandoned() must be asked."""

    def references(self) -> int:
        """How many references the owner has, the ones of this call included."""
        return sys.getrefcount(self._owner)

    def abandoned(self) -> bool:
        """Whether only our own references are left."""
        return self._owner is not None and self.references() <= self._alone

    def drop(self) -> None:
        """Give the owner up."""
        export, self._export, self._owner, self._pin = self._export, None, None, None
        if export is not None:
            export.release()


def _ignore(_: object) -> None:
    """The callback of a weak reference that is there for its own sake."""


# How many references count as "only ours", without and with an export: measured, because it
# differs between Python versions.
_ALONE: dict[bool, int] = {False: 0, True: 0}


def _measure_alone() -> None:
    def without() -> Held:
        return Held(bytearray(1), None, discard=True)

    def with_export() -> Held:
        owner = bytearray(1)
        return Held(owner, memoryview(owner), discard=True)

    _ALONE[False] = without().references()
    held = with_export()
    _ALONE[True] = held.references()
    held.drop()


_measure_alone()


def lifetime(buffer: Buffer, anchor: object = None) -> Lifetime:
    """The lifetime of a buffer; with an `anchor`, the region ends when that object dies."""
    if anchor is not None:
        return Watched(anchor, discard=False, kept=(buffer.owner, buffer.export))
    if buffer.watched:
        return Watched(buffer.owner, discard=buffer.owned)
    return Held(buffer.owner, buffer.export, discard=buffer.owned)
