"""A machine with a 64-bit Arm processor, emulated: Debian's programs, Python packages and ksmpy.

It cannot run what is installed here, so it has a root file system of its own, in the cache folder,
and sees a copy of the tree, for which ksmpy and the C tests are built with zig's C compiler.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .images import (
    APT_GET,
    Kernel,
    SetupError,
    cache_folder,
    lists_of,
    partial,
    run,
    unpack,
)

ARCH = "arm64"
#: One that can have pages of 16 KiB, too.
PROCESSOR = "cortex-a76"
#: Where the guest has its Python packages.
PACKAGES = Path("/opt/python")

# Nothing is installed yet, so what Debian takes for granted is named, too.
_DEBIAN = (
    *("bash", "coreutils", "dash", "findutils", "grep", "gzip", "hostname", "mawk", "sed", "tar"),
    *("busybox-static", "gcc", "kmod", "libc6-dev", "libnuma1", "make", "mount", "procps"),
    *("python3", "util-linux"),
)
# What ksmpy needs, and its core tests.
_PYTHON = ("cffi", "mmh3", "numpy", "psutil", "hypothesis", "pytest", "pytest-timeout", "rich")
# The C library of that Debian is as old, or newer.
_PLATFORMS = tuple(f"manylinux_2_{minor}_aarch64" for minor in (34, 31, 28, 27, 26, 17))
# What the scripts of the packages would make.
_LINKS = {"bin/cc": "gcc", "bin/awk": "mawk"}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
# The wheels on an index are built for it, too (WHEEL_GLIBC in the Makefile).
_TARGET = "aarch64-linux-gnu.2.28"


def root_with(kernel: Kernel) -> Path:
    """The root file system, made when it is not cached, with the kernel's modules."""
    root = cache_folder() / ARCH
    if not root.exists():
        with partial(root) as unfinished:
            _fill(unfinished)
    modules = root / "usr/lib/modules" / kernel.release
    if not modules.exists():
        print(f"vm: installing Linux {kernel.release}", file=sys.stderr)
        with partial(modules) as unfinished:
            shutil.copytree(
                kernel.root / "lib/modules" / kernel.release,
                unfinished,
                dirs_exist_ok=True,
                copy_function=os.link,
            )
    return root


def _fill(root: Path) -> None:
    print("vm: getting Debian's programs for arm64", file=sys.stderr)
    lists = lists_of(ARCH)
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    run(*APT_GET, *lists, "update")
    downloads = ("-o", f"Dir::Cache={root.parent}", "--download-only", "--no-install-recommends")
    (root.parent / "archives/partial").mkdir(parents=True)
    run(*APT_GET, *lists, *downloads, "-y", "install", *_DEBIAN)
    for package in (root.parent / "archives").glob("*.deb"):
        unpack(package, root)
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    for name, text in _FILES.items():
        (root / name).write_text(text, encoding="utf-8")
    for name in ("shared", "tree"):
        (root / "mnt" / name).mkdir(parents=True)
    _install_python_packages(root)


def _install_python_packages(root: Path) -> None:
    print("vm: getting Python packages for arm64", file=sys.stderr)
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--target", root / PACKAGES.relative_to("/"), "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", version),
        *(word for platform in _PLATFORMS for word in ("--platform", platform)),
        *_PYTHON,
    )


@contextmanager
def built_tree() -> Iterator[Path]:
    """A copy of the tree in the current folder, with ksmpy and the C tests built for the guest."""
    runs = cache_folder() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as name:
        tree = Path(name, "tree")
        files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for file in map(Path, filter(None, files.split("\0"))):
            if file.exists():
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, tree / file)
        print("vm: building for arm64", file=sys.stderr)
        _build(tree)
        yield tree


def _build(tree: Path) -> None:
    zig = f"{shlex.quote(sys.executable)} -m ziglang"
    if subprocess.run(shlex.split(f"{zig} version"), capture_output=True).returncode:
        raise SetupError("ziglang is needed: pip install 'ksmpy[release]'")
    compiler = f"{zig} cc -target {_TARGET}"
    wheels = tree.parent / "wheels"
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"),
        *("--no-cache-dir", "--disable-pip-version-check", "--wheel-dir", wheels, tree),
        env=os.environ
        | {
            "CC": compiler,
            "LDSHARED": f"{compiler} -shared -s",
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        },
    )
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tree)
    run("make", "-C", tree / "tests/c", "all", f"CC={compiler}", f"AR={zig} ar")
