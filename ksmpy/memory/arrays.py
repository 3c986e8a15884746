"""numpy arrays whose data begins on a page boundary, from 4 MiB on on that of a huge page.

Two such arrays of equal content have equal pages from the first to the last, and no fragments
at their ends that cannot be merged. numpy's own arrays begin 16 bytes into a page from 1 MiB
upwards, and anywhere below that. Arrays that begin where a huge page does can all be mapped on
huge pages when they are merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ksmpy.native import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    import numpy.typing as npt

_HUGE = 512 * PAGE_SIZE

__all__ = ["array", "copy", "empty", "empty_like", "full", "zeros"]


def empty(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """As numpy.empty, on page-aligned memory. TypeError for a dtype that holds objects."""
    import numpy as np

    return _aligned(np.empty, shape, dtype, order)


def zeros(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """As numpy.zeros, on page-aligned memory. TypeError for a dtype that holds objects."""
    import numpy as np

    return _aligned(np.zeros, shape, dtype, order)


def full(
    shape: int | tuple[int, ...],
    fill_value: npt.ArrayLike,
    dtype: npt.DTypeLike | None = None,
    order: Literal["C", "F"] = "C",
) -> npt.NDArray[Any]:
    """As numpy.full, on page-aligned memory. TypeError for a dtype that holds objects."""
    import numpy as np

    target = empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
    np.copyto(target, fill_value, casting="unsafe")
    return target


def empty_like(
    prototype: npt.ArrayLike,
    dtype: npt.DTypeLike | None = None,
    order: Literal["K", "A", "C", "F"] = "K",
    *,
    shape: int | tuple[int, ...] | None = None,
) -> npt.NDArray[Any]:
    """As numpy.empty_like, on page-aligned memory; an ndarray also for subclasses of it.

    TypeError for a dtype that holds objects.
    """
    import numpy as np

    # numpy judges dtype, shape and order; what it makes is never touched, so it takes no memory.
    model = np.empty_like(prototype, dtype, order, False, shape)
    return _aligned(np.empty, model.shape, model.dtype, "C", model.strides)


def array(
    object: npt.ArrayLike,
    dtype: npt.DTypeLike | None = None,
    *,
    order: Literal["K", "A", "C", "F"] = "K",
) -> npt.NDArray[Any]:
    """As numpy.array, on page-aligned memory: always a copy, and an ndarray.

    TypeError for a dtype that holds objects.
    """
    import numpy as np

    source = np.asarray(object, dtype)
    target = empty_like(source, order=order)
    target[...] = source
    return target


def copy(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """A copy of an array (or what numpy makes one of) on page-aligned memory, in its order."""
    import numpy as np

    source = np.asarray(array)
    target = empty_like(source)
    target[...] = source
    return target


def _aligned(
    allocate: Callable[..., Any],
    shape: int | tuple[int, ...],
    dtype: npt.DTypeLike,
    order: Literal["C", "F"],
    strides: tuple[int, ...] | None = None,
) -> npt.NDArray[Any]:
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind} holds Python objects, whose memory cannot be placed")
    # numpy judges the shape, without memory: a view of one item, repeated.
    layout = np.broadcast_to(np.empty((), kind), shape)
    nbytes = layout.size * kind.itemsize
    step = _HUGE if nbytes >= 2 * _HUGE else PAGE_SIZE
    memory = allocate(nbytes + step, np.uint8)
    start = -memory.__array_interface__["data"][0] % step
    made: npt.NDArray[Any] = np.ndarray(layout.shape, kind, memory, start, strides, order)
    return made
