"""How long a region lives: as long as the owner of its memory has that memory.

Where a weak reference's callback tells of the owner's end in time, it does: numpy's arrays up to
numpy 2.4, torch's storages. Other owners are held, and count as abandoned once ours are the only
references.

An owner may also give its memory up, or change it, and live on: torch's storages are resized and
moved to shared memory, a bytearray grows, ctypes.resize() moves what it is given. So owners are
asked from time to time where their memory is, and at the end whether it is still the same. Only
then, and if the region lies in that memory, may its bytes be thrown away: they could be anybody's.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ksmpy import native
from ksmpy.memory.buffers import Buffer, can_move, home, is_ndarray, owns_bytes

__all__ = ["Held", "Lifetime", "Unowned", "Watched", "lifetime"]

_HAVE_GC = 1 << 14  # Py_TPFLAGS_HAVE_GC


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
        """Whether nobody but us holds the owner any more, or it is gone without a word."""

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

    Weak references are told one after the other, the newest first, and the memory is there until
    the last one was. So it must keep its bytes, too, where somebody else's callback follows ours.
    """

    __slots__ = ("_array", "_collectable", "_home", "_kept", "_owner", "_ref", "can_move")

    def __init__(self, owner: Any, buffer: Buffer | None = None, kept: object = None) -> None:
        """The bytes of the `buffer`, if one is given, end with the owner."""
        self._collectable = bool(type(owner).__flags__ & _HAVE_GC)
        self.can_move = can_move(owner) and kept is None
        self._home = home(owner) if self.can_move else None
        self._array = None if buffer is None else _Array.of(owner, buffer)
        self._owner: Any = owner
        self._kept = kept
        self._ref: weakref.ref[Any] | None = None

    @property
    def discard(self) -> bool:
        """False when the garbage collector in this thread may have found the owner, since the
        finalizers of its cycle have not run yet, and when the memory is not what it was. Of dying
        owners only an array can still tell that.
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
        # Ours is made before the others are looked for, so that none can come in between.
        array, self._array = self._array, None
        self._ref = _Ref(self._owner, lambda _: ended())
        if not any(_has_callback(ref) for ref in weakref.getweakrefs(self._owner)):
            self._array = array
        self._owner = None

    def abandoned(self) -> bool:
        """Whether it is dead though the region did not end: the callback found no room on the
        stack, or was interrupted.
        """
        return self._ref is not None and self._ref() is None

    def drop(self) -> None:
        """Stop watching."""
        self._ref = self._owner = self._kept = None


class _Ref(weakref.ref[Any]):
    """A weak reference of ours, whose callback reads nothing of the memory."""

    __slots__ = ()


def _has_callback(ref: Any) -> bool:
    """Whether a weak reference or proxy calls somebody other than us. A proxy cannot be asked."""
    if type(ref) is _Ref:
        return False
    return not issubclass(type(ref), weakref.ref) or ref.__callback__ is not None


@dataclass(frozen=True, slots=True)
class _Array:
    """What a numpy array says of its memory, read where it cannot be asked: it is dying, but its
    weak references are told before the object itself goes.
    """

    place: int
    data: int

    # Of struct PyArrayObject_fields, part of numpy's binary interface since its version 1.7.
    _DATA = 16
    _BASE = 48
    _FLAGS = 64
    _OWNS_DATA = 4

    @classmethod
    def of(cls, owner: Any, buffer: Buffer) -> _Array | None:
        """None for bytes that are not an array's own, and where the structure is another one (a
        debug build of Python).
        """
        if not buffer.owned or not is_ndarray(owner) or not buffer.lies_in(home(owner)):
            return None
        known = cls(id(owner), int(owner.__array_interface__["data"][0]))
        return known if known.unchanged() else None

    def unchanged(self) -> bool:
        """Whether it still owns the memory that it had, and has got no base, to which it would copy
        its bytes.
        """
        data = ctypes.c_void_p.from_address(self.place + self._DATA).value
        base = ctypes.c_void_p.from_address(self.place + self._BASE).value
        flags = ctypes.c_int.from_address(self.place + self._FLAGS).value
        return data == self.data and base is None and bool(flags & self._OWNS_DATA)


class Held:
    """An owner that is kept until nobody else holds it."""

    __slots__ = ("_alone", "_discard", "_export", "_home", "_owner", "_pin", "can_move")

    def __init__(self, buffer: Buffer) -> None:
        owner = buffer.owner
        self.can_move = can_move(owner)
        self._home = home(owner) if buffer.owned or self.can_move else None
        self._discard = buffer.owned and buffer.lies_in(self._home)
        self._owner: Any = owner
        self._export = buffer.export
        # numpy does not resize an array to which there is a weak reference. Python shares a weak
        # reference without a callback among all who make one: with a callback this one is ours
        # alone, and getweakrefcount() tells those of the program.
        self._pin = weakref.ref(owner, _ignore) if is_ndarray(owner) else None
        self._alone = _ALONE[buffer.export is not None]

    @property
    def discard(self) -> bool:
        """Not while somebody could get the owner back by a weak reference."""
        lonely = weakref.getweakrefcount(self._owner) == (self._pin is not None)
        own = self._pin is None or owns_bytes(self._owner)
        return self._discard and lonely and own and home(self._owner) == self._home

    def moved(self) -> bool:
        """Ask the owner."""
        return self.can_move and self._owner is not None and home(self._owner) != self._home

    def watch(self, ended: Callable[[], None]) -> None:
        """Do nothing, as no callback tells of the owner's end: abandoned() must be asked."""

    def references(self) -> int:
        """How many references the owner has, the ones of this call included."""
        return sys.getrefcount(self._owner)

    def abandoned(self) -> bool:
        """Whether only our own references are left."""
        return self._owner is not None and self.references() <= self._alone

    def drop(self) -> None:
        """Give the owner up. The weak reference goes first: numpy 2.5 trips over any that there are
        to an array which it has to copy to another one at its end.
        """
        self._pin = None
        export, self._export, self._owner = self._export, None, None
        if export is not None:
            export.release()


def _ignore(_: object) -> None:
    """Do nothing: the weak reference is needed, its callback is not."""


# How many references sys.getrefcount() shows for an owner that only Held has, without and with an
# export. The number differs between Python versions, so it is measured below.
_ALONE: dict[bool, int] = {False: 0, True: 0}


def _measure_alone() -> None:
    def without() -> Held:
        return Held(Buffer(0, 0, bytearray(1), None))

    def with_export() -> Held:
        owner = bytearray(1)
        return Held(Buffer(0, 0, owner, memoryview(owner)))

    _ALONE[False] = without().references()
    held = with_export()
    _ALONE[True] = held.references()
    held.drop()


_measure_alone()


def lifetime(buffer: Buffer, anchor: object = None) -> Lifetime:
    """The lifetime of a buffer; with an `anchor`, the region ends when that object dies."""
    if anchor is not None:
        return Watched(anchor, kept=(buffer.owner, buffer.export))
    if buffer.watched:
        return Watched(buffer.owner, buffer)
    return Held(buffer)
