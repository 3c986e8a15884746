"""The dynamic linker's lock: who holds it may be running code of the program's."""

from __future__ import annotations

import os

import pytest

from support.build import shared_library
from support.procs import PATIENCE, python_ok

# A thread is in a function that dl_iterate_phdr() calls, as those of threadpoolctl are, and lets go
# of the interpreter's lock for a while.
_CODE = """
import ctypes, faulthandler, os, sys, threading, time
import numpy
import ksmpy

faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
engine = ksmpy.Engine(freeze="signal")
one = numpy.full(4 << 20, 7, numpy.uint8)
two, other = one.copy(), numpy.ones(1 << 20, numpy.uint8)
for array in (one, two, other):
    engine.register(array)
del array
inside = threading.Event()

@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
def visit(*_):
    global other
    inside.set()
    time.sleep(0.5)
    if sys.argv[1] == "an array dies":
        other = None
    return 1

looking = threading.Thread(target=ctypes.CDLL(None).dl_iterate_phdr, args=(visit, None))
looking.start()
inside.wait()
scanning = threading.Thread(target=engine.scan, args=(2,), kwargs={"eager": True})
scanning.start()
time.sleep(0.2)
if sys.argv[1] == "a fork":
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
looking.join()
scanning.join()
assert engine.stats().pages_sharing >= 1024 and (one == two).all()
"""


@pytest.mark.parametrize("what", ["a fork", "an array dies"])
def test_nobody_waits_for_who_waits_for_the_linker(what: str) -> None:
    """A scanner that wants the linker's lock holds none that others want meanwhile."""
    python_ok("-c", _CODE, what, str(PATIENCE))


_LOADED = """
import ctypes, os, sys, threading, time
import numpy
import ksmpy

libc = ctypes.CDLL(None)
usual = ctypes.cast(libc.read, ctypes.c_void_p).value
with ksmpy.Engine(freeze="signal") as engine:
    kept = [numpy.ones(1 << 20, numpy.uint8)]
    engine.register(kept[0])
    until = time.monotonic() + 5
    while time.monotonic() < until:  # until nobody looks any more for what was loaded before
        engine.scan(1)
        time.sleep(0.1)
    # CDLL() would hold the interpreter's lock meanwhile.
    loading = threading.Thread(target=libc.dlopen, args=(sys.argv[1].encode(), os.RTLD_NOW))
    loading.start()
    while loading.is_alive():
        engine.scan(1)
        time.sleep(0.01)
    library = ctypes.CDLL(sys.argv[1])
    library.where_read_leads.restype = ctypes.c_void_p
    until = time.monotonic() + float(sys.argv[2])
    assert library.where_read_leads()
    while library.where_read_leads() == usual and time.monotonic() < until:
        engine.scan(1)
        time.sleep(0.01)
    assert library.where_read_leads() != usual
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the library is written for x86-64")
def test_what_is_seen_while_it_is_loaded_is_looked_at_again() -> None:
    """Its table has nothing of the C library's yet; that is no reason to leave it alone."""
    library = shared_library("slow", "-Wl,-z,now")
    python_ok("-c", _LOADED, str(library), str(PATIENCE))
