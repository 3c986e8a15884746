"""Finding every buffer that is reachable from an object.

The walk is pickle's own (protocol 5, buffers out of band) into a sink that forgets: what
pickle would write out is what an object consists of, for classes of any library. Leaves that
cannot be pickled are looked into as far as their attributes go, and do not end the walk.
"""

from __future__ import annotations

import array
import copyreg
import mmap
import pickle
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ksmpy.buffers import Buffer, is_ndarray, locate
from ksmpy.errors import RegionError

__all__ = ["Found", "find_buffers", "merge_ranges"]

_CODE = (
    type,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
)
_ATOMS = frozenset({int, float, complex, str, bool, type(None)})
_PLAIN = _ATOMS | {tuple, list, dict, set, frozenset}
# Enough for the arrays of a model; an index of a million small objects is not named.
_MAX_NAMED = 50_000
_BUFFERS = (bytes, bytearray, memoryview, mmap.mmap, array.array, pickle.PickleBuffer)


@dataclass(frozen=True, slots=True)
class Found:
    """A buffer, a name for it, and the object whose death ends it (None: its own owner)."""

    buffer: Buffer
    name: str
    anchor: object = None


class _Sink:
    """The file that the pickle goes to."""

    def write(self, data: object) -> int:
        """Forget it."""
        return len(data)  # type: ignore[arg-type]


class _Walker(pickle.Pickler):
    """Collects the buffers that pickling an object comes across."""

    def __init__(self, min_bytes: int, names: dict[int, str]) -> None:
        super().__init__(_Sink(), protocol=5, buffer_callback=self._out_of_band)
        self.found: list[Found] = []
        self.refused: list[tuple[str, str]] = []
        self._min_bytes = min_bytes
        self._names = names

    def _out_of_band(self, buffer: pickle.PickleBuffer) -> bool:
        self._take(buffer)
        return False

    # By type, not by isinstance: that asks the object, which may be a proxy that does things.
    def persistent_id(self, obj: Any) -> object:
        """Called for every object: a buffer or code ends the walk there."""
        if type(obj) in _PLAIN:
            return None
        if issubclass(type(obj), _BUFFERS):
            self._take(obj)
            return True
        if is_ndarray(obj) and not obj.dtype.hasobject:
            self._take_array(obj)
            return True
        return True if issubclass(type(obj), _CODE) else None

    def reducer_override(self, obj: Any) -> Any:
        """What an object consists of, as constructor arguments that will never be used."""
        adapted = _adapt(obj)
        if adapted is not None:
            for found in adapted:
                name = self._names.get(id(obj), found.name)
                self._add(Found(found.buffer, name, found.anchor))
            return tuple, ()
        if is_ndarray(obj):
            return NotImplemented
        try:
            reduce = copyreg.dispatch_table.get(type(obj))
            reduced = reduce(obj) if reduce is not None else obj.__reduce_ex__(5)
        except Exception:
            return tuple, (_parts(obj),)
        return (tuple, ()) if isinstance(reduced, str) else reduced

    def _take(self, obj: Any) -> None:
        name = self._names.get(id(obj), type(obj).__name__)
        try:
            buffer = locate(obj)
        except (RegionError, TypeError, ValueError, BufferError) as error:
            self.refused.append((name, str(error)))
            return
        self._add(Found(buffer, name))

    def _take_array(self, arr: Any) -> None:
        if arr.flags.c_contiguous or arr.flags.f_contiguous or arr.base is None:
            self._take(arr)
        elif arr.nbytes >= self._min_bytes:
            # A view with gaps: the array behind it is what memory goes to.
            self._names.setdefault(id(arr.base), self._names.get(id(arr), type(arr).__name__))
            self.persistent_id(arr.base)

    def _add(self, found: Found) -> None:
        if found.buffer.nbytes >= self._min_bytes:
            self.found.append(found)


def _parts(obj: Any) -> tuple[Any, ...]:
    """What can be seen of an object that cannot be pickled."""
    parts: list[Any] = []
    if type(obj) is types.FunctionType:
        parts += [obj.__defaults__, obj.__kwdefaults__]
        for cell in obj.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:
                continue
        return tuple(parts)
    parts.append(_attribute(obj, "__dict__"))
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            parts.append(_attribute(obj, slot))
    return tuple(parts)


def _attribute(obj: Any, name: str) -> Any:
    """An attribute, or None: properties and proxies may raise whatever they like."""
    try:
        return getattr(obj, name, None)
    except Exception:
        return None


def _paths(objs: tuple[object, ...]) -> dict[int, str]:
    """Names for objects, by id: the path from what the user handed in, as Python writes it.

    Follows dicts, lists, tuples and attributes, as far as _MAX_NAMED objects.
    """
    names: dict[int, str] = {}
    todo: deque[tuple[Any, str]] = deque(
        (obj, f"[{i}]" if len(objs) > 1 else "") for i, obj in enumerate(objs)
    )
    while todo and len(names) < _MAX_NAMED:
        obj, path = todo.popleft()
        if id(obj) in names or type(obj) in _ATOMS:
            continue
        names[id(obj)] = path or type(obj).__name__
        kind = type(obj)
        if kind is dict:
            todo.extend((value, f"{path}[{key!r}]") for key, value in _items(obj))
        elif kind is list or kind is tuple:
            todo.extend((value, f"{path}[{i}]") for i, value in enumerate(obj[:_MAX_NAMED]))
        elif not issubclass(kind, _CODE):
            attributes = _attribute(obj, "__dict__")
            if isinstance(attributes, dict):
                todo.extend((value, f"{path}.{key}") for key, value in _items(attributes))
    return names


def _items(mapping: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The items whose keys can be part of a path."""
    items = islice(mapping.items(), _MAX_NAMED)
    return [(key, value) for key, value in items if isinstance(key, (str, int, float, bytes))]


def _adapt(obj: Any) -> Iterable[Found] | None:
    """The buffers of an object whose library hides them from pickle; None for any other."""
    for library, adapter in _ADAPTERS.items():
        module = sys.modules.get(library)
        if module is not None:
            found = adapter(module, obj)
            if found is not None:
                return found
    return None


def _arrow(pyarrow: Any, obj: Any) -> Iterable[Found] | None:
    # pandas keeps Arrow data in an attribute, of which it pickles a copy.
    if type(obj).__module__.partition(".")[0] == "pandas":
        obj = getattr(obj, "_pa_array", None)
    try:
        kinds = (pyarrow.Array, pyarrow.ChunkedArray, pyarrow.RecordBatch, pyarrow.Table)
    except AttributeError:  # half imported, or another module of that name
        return None
    return _arrow_found(obj) if issubclass(type(obj), kinds) else None


def _arrow_found(obj: Any) -> Iterator[Found]:
    """Buffers are new objects each time they are asked for: the region hangs on the holder."""
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
    except (AttributeError, NotImplementedError, RuntimeError):  # no storage, or half imported
        return None
    if obj.device.type != "cpu" or not obj.nbytes():
        return ()
    # torch keeps one Python object per storage, which dies with it. What it cannot resize is
    # somebody else's memory: an array's, a file's.
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
    objs = tuple(objs)
    walker = _Walker(min_bytes, _paths(objs))
    for obj in objs:
        try:
            walker.dump(obj)
        except Exception as error:
            reason = f"was looked through in part only: {type(error).__name__}: {error}"
            walker.refused.append((type(obj).__name__, reason))
        walker.clear_memo()
    # The walker is part of a cycle with its own callback: it must not keep what it found.
    found, walker.found = walker.found, []
    return found, walker.refused


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
