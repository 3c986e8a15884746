"""To become another user, for good, in a process of its own."""

from __future__ import annotations

import ctypes
import os

__all__ = ["become"]

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 4, 24


def become(uid: int, *, dumpable: bool = True) -> None:
    """Give up all that root may do, if that is who this is. What is to be imported is imported
    before: the interpreter may lie where the other user cannot look.
    """
    if uid == os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if dumpable:  # one that has changed its user is not, which hides its own /proc files from it
        assert libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
