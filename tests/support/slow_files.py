"""A file whose reads take time and go past the page cache, though nobody asked for O_DIRECT."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .build import shared_library
from .patience import until

_SERVE = (
    "import ctypes, sys; "
    "sys.exit(ctypes.CDLL(sys.argv[1]).serve_slowly(*map(str.encode, sys.argv[2:4]), 1))"
)


@contextmanager
def slow_file(content: Path, folder: Path) -> Iterator[int]:
    """A descriptor of a file with those bytes, on a file system of its own; skips without FUSE."""
    if os.geteuid() or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("mounting a FUSE file system needs root and /dev/fuse")
    folder.mkdir()
    command = [sys.executable, "-c", _SERVE, *map(str, (shared_library("fuse"), folder, content))]
    with subprocess.Popen(command) as server:
        try:
            file = Path(f"/proc/{server.pid}/root{folder}/file")
            until(lambda: file.exists() or server.poll() is not None, "there is no file system")
            if server.poll() is not None:
                pytest.skip("this machine mounts no FUSE file system")
            fd = os.open(file, os.O_RDONLY)
            yield fd
            os.close(fd)
        finally:
            server.kill()
