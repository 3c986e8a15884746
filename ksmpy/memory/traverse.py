"""Finding every buffer that is reachable from an object.

The traversal follows references: what is in a container, the attributes and slots of an object, and
whatever else the garbage collector would follow. No method of an object is called, so nothing is
copied, serialised or computed. Where a reference leads into memory of a library's own (a pointer,
a type made in C that shows nothing), the holder is reported.
"""

from __future__ import annotations

import array
import ctypes
import functools
import gc
import io
import mmap
import pickle
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from ksmpy.errors import RegionError
from ksmpy.memory.buffers import Buffer, is_ndarray, locate

__all__ = ["Found", "find_buffers", "merge_ranges"]

_ENDS = (
    type,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
)
#: Like _ENDS, but by name, so that their modules need not be imported: these lead to all of the
#: program.
_GLOBAL = frozenset({("logging", "Logger"), ("logging", "RootLogger"), ("logging", "Manager")})
_ATOMS: frozenset[type] = frozenset(
    {int, float, complex, str, bool, type(None), types.EllipsisType}
)
# How many objects get a name, and how many letters it may have: enough for the arrays of a model.
# An index of a million small objects is not named, nor what lies deeper than anybody would read.
_MAX_NAMED = 50_000
_MAX_PATH = 300
_PLAIN: frozenset[type] = frozenset({list, tuple, dict, set, frozenset, types.CellType})
_BUFFERS = (
    bytes,
    bytearray,
    memoryview,
    mmap.mmap,
    array.array,
    pickle.PickleBuffer,
    ctypes.Array,
    ctypes.Structure,
)
_KEYS = (str, int, float, bytes)
# Libraries whose types in C are known to have no hidden memory worth a report: they are small, or
# refer to their memory by Python objects.
_LIBRARIES = frozenset({"numpy", "pandas", "pyarrow", "torch"})
_OPEN = frozenset(sys.stdlib_module_names) | _LIBRARIES | {"builtins"}
_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


@dataclass(frozen=True, slots=True)
class Found:
    """A buffer, a name for it, and the object whose death ends it (None: its own owner)."""

    buffer: Buffer
    name: str
    anchor: object = None


class _Step(NamedTuple):
    """An object to look at, the path to it as Python writes it (None: unknown), its holder's type
    and name.
    """

    obj: Any
    path: str | None
    holder: tuple[type, str] | None

    @property
    def name(self) -> str:
        """The path, or the type where there is none."""
        return self.path or type(self.obj).__name__


