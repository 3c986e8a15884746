"""The C library's calls on mappings, with the types of their arguments: `libc.mmap(...)`."""

from __future__ import annotations

import ctypes

__all__ = ["libc"]

_ADDRESS, _SIZE, _INT, _OFFSET = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = _ADDRESS
libc.mmap.argtypes = [_ADDRESS, _SIZE, _INT, _INT, _INT, _OFFSET]
libc.mremap.argtypes = [_ADDRESS, _SIZE, _SIZE, _INT, _ADDRESS]
libc.mprotect.argtypes = libc.madvise.argtypes = [_ADDRESS, _SIZE, _INT]
libc.munmap.argtypes = libc.mlock.argtypes = [_ADDRESS, _SIZE]
