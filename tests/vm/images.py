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
        """The bootable image. Newer packages have it beside the modules."""
        old = self.root / "boot" / f"vmlinuz-{self.release}"
        return old if old.exists() else self.root / "lib/modules" / self.release / "vmlinuz"


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


def _releases(series: str, suite: tuple[str, ...]) -> list[str]:
    pattern = rf"^linux-image-{re.escape(series)}\.[0-9]"
    names = _run("apt-cache", *suite, "search", "--names-only", pattern)
    found = re.findall(r"^linux-image-(\S+-amd64) ", names, flags=re.MULTILINE)
    return [release for release in found if not re.search(r"cloud|rt-", release)]


def _unstable() -> tuple[str, ...]:
    """Options for apt to look at Debian's unstable suite only, where the newest kernels are: at the
    mirror that this machine uses, with lists of its own, so that this machine's stay as they are.
    """
    places = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    mirror = next((place for place in places.split() if place.rstrip("/").endswith("/debian")), "")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not mirror or not keyring.exists():
        raise SetupError("apt has no mirror of Debian's on this machine")
    own = cache_folder() / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    sources = own / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {mirror} sid main\n", encoding="utf-8")
    (own / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": own / "none",
        "Dir::State": own,
        "Dir::State::status": own / "status",
        "Dir::Cache": own,
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def _look_for(series: str) -> tuple[list[str], tuple[str, ...]]:
    """Releases, and apt's options with which they are had."""
    releases = _releases(series, ())
    if not releases and os.geteuid() == 0:
        for suite in ((), _unstable()):
            _run(*_APT_GET, *suite, "update")
            releases = _releases(series, suite)
            if releases:
                return releases, suite
    return releases, ()


def kernel(series: str) -> Kernel:
    """Debian's newest kernel of a series such as "6.1", downloaded when it is not cached."""
    cached = _cached(series)
    if cached is not None:
        return cached
    releases, suite = _look_for(series)
    if not releases:
        raise SetupError(f"apt knows no package of a {series} kernel (apt-get update?)")
    return _unpack(max(releases, key=_order), suite)


def _unpack(release: str, suite: tuple[str, ...]) -> Kernel:
    print(f"vm: getting Linux {release}", file=sys.stderr)
    final = cache_folder() / "kernels" / release
    partial = cache_folder() / "partial" / f"{release}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        # Newer ones come in parts, of which the image is an empty one.
        pattern = rf"^linux-(image|binary|modules|base)-{re.escape(release)}$"
        packages = _run("apt-cache", *suite, "search", "--names-only", pattern).splitlines()
        download = (*_APT_GET, *suite, "-o", "APT::Sandbox::User=root", "download")
        _run(*download, *(line.split()[0] for line in packages), cwd=partial)
        for package in partial.glob("*.deb"):
            _run("dpkg-deb", "-x", package, partial / "root")
        if not (partial / "root/lib").exists():
            (partial / "root/lib").symlink_to("usr/lib")
        _run(_find("depmod") or "depmod", "-a", "-b", partial / "root", release)
        final.parent.mkdir(exist_ok=True)
        # A rename, so that a run that was interrupted leaves nothing that looks complete.
        (partial / "root").rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Kernel(release, final)