class _Traversal:
    """Goes breadth first, so that of several paths the shortest gives the name."""

    def __init__(self, min_bytes: int) -> None:
        self.found: list[Found] = []
        self.refused: list[tuple[str, str]] = []
        self._min_bytes = min_bytes
        self._seen: set[int] = set()
        self._named = 0
        self._todo: deque[_Step] = deque()
        self._made: list[object] = []  # kept, so that no other object gets its id
        self._hidden: dict[str, list[str]] = {}
        # This cache lives no longer than the traversal, since types may come and go.
        self._descriptors: Callable[[type], list[tuple[str, Any]]] = functools.cache(_descriptors)
        self._is_closed: Callable[[type], bool] = functools.cache(_is_closed)
        self._how: dict[type, Callable[[_Traversal, _Step], None]] = {}

    def traverse(self, objs: tuple[object, ...]) -> None:
        """Look through all of them."""
        for i, obj in enumerate(objs):
            self._push(obj, f"[{i}]" if len(objs) > 1 else "", None)
        while self._todo:
            step = self._todo.popleft()
            try:
                self._visit(step)
            except Exception as error:
                reason = f"was looked through in part only: {type(error).__name__}: {error}"
                self.refused.append((step.name, reason))
        for kind, names in self._hidden.items():
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            reason = f"{kind} keeps its memory where Python cannot see it{more}"
            self.refused.append((names[0], f"{reason}: enable() finds memory by mapping"))

    def _push(self, obj: Any, path: str | None, holder: tuple[type, str] | None) -> None:
        if type(obj) in _ATOMS or id(obj) in self._seen:
            return
        self._seen.add(id(obj))
        if path is not None and self._named < _MAX_NAMED and len(path) < _MAX_PATH:
            self._named += 1
        else:
            path = None
        self._todo.append(_Step(obj, path, holder))

    def _push_part(self, part: Any, path: str | None, step: _Step) -> None:
        self._push(part, path, (type(step.obj), step.name))

    def _visit(self, step: _Step) -> None:
        kind = type(step.obj)
        how = self._how.get(kind)
        if how is None:
            how = self._how[kind] = _how(step.obj)
        how(self, step)

    def adapted(self, step: _Step) -> None:
        """An object whose library shows its buffers."""
        for found in _adapt(step.obj) or ():
            self._add(replace(found, name=step.path or found.name))

    def exporter(self, step: _Step) -> None:
        """An object that is a buffer, perhaps with attributes."""
        self._take(step)
        if type(step.obj) not in _BUFFERS:
            self._attributes(step)

    def end(self, step: _Step) -> None:
        """An object that leads to all of the program."""

    def parts(self, step: _Step) -> None:
        """Any other object: what it refers to."""
        parts = gc.get_referents(step.obj)
        closed = self._is_closed(type(step.obj)) and all(isinstance(part, type) for part in parts)
        if _is_handle(step.obj) or (closed and not self._exported(step)):
            self._hide(step)
        if step.path is not None:
            self._items(step)
            self._attributes(step)
        for part in parts:
            self._push_part(part, None, step)

    def plain(self, step: _Step) -> None:
        """A container of Python's own."""
        if step.path is not None:
            self._items(step)
        for part in gc.get_referents(step.obj):
            if type(part) not in _ATOMS:
                self._push_part(part, None, step)

    def _items(self, step: _Step) -> None:
        obj, path = step.obj, step.path
        if issubclass(type(obj), dict):
            for key, value in list(islice(dict.items(obj), _MAX_NAMED)):
                if type(value) in _ATOMS:
                    continue
                known = type(key) in _KEYS
                self._push_part(value, f"{path}[{key!r}]" if known else None, step)
        elif type(obj) is list or type(obj) is tuple:
            for i, value in enumerate(obj[:_MAX_NAMED]):
                if type(value) not in _ATOMS:
                    self._push_part(value, f"{path}[{i}]", step)

    def _attributes(self, step: _Step) -> None:
        for name, descriptor in self._descriptors(type(step.obj)):
            try:
                value = descriptor.__get__(step.obj)
            except AttributeError:  # an empty slot
                continue
            if name != "__dict__":
                self._push_part(value, None if step.path is None else f"{step.path}.{name}", step)
                continue
            for key, each in list(islice(value.items(), _MAX_NAMED)):
                self._push_part(each, None if step.path is None else f"{step.path}.{key}", step)

    def function(self, step: _Step) -> None:
        """A function: not its globals, which are a module's."""
        for part in (step.obj.__defaults__, step.obj.__kwdefaults__, *(step.obj.__closure__ or ())):
            self._push_part(part, None, step)

    def array(self, step: _Step) -> None:
        """An array: its memory, or the objects in it."""
        plain = sys.modules["numpy"].ndarray
        if not step.obj.dtype.hasobject:
            self._take_array(step)
        elif step.obj.dtype.names is None:
            for item in plain.view(step.obj, plain).ravel(order="K").tolist():
                self._push_part(item, None, step)
        else:
            for name in step.obj.dtype.names:
                self._made.append(plain.view(step.obj, plain)[name])
                self._push_part(self._made[-1], None, step)
        if type(step.obj) is not plain:
            self._attributes(step)

    def _take_array(self, step: _Step) -> None:
        arr = step.obj
        if arr.flags.c_contiguous or arr.flags.f_contiguous or arr.base is None:
            self._take(step)
        elif arr.nbytes >= self._min_bytes:
            # A view with gaps is no contiguous buffer: the array that it is a view of has the
            # memory.
            self._push(arr.base, step.path, step.holder)

    def _take(self, step: _Step) -> None:
        try:
            buffer = locate(step.obj)
        except (RegionError, TypeError, ValueError, BufferError) as error:
            self.refused.append((step.name, str(error)))
        else:
            self._add(Found(buffer, step.name))

    def _exported(self, step: _Step) -> bool:
        """Take the buffer of an object of some library's own that has one."""
        try:
            buffer = locate(step.obj)
        except Exception:
            return False
        self._add(Found(buffer, step.name))
        return True

    def _add(self, found: Found) -> None:
        if found.buffer.nbytes >= self._min_bytes:
            self.found.append(found)

    def _hide(self, step: _Step) -> None:
        kind, name = type(step.obj), step.name
        if step.holder is not None and _library(step.holder[0]) in _LIBRARIES:
            return
        if step.holder is not None and _is_handle(step.obj):
            kind, name = step.holder
        self._hidden.setdefault(f"{kind.__module__}.{kind.__qualname__}", []).append(name)


# Kinds are told by type(), not by isinstance(): that asks the object, and a proxy would act on it.
def _how(obj: Any) -> Callable[[_Traversal, _Step], None]:
    """How objects of that type are looked at."""
    kind = type(obj)
    if kind in _PLAIN:
        return _Traversal.plain
    if _adapt(obj) is not None:
        return _Traversal.adapted
    if is_ndarray(obj):
        return _Traversal.array
    if issubclass(kind, _BUFFERS):
        return _Traversal.exporter
    if kind is types.FunctionType:
        return _Traversal.function
    ends = issubclass(kind, _ENDS) or (kind.__module__, kind.__name__) in _GLOBAL
    return _Traversal.end if ends else _Traversal.parts


