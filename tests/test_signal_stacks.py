"""Nothing is frozen where the kernel may have to put a signal's frame: it would end the process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import ksmpy
from conftest import Mode
from support import memory, oracle
from support.build import shared_library
from support.oracle import PAGE
from support.patience import patience
from support.procs import python_ok

PAGES = 256
FIRST, COUNT = 100, 8  # pages of the stack


@pytest.fixture
def stacks() -> Any:
    return ctypes.CDLL(str(shared_library("stacks")))


def _pair() -> tuple[Any, Any]:
    one = memory.distinct(PAGES)
    return one, memory.twin(one)


def _merged(engine: Any, arrays: tuple[Any, Any]) -> int:
    """How many pages of the arrays are overlays in the end."""
    for array in arrays:
        engine.register(array)
    engine.scan(3, eager=True)
    return int(engine.stats().merging_pages)


def _with_stack(mode: Mode) -> int:
    """As many as can be while a stack lies in one of them: its pages have nobody to share with."""
    return 2 * (PAGES - COUNT) if mode.efault_ok else 2 * PAGES


def _take(stacks: Any, array: Any) -> None:
    at = memory.address_of(array) + FIRST * PAGE
    assert stacks.stacks_set(ctypes.c_void_p(at), ctypes.c_size_t(COUNT * PAGE)) == 0


@contextmanager
def _in_thread(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """A thread that begins with one, and does the other when what is yielded is called."""
    begun, over = threading.Event(), threading.Event()

    def run() -> None:
        begin()
        begun.set()
        over.wait(patience(60))
        end()

    def finish() -> None:
        over.set()
        thread.join()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert begun.wait(patience(60))
        yield finish
    finally:
        finish()


def test_a_stack_that_a_thread_sets_stays_out(engine: Any, mode: Mode, stacks: Any) -> None:
    """And is merged once the thread has it no more."""
    warmup = _pair()
    _merged(engine, warmup)  # from the first freeze on calls are seen
    del warmup
    arrays = _pair()
    before = [array.copy() for array in arrays]
    take = lambda: _take(stacks, arrays[0])  # noqa: E731
    with _in_thread(take, lambda: stacks.stacks_disable()) as finish:
        assert _merged(engine, arrays) == _with_stack(mode)
        if mode.efault_ok:
            stack = arrays[0][FIRST * PAGE : (FIRST + COUNT) * PAGE]
            assert not oracle.maps_store(*memory.span(stack))
        finish()
        engine.scan(3, eager=True)
        assert engine.stats().merging_pages == 2 * PAGES
    assert all((a == b).all() for a, b in zip(arrays, before, strict=True))


def test_the_stack_of_a_thread_that_has_ended_is_merged(engine: Any, stacks: Any) -> None:
    """Most threads end without a word about their stacks."""
    _merged(engine, _pair())
    arrays = _pair()
    thread = threading.Thread(target=lambda: _take(stacks, arrays[0]))
    thread.start()
    thread.join()
    assert _merged(engine, arrays) == 2 * PAGES


#: Two equal arrays, the first of which has the main thread's stack.
STACK = """
import ctypes, os, sys, threading
import ksmpy
from support import memory

library, pages, first, count, *mode = sys.argv[1:]
one = memory.distinct(int(pages))
arrays = one, memory.twin(one)
at = memory.address_of(one) + int(first) * 4096
assert ctypes.CDLL(library).stacks_set(ctypes.c_void_p(at), ctypes.c_size_t(int(count) * 4096)) == 0
"""

CHILD = (
    STACK
    + """
engine = ksmpy.Engine(freeze=mode[0], tracking=mode[1], store=ksmpy.Store.anonymous())
for array in arrays:
    engine.register(array)

def work():
    engine.scan(3, eager=True)
    print(engine.stats().merging_pages, flush=True)

if os.fork() == 0:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
engine.close()
"""
)

MAIN = (
    STACK
    + """
def work():
    engine = ksmpy.Engine(freeze=mode[0], tracking=mode[1])
    for array in arrays:
        engine.register(array)
    made.set()
    ready.wait()
    engine.scan(3, eager=True)
    print(engine.stats().merging_pages)
    engine.close()

made, ready = threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
made.wait()
ready.set()
thread.join()
"""
)


def _alone(code: str, mode: Mode) -> str:
    """What one of them prints."""
    library = str(shared_library("stacks"))
    return python_ok("-c", code, library, str(PAGES), str(FIRST), str(COUNT), *mode)


def test_a_child_has_the_stack_of_the_thread_that_forked(mode: Mode) -> None:
    """Whatever number the thread has there, and whichever thread merges there."""
    assert _alone(CHILD, mode) == f"{_with_stack(mode)}\n"


def test_the_stack_of_the_main_thread_stays_out(mode: Mode) -> None:
    """Whoever makes the engine: under `ksmpy run` that is a thread of its own."""
    assert _alone(MAIN, mode) == f"{_with_stack(mode)}\n"


def test_the_stack_of_who_makes_the_engine_stays_out(mode: Mode, stacks: Any) -> None:
    """It was set before there was anything to see it: by faulthandler, say."""
    arrays = _pair()
    found = []

    def work() -> None:
        _take(stacks, arrays[0])
        with ksmpy.Engine(freeze=mode.freeze, tracking=mode.tracking) as engine:
            found.append(_merged(engine, arrays))
        stacks.stacks_disable()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [_with_stack(mode)]
