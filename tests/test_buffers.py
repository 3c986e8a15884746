"""From objects to memory: what is found, what is refused, and in which words."""

from __future__ import annotations

import array
import ctypes
import gc
import importlib.util
import io
import logging
import mmap
import pickle
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksmpy import RegionError, proc
from ksmpy.memory.buffers import Buffer, locate
from ksmpy.memory.maps import AddressSpace, refusal, vma_flags
from ksmpy.memory.traverse import Found, find_buffers, merge_ranges
from ksmpy.native import PAGE_SIZE, VMA_DONTDUMP, VMA_HUGEPAGE, VMA_NOHUGEPAGE
from support import procs

MIB = 1 << 20


def private(nbytes: int) -> mmap.mmap:
    """Private anonymous memory of its own mapping."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def refused(obj: Any) -> str | None:
    """Why the pages of an object cannot be a region."""
    start, end = locate(obj).pages
    return refusal(AddressSpace.read(end).covering(start, end), start, end)


# ---- locate ------------------------------------------------------------------------------


def test_array_is_its_own_owner() -> None:
    """The address and size are those that numpy gives, whatever the dtype and the order."""
    for arr in (
        np.zeros((30, 40)),
        np.zeros((30, 40), order="F"),
        np.zeros(9, "M8[ns]"),
        np.zeros(9, [("when", "M8[s]"), ("what", "S3")]),
        np.zeros(0),
    ):
        found = locate(arr)
        assert (found.address, found.nbytes) == (arr.ctypes.data, arr.nbytes)
        assert found.owner is arr


def test_views_lead_to_the_owner() -> None:
    """Views, memoryviews and pickle buffers lead to the object that the memory belongs to."""
    arr = np.zeros((100, 100))
    for view, offset in (
        (arr[2:], 1600),
        (arr.reshape(-1).view(np.uint8)[3:], 3),
        (memoryview(arr)[2:], 1600),
        (arr.T, 0),
        (pickle.PickleBuffer(arr[2:]), 1600),
        (memoryview(arr).cast("B")[16:], 16),
    ):
        found = locate(view)
        assert found.owner is arr
        assert found.address == arr.ctypes.data + offset


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(5000),
        lambda: bytes(5000),
        lambda: array.array("d", [1.0] * 700),
        lambda: private(5 * PAGE_SIZE),
        lambda: (ctypes.c_int * 2000)(),
    ],
)
def test_other_exporters_are_held(make: Any) -> None:
    """Other buffers are found through every view of them; only mmap is kept from resizing."""
    owner = make()
    for view in (owner, memoryview(owner)[8:], np.frombuffer(owner, np.uint8)[16:]):
        found = locate(view)
        assert found.owner is owner
        assert (found.export is not None) == isinstance(owner, mmap.mmap)


def test_gaps_are_refused() -> None:
    """What is not contiguous is refused with the way out."""
    for view in (np.zeros((10, 10))[:, ::2], memoryview(bytearray(100))[::2]):
        with pytest.raises(RegionError, match="ascontiguousarray"):
            locate(view)


def test_no_buffer() -> None:
    """An object without a buffer is a TypeError, a released memoryview a RegionError."""
    with pytest.raises(TypeError, match="int has no buffer"):
        locate(3)
    view = memoryview(bytearray(10))
    view.release()
    with pytest.raises(RegionError, match="released"):
        locate(view)


def test_whole_pages_only() -> None:
    """A region begins at the first page boundary and ends at the last one."""
    assert Buffer(4096, 8192, None, None).pages == (4096, 12288)
    assert Buffer(4097, 8192, None, None).pages == (8192, 12288)
    start, end = Buffer(4097, 4096, None, None).pages
    assert end <= start


# ---- mappings ----------------------------------------------------------------------------


def test_private_memory_is_taken() -> None:
    """Private, anonymous, writable memory has nothing against it, on the heap as well."""
    assert refused(private(4 * PAGE_SIZE)) is None
    assert refused(np.zeros(MIB)) is None
    assert refused(bytearray(3 * PAGE_SIZE)) is None


def test_shared_memory_is_refused() -> None:
    """Shared mappings are refused, anonymous or of a file."""
    assert refused(mmap.mmap(-1, MIB)) == "it is shared memory (MAP_SHARED)"


def test_file_backed_memory_is_refused(tmp_path: Path) -> None:
    """Mappings of files are refused by name, shared, copy-on-write and read-only."""
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    for mode in ("r+", "c", "r"):
        reason = refused(np.memmap(path, np.uint8, mode=mode))  # type: ignore[call-overload]
        assert reason is not None and "file-backed" in reason and str(path) in reason


def test_protected_memory_is_refused() -> None:
    """Memory that is mapped read-only cannot be merged."""
    memory = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    assert refused(memory) == "its memory is mapped r--, not rw-"


@pytest.mark.parametrize(
    ("advice", "words"),
    [("MADV_DONTFORK", "forked children"), (18, "wiped on fork")],
)
def test_advice_against_merging(advice: str | int, words: str) -> None:
    """Memory whose mapping could not be put back as it was is refused with the advice's name."""
    memory = private(4 * PAGE_SIZE)
    memory.madvise(getattr(mmap, advice) if isinstance(advice, str) else advice)
    reason = refused(memory)
    assert reason is not None and words in reason


