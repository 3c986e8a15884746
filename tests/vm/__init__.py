"""Run a command on another kernel, with more NUMA nodes than this machine has.

``python -m tests.vm --kernel 6.1 --nodes 2 -- pytest tests`` boots one of Debian's kernels in qemu
on top of the file system it was started from, runs the command there and hands its exit code back.
docs/testing.md has the details.
"""

from __future__ import annotations
