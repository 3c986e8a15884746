"""Finding the arrays that a program holds on to, without its help.

Arrays take no part in garbage collection, but what refers to them does: a look goes over the
collector's objects and the running frames' variables. It costs time with the GIL held, so the
next look waits in proportion; and an array is adopted only when two looks in a row have seen
it, for short-lived ones are not worth a region.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ksmpy.buffers import ultimate_owner
from ksmpy.errors import KsmpyError

if TYPE_CHECKING:
    from ksmpy.engine import Engine

__all__ = ["Adopter"]

_log = logging.getLogger("ksmpy")

# At most 1 % of a core, at least half a second apart.
_COST_FACTOR = 99
_MIN_SECONDS = 0.5
# Referents are asked for in chunks, between which other threads get the GIL.
_CHUNK = 2000


class Adopter:
    """A thread that registers long-lived arrays with an engine, until stopped or it closes."""

    def __init__(self, engine: Engine, min_bytes: int) -> None:
        self._engine = weakref.ref(engine)
        self._min_bytes = min_bytes
        self._stop = threading.Event()
        self._seen: set[tuple[int, int]] = set()
        self._thread = threading.Thread(target=self._loop, name="ksmpy-adopt", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking, and wait for a look under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _loop(self) -> None:
        wait = _MIN_SECONDS / 10
        first = True
        while not self._stop.wait(wait):
            engine = self._engine()
            if engine is None:
                return
            begin = time.thread_time()
            try:
                self.look(engine)
            except KsmpyError:
                return
            except Exception as error:
                _log.error("arrays are not adopted any more: %s: %s", type(error).__name__, error)
                return
            del engine
            # The second look comes soon: only then is anything adopted.
            cost = 0.0 if first else (time.thread_time() - begin) * _COST_FACTOR
            wait = max(_MIN_SECONDS, cost)
            first = False

    def look(self, engine: Engine) -> None:
        """Register what this look and the previous one have both seen."""
        found = {(id(obj), obj_bytes(obj)): obj for obj in _large_arrays(self._min_bytes)}
        known = [obj for key, obj in found.items() if key in self._seen]
        self._seen = set(found)
        del found
        if known and not self._stop.is_set():
            engine.track_all((known,), min_bytes=self._min_bytes)


def obj_bytes(obj: Any) -> int:
    """Bytes of an array or a tensor."""
    return int(obj.nbytes)


def _large_arrays(min_bytes: int) -> Iterator[Any]:
    """The arrays and tensors that containers and running frames refer to, each once."""
    numpy = sys.modules.get("numpy")
    torch = sys.modules.get("torch")
    array_type = getattr(numpy, "ndarray", ())
    tensor_type = getattr(torch, "Tensor", ())
    kinds: dict[type, bool] = {}
    done: set[int] = set()
    for obj in _referents():
        kind = type(obj)
        wanted = kinds.get(kind)
        if wanted is None:
            wanted = issubclass(kind, array_type) or issubclass(kind, tensor_type)
            kinds[kind] = wanted
        if not wanted or id(obj) in done:
            continue
        owner = ultimate_owner(obj)
        # Others would have to be pinned by an export, which the program could run into.
        if id(owner) not in done and issubclass(type(owner), (array_type, tensor_type)):
            done.add(id(owner))
            if obj_bytes(owner) >= min_bytes:
                yield owner


def _referents() -> Iterator[Any]:
    # Before Python 3.13 asking a frame for its variables makes it keep them: they would outlive
    # their `del`. What only local variables hold is not found there.
    frames = list(sys._current_frames().values()) if sys.version_info >= (3, 13) else []
    while frames:
        frame = frames.pop()
        yield from frame.f_locals.values()
        if frame.f_back is not None:
            frames.append(frame.f_back)
    objects = iter(gc.get_objects())
    while chunk := list(islice(objects, _CHUNK)):
        yield from gc.get_referents(*chunk)
