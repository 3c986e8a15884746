"""Run a program with system calls refused, as a container's seccomp profile does.

python -m support.confine NAME,NAME... COMMAND [ARGS...]
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

#: Numbers on x86-64 and on arm64, by name.
NUMBERS = {
    "userfaultfd": (323, 282),
    "mbind": (237, 235),
    "get_mempolicy": (239, 236),
    "set_mempolicy": (238, 237),
    "move_pages": (279, 239),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "mount": (165, 40),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "ioctl": (16, 29),
    "madvise": (28, 233),
    "mremap": (25, 216),
    "pread64": (17, 67),
    "seccomp": (317, 277),
}
#: Of these, what Docker's default profile refuses to a container without capabilities.
DOCKER = tuple(NUMBERS)[: tuple(NUMBERS).index("fsmount") + 1]

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_LOAD_NUMBER = (0x20, 0, 0, 0)  # seccomp_data.nr
_RETURN_ALLOW = (0x06, 0, 0, 0x7FFF0000)
_RETURN_EPERM = (0x06, 0, 0, 0x00050000 | errno.EPERM)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(names: tuple[str, ...]) -> None:
    """EPERM for these system calls from now on, in all threads and children; OSError."""
    column = 0 if platform.machine() == "x86_64" else 1
    code = [_LOAD_NUMBER]
    for name in filter(None, names):
        code += [(0x15, 0, 1, NUMBERS[name][column]), _RETURN_EPERM]
    code.append(_RETURN_ALLOW)
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code), packed)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    seccomp = NUMBERS["seccomp"][column], _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC
    if libc.syscall(*seccomp, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp")


def possible() -> bool:
    """Whether there are numbers for this machine, and a kernel that takes filters."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        return False
    return platform.machine() in ("x86_64", "aarch64") and "errno" in actions


if __name__ == "__main__":
    refuse(tuple(sys.argv[1].split(",")))
    os.execvp(sys.argv[2], sys.argv[2:])