def test_locked_memory_is_refused() -> None:
    """Locked memory is promised to stay where it is: a merge would move it."""
    memory = private(4 * PAGE_SIZE)
    address = ctypes.c_void_p(locate(memory).address)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(address, ctypes.c_size_t(len(memory))):
        pytest.skip("not allowed to lock memory")
    reason = refused(memory)
    assert reason is not None and "mlock" in reason
    libc.munlock(address, ctypes.c_size_t(len(memory)))
    assert refused(memory) is None


def test_reading_stops_where_it_may() -> None:
    """What is below the limit is complete, whatever else is mapped above."""
    whole = AddressSpace.read(2**64)
    for mapping in whole.covering(0, 2**64)[:20]:
        part = AddressSpace.read(mapping.end)
        assert part.covering(mapping.start, mapping.end)[-1].start == mapping.start
    assert len(AddressSpace.read(0).covering(0, 2**64)) < len(whole.covering(0, 2**64))


def _mapping(start: int, end: int, letters: str | None) -> proc.Mapping:
    """An anonymous one, with VmFlags of these letters."""
    details = None if letters is None else f"VmFlags: {letters} \n".encode()
    return proc.Mapping(start, end, "rw-p", "00:00", 0, "", details)


def test_unmapped_memory_is_refused() -> None:
    """A hole at the start, in the middle or at the end is found."""
    low, high = "1000-3000 rw-p 00000000 00:00 0", "4000-6000 rw-p 00000000 00:00 0"
    space = AddressSpace(f"{low} \n{high} \n".encode())
    for start, end in ((0x0, 0x2000), (0x2000, 0x5000), (0x5000, 0x7000), (0x8000, 0x9000)):
        reason = refusal(space.covering(start, end), start, end)
        assert reason == "part of it is not mapped"
    assert refusal(space.covering(0x1000, 0x3000), 0x1000, 0x3000) is None


@pytest.mark.parametrize(
    ("letters", "words"),
    [
        ("rd wr ht", "hugetlbfs"),
        ("rd wr io", "VM_IO"),
        ("rd wr pf", "VM_PFNMAP"),
        ("rd wr gd", "stack"),
        ("rd wr sl", "sealed"),
        ("rd wr mt", "PROT_MTE"),
        ("rd wr um", "userfaultfd"),
        ("rd wr uw", "userfaultfd"),
    ],
)
def test_flags_that_refuse(letters: str, words: str) -> None:
    """Each flag of the kernel's that stands against merging has a sentence of its own."""
    mapping = _mapping(0, PAGE_SIZE, letters)
    reason = refusal([mapping], 0, PAGE_SIZE)
    assert reason is not None and words in reason


def test_flags_to_repeat() -> None:
    """The engine is told the flags that all of a region's mappings have."""

    def flags(*each: str) -> int:
        return vma_flags([_mapping(0, 1, letters) for letters in each])

    assert flags("rd wr hg") == VMA_HUGEPAGE
    assert flags("rd nh dd", "rd nh dd") == VMA_NOHUGEPAGE | VMA_DONTDUMP
    assert flags("rd hg", "rd") == 0
    assert vma_flags([_mapping(0, 1, None)]) == 0


# ---- traversal ---------------------------------------------------------------------------


class Plain:
    """An object with attributes."""


class Slotted:
    """An object with slots, that cannot be pickled."""

    __slots__ = ("data", "lock")

    def __init__(self) -> None:
        self.data = bytearray(MIB)
        self.lock = threading.Lock()


def owners(obj: object, min_bytes: int = MIB) -> list[object]:
    """The owners of the buffers in an object."""
    found, refused = find_buffers((obj,), min_bytes)
    assert refused == []
    return [item.buffer.owner for item in merge_ranges(found)]


def same(left: list[object], right: list[object]) -> bool:
    """The same objects, in whatever order."""
    return sorted(map(id, left)) == sorted(map(id, right))


def test_traversal_finds_direct_buffers() -> None:
    """Buffers in containers, attributes and slots are found, each once."""
    arr, raw, text = np.zeros(MIB), bytearray(MIB), bytes(MIB)
    plain, slotted = Plain(), Slotted()
    plain.arr, plain.again = arr, arr[5:]  # type: ignore[attr-defined]
    obj = {"plain": plain, "slotted": slotted, "more": [raw, (text, memoryview(raw))]}
    assert same(owners(obj), [arr, raw, text, slotted.data])


