"""System calls of libraries in C that meet a freeze come out as if there had been none."""

from __future__ import annotations

import pytest

from conftest import Mode
from support.build import shared_library
from support.pause import preloaded
from support.procs import python_ok

pytestmark = pytest.mark.timeout(300)

KINDS = (
    "read", "stored read", "checked read", "pread", "readv", "readv behind a header", "preadv",
    "preadv2", "fread", "recv", "recvfrom", "recvmsg", "epoll_wait", "poll", "getrandom",
)  # fmt: skip


#: How libraries are linked: what they call is found when they are loaded, or at the first call;
#: where that stands is made read-only, or not; and it is reached by a piece of code, or directly.
LINKED = {
    "at once": ("-Wl,-z,now,-z,relro",),
    "at the first call": ("-Wl,-z,lazy,-z,relro",),
    "unsealed": ("-Wl,-z,now,-z,norelro",),
    "directly": ("-fno-plt",),
}


def test_calls_into_frozen_memory_come_out_right(mode: Mode) -> None:
    """They wait, and then have their bytes; a datagram that is lost is said to be."""
    library = str(shared_library("calls"))
    kinds = (*KINDS, "sigaltstack") if mode.efault_ok else KINDS
    python_ok("-m", "support.retries", library, *mode, *kinds, env=preloaded({}))


@pytest.mark.parametrize("linked", LINKED)
def test_libraries_are_led_however_linked(mode: Mode, linked: str) -> None:
    """And what the linker has made read-only is so again."""
    library = str(shared_library("calls", *LINKED[linked]))
    python_ok("-m", "support.retries", library, *mode, "read", "stored read", env=preloaded({}))
