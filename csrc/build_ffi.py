"""Describe the extension ksmpy._ksmpy to cffi: the declarations are ksmpy.cdef.h, as it stands.

Set KSMPY_DEBUG=1 while building for the engine's own structure checks, at a price in speed.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

# Setuptools wants the sources relative to the project, which is where it runs.
SOURCES, HEADERS = (
    sorted(f"csrc/{path.relative_to(HERE)}" for path in HERE.rglob(kind)) for kind in ("*.c", "*.h")
)

FLAGS = ["-std=c11", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unused-parameter"]  # the functions that cffi generates have some
DEBUG_FLAGS = ["-O1", "-g", "-UNDEBUG", "-DKSMPY_DEBUG"]


def debug_wanted() -> bool:
    return os.environ.get("KSMPY_DEBUG", "0") not in ("", "0")


ffi = FFI()
ffi.cdef((HERE / "ksmpy.cdef.h").read_text(encoding="utf-8"))
# The pointers are PyObject *, which cffi does not know.
ffi.cdef("""
    void ksmpy_collection(void *phase, void *info);
    void ksmpy_sweep_by(void *function);
    int ksmpy_collecting(void);
    void ksmpy_know_interpreter(void);
    void ksmpy_know_no_interpreter(void);
    void ksmpy_interpreter_ends(void);
    void ksmpy_note_main_stack(void);
    void *ksmpy_call_alone(void *function);
    void *ksmpy_look_into(void *containers, void *query);
    void *ksmpy_look_around(void *get_objects, void *get_frames, void *query);
""")
ffi.set_source(
    "ksmpy._ksmpy",
    '#include "ksmpy.h"\n#include "python/collector.h"\n#include "python/interpreter.h"\n'
    '#include "python/objects.h"',
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=FLAGS + (DEBUG_FLAGS if debug_wanted() else ["-O3"]),
    extra_link_args=["-pthread"],
)