def _library(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _descriptors(kind: type) -> list[tuple[str, Any]]:
    """What gives an object's slots and its own __dict__, without asking the object."""
    return [
        (name, descriptor)
        for base in kind.__mro__
        for name, descriptor in list(base.__dict__.items())
        if type(descriptor) is types.MemberDescriptorType
        or (name == "__dict__" and type(descriptor) is types.GetSetDescriptorType)
    ]


def _native_base(kind: type) -> type:
    """The nearest base whose instances have room that no slot of Python's accounts for."""
    while kind is not object:
        base = kind.__base__ or object
        own = kind.__dict__
        slots = sum(type(value) is types.MemberDescriptorType for value in own.values())
        words = slots + ("__dict__" in own) + ("__weakref__" in own)
        if kind.__basicsize__ - base.__basicsize__ > words * ctypes.sizeof(ctypes.c_void_p):
            return kind
        kind = base
    return object


def _is_closed(kind: type) -> bool:
    """Whether its objects may have memory that Python is not shown."""
    base = _native_base(kind)
    if base is object or base is io.BytesIO:
        return base is io.BytesIO
    # A type made in Rust has the module "builtins" unless its author has set another.
    foreign = base.__module__ == "builtins" and base.__flags__ & _HEAPTYPE
    return bool(foreign) or _library(base) not in _OPEN


def _is_handle(obj: Any) -> bool:
    """Whether it is nothing but a library's pointer."""
    kind: Any = type(obj)
    if issubclass(kind, ctypes._Pointer):
        return bool(obj)
    if issubclass(kind, ctypes._SimpleCData):
        return kind._type_ in ("P", "z", "Z") and bool(obj)
    return kind.__name__ in ("PyCapsule", "SwigPyObject")


def _adapt(obj: Any) -> Iterable[Found] | None:
    """The buffers of an object whose library shows them in its own way; None for any other."""
    for library, adapter in _ADAPTERS.items():
        module = sys.modules.get(library)
        if module is not None:
            found = adapter(module, obj)
            if found is not None:
                return found
    return None


def _arrow(pyarrow: Any, obj: Any) -> Iterable[Found] | None:
    try:
        kinds = (pyarrow.Array, pyarrow.ChunkedArray, pyarrow.RecordBatch, pyarrow.Table)
    except AttributeError:  # half imported, or another module of that name
        return None
    return _arrow_found(obj) if issubclass(type(obj), kinds) else None


def _arrow_found(obj: Any) -> Iterator[Found]:
    """What Arrow has: new buffer objects at each look, so the holder's death ends a region."""
    for chunk in _arrow_arrays(obj):
        for buffer in chunk.buffers():
            if buffer is not None and buffer.is_cpu and buffer.size:
                yield Found(locate(buffer), f"arrow {type(obj).__name__}", obj)


def _arrow_arrays(obj: Any) -> Iterator[Any]:
    if hasattr(obj, "columns"):
        for column in obj.columns:
            yield from _arrow_arrays(column)
    elif hasattr(obj, "chunks"):
        yield from obj.chunks
    else:
        yield obj


def _torch(torch: Any, obj: Any) -> Iterable[Found] | None:
    try:
        if issubclass(type(obj), torch.Tensor):
            obj = obj.untyped_storage()
        elif issubclass(type(obj), torch.TypedStorage):
            obj = obj.untyped()
        elif not issubclass(type(obj), torch.UntypedStorage):
            return None
    except AttributeError:  # half imported
        return None
    except (NotImplementedError, RuntimeError):  # no storage
        return ()
    if obj.device.type != "cpu" or not obj.nbytes():
        return ()
    # torch keeps one Python object for each storage, which dies with it. A storage that torch
    # cannot resize has somebody else's memory, of an array or a file.
    owned = obj.resizable()
    buffer = Buffer(obj.data_ptr(), obj.nbytes(), obj, None, watched=True, owned=owned)
    return [Found(buffer, "torch storage")]


_ADAPTERS: dict[str, Callable[[Any, Any], Iterable[Found] | None]] = {
    "pyarrow": _arrow,
    "torch": _torch,
}


def find_buffers(
    objs: Iterable[object], min_bytes: int
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Every buffer of at least `min_bytes` bytes in `objs`, and (name, reason) of refusals."""
    traversal = _Traversal(min_bytes)
    traversal.traverse(tuple(objs))
    return traversal.found, traversal.refused


def merge_ranges(found: list[Found]) -> list[Found]:
    """Each piece of memory once: pieces of one owner that touch or overlap become one."""
    merged: list[Found] = []
    for item in sorted(found, key=lambda item: (item.buffer.address, -item.buffer.nbytes)):
        buffer = item.buffer
        last = merged[-1].buffer if merged else None
        if last is not None and buffer.address <= last.address + last.nbytes:
            end = max(last.address + last.nbytes, buffer.address + buffer.nbytes)
            if buffer.owner is last.owner:
                whole = replace(last, nbytes=end - last.address)
                merged[-1] = Found(whole, merged[-1].name, merged[-1].anchor)
                continue
            if buffer.address + buffer.nbytes <= last.address + last.nbytes:
                continue
        merged.append(item)
    return merged
