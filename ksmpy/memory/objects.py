"""Where Python's objects have large memory, and what it is called.

A look goes over the collector's objects, what they refer to, and the untracked containers among
that (dicts and tuples without anything to track, up to Python 3.13). To numpy arrays and tuples no
reference is taken, not for a moment: a resize that happens meanwhile would fail, and so would
tuple(generator) in another thread. None is taken to what has a finalizer, as open files do, and to
what is young: json.dump(x, open(path, "w")) has to have written all when it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ksmpy import native
from ksmpy.memory.buffers import class_of, home, is_a
from ksmpy.memory.traverse import find_buffers

__all__ = ["Named", "named_memory"]

# So many objects are looked at before other threads get the GIL.
_CHUNK = 2000
_ARROW = ("Array", "ChunkedArray", "RecordBatch", "Table")


@dataclass(frozen=True, slots=True)
class Named:
    """Contiguous memory that some object has."""

    address: int
    nbytes: int
    name: str
    has_key: bool = False
    """It is called as the key of its dict, or as the attribute; else after what holds it."""


def named_memory(min_bytes: int) -> Iterator[Named]:
    """The memory of at least `min_bytes` bytes that arrays, tensors, Arrow's arrays and tables,
    bytes and bytearrays have which the program holds on to. The same may come several times.
    """
    array_type = class_of("numpy", "ndarray")
    nbytes = array_type.__dict__["nbytes"] if array_type is not None else None
    asked = _asked_types()
    for found, others in _looks(({}, array_type, nbytes, asked, min_bytes)):
        for address, size, key, container in found:
            yield Named(address, size, *_name(key, container))
        for obj, key, container in others:
            for address, size in _ask(obj, min_bytes):
                yield Named(address, size, *_name(key, container))
        del others


def _looks(query: native.Query) -> Iterator[tuple[native.Found, native.Others]]:
    found, others, rest = native.look_around(query)
    yield found, others
    del found, others
    # Who is in the list lives on until it is looked into: so it gets shorter on the way.
    while chunk := rest[-_CHUNK:]:
        del rest[-_CHUNK:]
        yield native.look_into(chunk, query)


def _asked_types() -> tuple[type, ...]:
    """The types whose objects have to be asked where their memory is."""
    types = [class_of("torch", "Tensor"), *(class_of("pyarrow", name) for name in _ARROW)]
    return tuple(kind for kind in types if kind is not None)


def _ask(obj: Any, min_bytes: int) -> Iterator[tuple[int, int]]:
    """(address, bytes) of an object's memory."""
    if not is_a(obj, "torch", "Tensor"):
        for item in find_buffers((obj,), min_bytes)[0]:
            yield item.buffer.address, item.buffer.nbytes
        return
    try:
        storage = obj.untyped_storage()
        where = home(storage) if storage.device.type == "cpu" else None
    except Exception:  # it has none, or is of a class that does as it likes
        return
    if where is not None and where[1] >= min_bytes:
        yield where


def _name(key: object, container: type) -> tuple[str, bool]:
    if isinstance(key, str) and key.isprintable() and len(key) < 100:
        return key, True
    return f"in a {container.__name__}", False
