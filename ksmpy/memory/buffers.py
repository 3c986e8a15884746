"""From an object to memory: where its bytes are, which whole pages they fill, who owns them."""

from __future__ import annotations

import array
import ctypes
import functools
import mmap
import pickle
import sys
import weakref
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ksmpy.errors import RegionError
from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Buffer", "can_move", "class_of", "home", "is_a", "is_ndarray", "locate", "owns_bytes"]

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
    """Nothing else can reach the owner's own memory once it is dead. Whether these bytes are in it,
    lies_in() tells: some objects keep memory for others that is not their own.
    """

    @property
    def pages(self) -> tuple[int, int]:
        """Start and end address of the whole pages inside; empty when end <= start."""
        start = -(-self.address // PAGE_SIZE) * PAGE_SIZE
        return start, (self.address + self.nbytes) // PAGE_SIZE * PAGE_SIZE

    def lies_in(self, home: tuple[int, int] | None) -> bool:
        """Whether all of it is in that memory, (address, bytes)."""
        if home is None:
            return False
        first, nbytes = home
        return first <= self.address and self.address + self.nbytes <= first + nbytes


def class_of(module: str, name: str) -> type | None:
    """A class of a module that is there; None where it is not, or not yet, as another thread is
    still importing it: then there is no object of it. What stands in for a module is not asked: one
    that would be imported by that (importlib.util.LazyLoader), a test's mock.
    """
    found = sys.modules.get(module)
    if not isinstance(found, ModuleType):
        return None
    kind = ModuleType.__getattribute__(found, "__dict__").get(name)
    return kind if isinstance(kind, type) else None


def is_a(obj: object, module: str, name: str) -> bool:
    """Whether it is of that class, without importing the module for the question."""
    kind = class_of(module, name)
    return kind is not None and issubclass(type(obj), kind)


def is_ndarray(obj: object) -> bool:
    """Whether it is a numpy array."""
    return is_a(obj, "numpy", "ndarray")


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
        watched = _clears_weakrefs_first()
        # One that is held is given back before it dies, and then a class's __del__ may read it.
        owned = owns_bytes(owner) and (watched or not type(owner).__flags__ & _HEAPTYPE)
        return Buffer(address, nbytes, owner, None, watched, owned)
    if type(owner) in _KNOWN:
        # The export keeps the mmap from being resized: mremap() would make a merged mapping longer,
        # by frames that follow in the store.
        export = _export(owner) if type(owner) is mmap.mmap else None
        return Buffer(address, nbytes, owner, export, owned=True)
    return Buffer(address, nbytes, owner, None if _is_ctypes(owner) else _export(owner))


_KNOWN = (bytes, bytearray, array.array, mmap.mmap)


def _is_ctypes(obj: object) -> bool:
    return issubclass(type(obj), ctypes.c_int.__mro__[-2])


def _storage(obj: Any) -> Any:
    """The storage of a torch tensor, which the memory belongs to; anything else as it is."""
    if not is_a(obj, "torch", "Tensor"):
        return obj
    try:
        return obj.untyped_storage()
    except (AttributeError, NotImplementedError, RuntimeError):  # a tensor without a storage
        return obj


def is_storage(obj: object) -> bool:
    """Whether it is a torch storage. torch keeps one Python object for each, which dies with it."""
    return is_a(obj, "torch", "UntypedStorage")


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


def owns_bytes(arr: np.ndarray[Any, Any]) -> bool:
    """Whether nobody needs a numpy array's bytes once it is dead. It frees them itself, copies them
    to no other array at its end (WRITEBACKIFCOPY: the other one is its base), and does not find
    objects by them, to which it then gives up its references.
    """
    return bool(arr.flags.owndata) and arr.base is None and not arr.dtype.hasobject


def can_move(owner: Any) -> bool:
    """Whether the owner's memory may become other memory without a word, and home() tells."""
    return is_storage(owner) or _is_ctypes(owner) or type(owner) in (bytearray, array.array)


def ultimate_owner(obj: Any) -> Any:
    """Follow views to the object that the memory belongs to. An array with memory of its own may
    have a base all the same, the array to which its bytes are to be copied in the end.
    """
    while True:
        if is_ndarray(obj):
            parent = None if obj.flags.owndata else obj.base
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
    """Whether a dying array tells its weak references before it frees its data, and so one of a
    class that is derived from it in Python.

    numpy 2.5 turned that around, so that a callback comes too late. An array of objects shows
    the order: freeing its data drops the objects.
    """
    import numpy as np

    class Item:
        pass

    order: list[str] = []
    arr = np.empty(1, object)
    arr[0] = Item()
    # The weak references are kept in a variable: one that is gone itself calls nobody.
    watchers = (
        weakref.ref(arr, lambda _: order.append("array")),
        weakref.ref(arr[0], lambda _: order.append("data")),
    )
    del arr
    return len(watchers) == 2 and order == ["array", "data"]


def _array_bytes(arr: np.ndarray[Any, Any]) -> tuple[int, int]:
    # The array's own fields are read, since the buffer protocol refuses datetime64.
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
