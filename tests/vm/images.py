"""Get what a virtual machine needs: an emulator, virtme-ng, and one of Debian's kernels.

Everything but the Debian packages goes to a cache folder, which may be deleted at any time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# What each missing program is installed from.
_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "file": "file",
}
_VIRTME = "virtme-ng==1.42"
# Without a network the answer comes within a minute or two.
_APT_GET = (
    "apt-get",
    "-qq",
    *("-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"),
    *("-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=60"),
)


class SetupError(Exception):
    """Something is missing that cannot be installed from here; the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package; its modules lie in `root`/lib/modules/`release`."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"


def cache_folder() -> Path:
    """``$KSMPY_VM_CACHE``, else ksmpy-vm in the user's cache folder."""
    chosen = os.environ.get("KSMPY_VM_CACHE")
    if chosen:
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "ksmpy-vm").resolve()


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, check=True, text=True, capture_output=True)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is needed, and not here") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:]
        raise SetupError(f"{' '.join(map(str, command))}: {' '.join(last)}") from None
    return done.stdout


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def install_packages() -> None:
    """Install the Debian packages that are missing; `SetupError` names them when not root."""
    missing = [package for program, package in _PACKAGES.items() if _find(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or _find("apt-get") is None:
        raise SetupError(f"missing Debian packages: apt-get install {' '.join(missing)}")
    print(f"vm: installing {' '.join(missing)}", file=sys.stderr)
    _run(*_APT_GET, "update")
    _run(*_APT_GET, "-y", "--no-install-recommends", "install", *missing)


def virtme() -> Path:
    """The folder with virtme-ng's commands, installed into a new environment when missing."""
    bin_folder = cache_folder() / _VIRTME.replace("==", "-") / "bin"
    if not (bin_folder / "vng").exists():
        print(f"vm: installing {_VIRTME}", file=sys.stderr)
        _run(sys.executable, "-m", "venv", "--clear", bin_folder.parent)
        pip = (bin_folder / "pip", "--quiet", "--retries", "1", "--timeout", "20")
        _run(*pip, "install", _VIRTME)
    return bin_folder


def _order(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _cached(series: str) -> Kernel | None:
    roots = (cache_folder() / "kernels").glob(f"{series}.*")
    kernels = (Kernel(root.name, root) for root in roots)
    return max(kernels, key=lambda kernel: _order(kernel.release), default=None)


def _releases(series: str) -> list[str]:
    names = _run("apt-cache", "search", "--names-only", rf"^linux-image-{re.escape(series)}\.[0-9]")
    found = re.findall(r"^linux-image-(\S+-amd64) ", names, flags=re.MULTILINE)
    return [release for release in found if not re.search(r"cloud|rt-", release)]


def kernel(series: str) -> Kernel:
    """Debian's newest kernel of a series such as "6.1", downloaded when it is not cached."""
    cached = _cached(series)
    if cached is not None:
        return cached
    releases = _releases(series)
    if not releases and os.geteuid() == 0:
        _run(*_APT_GET, "update")
        releases = _releases(series)
    if not releases:
        raise SetupError(f"apt knows no package of a {series} kernel (apt-get update?)")
    return _unpack(max(releases, key=_order))


def _unpack(release: str) -> Kernel:
    print(f"vm: getting Linux {release}", file=sys.stderr)
    final = cache_folder() / "kernels" / release
    partial = cache_folder() / "partial" / f"{release}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        download = (*_APT_GET, "-o", "APT::Sandbox::User=root", "download")
        _run(*download, f"linux-image-{release}", cwd=partial)
        (package,) = partial.glob("*.deb")
        _run("dpkg-deb", "-x", package, partial / "root")
        _run(_find("depmod") or "depmod", "-a", "-b", partial / "root", release)
        final.parent.mkdir(exist_ok=True)
        # A rename, so that a run that was interrupted leaves nothing that looks complete.
        (partial / "root").rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Kernel(release, final)