def test_traversal_goes_on_after_what_holds_nothing() -> None:
    """Locks, generators, lambdas and modules do not end the traversal; closures are looked into."""
    arr, other = np.zeros(MIB), np.ones(MIB)
    obj = [threading.Lock(), (i for i in range(3)), np, lambda: other, arr]
    assert same(owners(obj), [arr, other])


class Hostile:
    """Raises at every touch."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


def test_traversal_survives_hostile_objects() -> None:
    """An object that raises whatever is asked of it is passed over."""
    arr = np.zeros(MIB)
    assert same(owners([Hostile(), arr]), [arr])


def test_traversal_ignores_small_buffers() -> None:
    """Buffers below min_bytes are passed over."""
    arr = np.zeros(100)
    assert owners([arr]) == []
    assert same(owners([arr], 800), [arr])


def test_traversal_finds_the_array_behind_views_with_gaps() -> None:
    """Of a view with gaps the array behind it is taken, of an object array the items."""
    arr, item = np.zeros((2000, 200)), np.zeros(MIB)
    assert same(owners(arr[:, ::2]), [arr])
    assert same(owners(np.array([item, None], dtype=object)), [item])


def test_traversal_survives_deep_objects() -> None:
    """However deep the objects lie in each other, what is at the bottom is found."""
    arr = np.zeros(MIB)
    deep: list[Any] = [arr]
    for _ in range(200_000):
        deep = [deep]
    assert same(owners(deep), [arr])
    while isinstance(deep, list):
        deep = deep[0]


class Serialising:
    """Makes bytes of itself when it is asked what it consists of, as faiss, LightGBM and XGBoost
    do; its memory is behind a pointer.
    """

    asked = 0

    def __init__(self) -> None:
        self.handle = ctypes.c_void_p(PAGE_SIZE)
        self.size = MIB

    def serialised(self, *_: Any) -> Any:
        """What all of the ways to ask for its state lead to."""
        Serialising.asked += 1
        return bytes, (b"x" * self.size,)

    def __getstate__(self) -> Any:
        return self.serialised()

    def __reduce__(self) -> Any:
        return self.serialised()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.serialised()

    def __getattr__(self, name: str) -> Any:
        return self.serialised()


class Lazy:
    """Computes what it is asked for, and has an array that it would not show to pickle."""

    def __init__(self) -> None:
        self.arr = np.zeros(MIB)

    def __getstate__(self) -> Any:
        raise AssertionError("asked for its state")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        """Not the one that its attributes are in."""
        raise AssertionError("asked for its attributes")


def test_traversal_calls_nothing() -> None:
    """No object is asked to say what it consists of: its references are followed, and what lies
    behind a pointer is reported under the name of its holder.
    """
    lazy = Lazy()
    many = [Serialising() for _ in range(3)]
    found, refused = find_buffers(({"model": many[0], "more": many, "lazy": lazy},), MIB)
    assert Serialising.asked == 0
    assert [item.buffer.owner for item in found] == [lazy.arr]
    assert [name for name, _ in refused] == ["['model']"]
    assert "Python cannot see it" in refused[0][1] and "2 more" in refused[0][1]
    assert f"{__name__}.Serialising" in refused[0][1] and "enable()" in refused[0][1]


def test_traversal_reports_the_handle_itself_without_a_holder() -> None:
    """A capsule, or bytes that only a copy would show, are reported by themselves."""
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    handle = capsule(ctypes.c_void_p(PAGE_SIZE), None, None)
    file = io.BytesIO(bytes(MIB))
    seen = any(isinstance(held, bytes) for held in gc.get_referents(file))  # by newer Pythons
    for obj in (handle, *([] if seen else [file])):
        found, refused = find_buffers((obj,), MIB)
        assert not found
        assert len(refused) == 1 and "Python cannot see it" in refused[0][1]


def test_traversal_looks_into_arrays() -> None:
    """The objects in arrays of objects, fields and masks are found, and what subclasses hold."""
    items = [np.zeros(MIB) for _ in range(3)]
    record = np.zeros(2, [("number", int), ("what", object)])
    record["what"] = items[:2]
    masked = np.ma.masked_array(np.zeros(MIB), mask=np.zeros(MIB, bool))  # type: ignore[no-untyped-call]
    assert same(owners([record, np.array([[items[2]], [None]], object)]), items)
    assert len(owners(masked)) == 2


def test_traversal_leaves_globals_alone() -> None:
    """A function's globals, modules, classes and loggers lead to everything, and are no part."""
    arr = np.zeros(MIB)
    held = [logging.getLogger(__name__), owners, Plain, np.linalg, len, sys._getframe(), arr]
    globals()["_elsewhere"] = np.ones(MIB)
    try:
        assert same(owners(held), [arr])
    finally:
        del globals()["_elsewhere"]


