"""The red-black tree beside a sorted list, with sequences that shrink when they fail."""

from __future__ import annotations

import bisect
import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from c_programs import SANITIZERS, run_c_program

CSRC = Path(__file__).resolve().parents[1] / "csrc"
NONE = 0xFFFFFFFF
CAPACITY = 64
LEFT, RIGHT = 0, 1


class Node(ctypes.Structure):
    """struct rb_node."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("left", "right", "parent_color")]


class Tree(ctypes.Structure):
    """struct rb_tree."""

    _fields_ = [("root", ctypes.c_uint32)]


class Arena(ctypes.Structure):
    """struct rb_arena."""

    _fields_ = [("base", ctypes.c_void_p), ("stride", ctypes.c_size_t)]


def load_rbtree(directory: Path) -> ctypes.CDLL:
    """Compile rbtree.c alone: the extension does not export its inner functions."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    library = directory / "rbtree.so"
    source = CSRC / "base" / "rbtree.c"
    command = ["cc", "-shared", "-fPIC", "-O1", f"-I{CSRC}", "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    lib = ctypes.CDLL(str(library))
    for name in ("rb_first", "rb_last", "rb_next", "rb_prev"):
        getattr(lib, name).restype = ctypes.c_uint32
    lib.rb_check.restype = ctypes.c_int64
    return lib


class TreeMachine(RuleBasedStateMachine):
    """Each free index may be inserted, each used one erased or replaced by a free one."""

    lib: ClassVar[ctypes.CDLL]

    def __init__(self) -> None:
        super().__init__()
        self.nodes = (Node * CAPACITY)()
        self.keys: dict[int, int] = {}
        self.tree = Tree(NONE)
        self.order: list[tuple[int, int]] = []  # (key, index), the truth
        base = ctypes.cast(self.nodes, ctypes.c_void_p)
        self.arena = ctypes.byref(Arena(base, ctypes.sizeof(Node)))

    def free_index(self, choice: int) -> int:
        free = [i for i in range(CAPACITY) if i not in self.keys]
        return free[choice % len(free)]

    @precondition(lambda self: len(self.keys) < CAPACITY)
    @rule(key=st.integers(0, 20), choice=st.integers(0, CAPACITY))
    def insert(self, key: int, choice: int) -> None:
        index = self.free_index(choice)
        parent, at, side = NONE, self.tree.root, LEFT
        while at != NONE:
            parent = at
            side = RIGHT if (self.keys[at], at) < (key, index) else LEFT
            at = self.nodes[at].right if side == RIGHT else self.nodes[at].left
        self.keys[index] = key
        self.lib.rb_link(self.arena, ctypes.byref(self.tree), index, ctypes.c_uint32(parent), side)
        bisect.insort(self.order, (key, index))

    @precondition(lambda self: self.keys)
    @rule(choice=st.integers(0, CAPACITY))
    def erase(self, choice: int) -> None:
        key, index = self.order.pop(choice % len(self.order))
        del self.keys[index]
        self.lib.rb_erase(self.arena, ctypes.byref(self.tree), index)

    @precondition(lambda self: 0 < len(self.keys) < CAPACITY)
    @rule(choice=st.integers(0, CAPACITY))
    def replace(self, choice: int) -> None:
        """Only an index that keeps (key, index) in order may take the place."""
        position = choice % len(self.order)
        key, index = self.order[position]
        below = self.order[position - 1] if position else (-1, -1)
        above = self.order[position + 1] if position + 1 < len(self.order) else (99, 99)
        for new in range(CAPACITY):
            if new not in self.keys and below < (key, new) < above:
                self.lib.rb_replace(self.arena, ctypes.byref(self.tree), index, new)
                del self.keys[index]
                self.keys[new] = key
                self.order[position] = (key, new)
                return

    def traverse(self, first: str, step: str) -> list[int]:
        at = getattr(self.lib, first)(self.arena, ctypes.byref(self.tree))
        seen: list[int] = []
        while at != NONE and len(seen) <= CAPACITY:
            seen.append(at)
            at = getattr(self.lib, step)(self.arena, at)
        return seen

    @invariant()
    def the_tree_is_sound_and_in_order(self) -> None:
        count = self.lib.rb_check(self.arena, ctypes.byref(self.tree), CAPACITY)
        assert count == len(self.order)
        assert self.traverse("rb_first", "rb_next") == [index for _, index in self.order]
        assert self.traverse("rb_last", "rb_prev") == [index for _, index in reversed(self.order)]


def test_any_sequence_of_operations_agrees_with_a_sorted_list(tmp_path: Path) -> None:
    """Order, count and every red-black rule hold after each step of any sequence."""
    TreeMachine.lib = load_rbtree(tmp_path)
    run_state_machine_as_test(
        TreeMachine, settings=settings(max_examples=60, stateful_step_count=60, deadline=None)
    )


@pytest.mark.parametrize("sanitize", ["", *SANITIZERS])
def test_c_program(sanitize: str) -> None:
    """Long random runs beside a model, every order of a few elements, and the checker itself."""
    run_c_program("test_rbtree", sanitize)