#: How a model of a library is made: by a program of its own, as it may start threads for good.
_MODELS = {
    "faiss": """
index = faiss.IndexFlatL2(64)
index.add(np.ones((16384, 64), np.float32))
""",
    "lightgbm": """
index = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(data, data[:, 0]), 3)
""",
    "xgboost": """
index = xgboost.train({"nthread": 1}, xgboost.DMatrix(data, data[:, 0]), 3)
""",
}

_REAL = """
import numpy as np, ksmpy, {library}
from ksmpy.memory.traverse import find_buffers
data = np.random.default_rng(1).random((500, 4))
{make}
def asked(*args):
    print("asked for its state")
for way in "__getstate__", "__reduce__", "__reduce_ex__":
    setattr(type(index), way, asked)
found, refused = find_buffers(({{"model": index}},), 1)
print([item.name for item in found if item.buffer.nbytes >= 1 << 16])
print([name for name, reason in refused if "Python cannot see it" in reason])
print(ksmpy.estimate({{"a": index, "b": index}}, min_bytes=4096).saved_bytes)
"""


@pytest.mark.parametrize("library", list(_MODELS))
def test_real_libraries_are_not_serialised(library: str) -> None:
    """Objects of libraries that would serialise themselves are reported, and nothing promised."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    out = procs.python_ok("-c", _REAL.format(library=library, make=_MODELS[library]))
    assert out.splitlines() == ["[]", "[\"['model']\"]", "0"]


@pytest.fixture(scope="module")
def pandas() -> Any:
    """pandas, imported before a test counts threads: Arrow starts some for good."""
    return pytest.importorskip("pandas")


def test_buffers_are_named_by_their_path() -> None:
    """A buffer bears the path to it, as Python writes it; one found otherwise its type's name."""
    plain = Plain()
    plain.w = np.zeros(MIB)  # type: ignore[attr-defined]
    model = {"layers": [np.zeros(MIB), {"b": bytearray(MIB)}], "plain": plain}

    def names(*objs: object) -> list[str]:
        return sorted(item.name for item in find_buffers(objs, MIB)[0])

    assert names(model) == ["['layers'][0]", "['layers'][1]['b']", "['plain'].w"]
    assert names([1], model)[0] == "[1]['layers'][0]"
    assert names(np.zeros(MIB)) == ["ndarray"]
    assert names(lambda: plain.w) == ["ndarray"]  # type: ignore[attr-defined]
    loop: list[Any] = [bytearray(MIB)]
    loop.append(loop)
    assert names(loop) == ["[0]"]


def test_traversal_keeps_nothing() -> None:
    """What was traversed dies when its last user lets go of it, without a collection's help."""
    arr = np.zeros(MIB)
    alive = weakref.ref(arr)
    find_buffers(({"a": arr, "views": [arr[1:], memoryview(arr)]},), MIB)
    del arr
    assert alive() is None


def test_traversal_pandas(pandas: Any) -> None:
    """A frame's numpy blocks are found, and its Arrow columns where they really are."""
    frame = pandas.DataFrame({"a": np.arange(MIB), "b": np.arange(MIB) * 2.0})
    frame["c"] = pandas.Categorical(["x", "y"] * (MIB // 2))
    found, refused = find_buffers((frame,), MIB)
    total = sum(item.buffer.nbytes for item in merge_ranges(found))
    assert total >= 17 * MIB and not refused


def test_traversal_arrow(arrow: Any) -> None:
    """An Arrow table's buffers hang on the table, for it makes new buffer objects each time."""
    table = arrow.table({"a": np.arange(MIB), "b": [f"{i:8}" for i in range(MIB)]})
    found, _ = find_buffers(({"table": table},), MIB)
    assert sum(item.buffer.nbytes for item in found) >= 10 * MIB
    assert all(item.anchor is table for item in found)


def test_pieces_of_one_owner_are_joined() -> None:
    """Pieces that touch or overlap become one; those of different owners do not."""
    one, two = object(), object()

    def piece(address: int, nbytes: int, owner: object) -> Found:
        return Found(Buffer(address, nbytes, owner, None), "")

    joined = merge_ranges([piece(100, 50, one), piece(0, 100, one), piece(120, 10, two)])
    assert [(f.buffer.address, f.buffer.nbytes) for f in joined] == [(0, 150)]
    apart = merge_ranges([piece(0, 100, one), piece(100, 50, two), piece(500, 5, one)])
    assert [(f.buffer.address, f.buffer.nbytes) for f in apart] == [(0, 100), (100, 50), (500, 5)]
