"""Get what a virtual machine needs: an emulator, virtme-ng, and one of Debian's kernels.

Everything but the Debian packages goes to a cache folder, which may be deleted at any time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: The machines that there are: Debian's names for kernels, of which the last one has larger pages.
FLAVOURS = ("amd64", "arm64", "arm64-16k")
_NATIVE = "amd64"
# What each missing program is installed from; an emulator for each of Debian's architectures.
_EMULATORS = {
    "amd64": {"qemu-system-x86_64": "qemu-system-x86"},
    "arm64": {"qemu-system-aarch64": "qemu-system-arm"},
}
_PACKAGES = {
    "busybox": "busybox-static",
    "depmod": "kmod",
    "file": "file",
}
_VIRTME = "virtme-ng==1.42"
# Without a network the answer comes within a minute or two.
APT_GET = (
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


def arch_of(flavour: str) -> str:
    """Debian's name of the architecture."""
    return flavour.partition("-")[0]


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a command printed; `SetupError` if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, check=True, text=True, capture_output=True)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is needed, and not here") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:]
        raise SetupError(f"{' '.join(map(str, command))}: {' '.join(last)}") from None
    return done.stdout


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def install_packages(flavour: str) -> None:
    """Install the Debian packages that are missing; `SetupError` names them when not root."""
    needed = _EMULATORS[arch_of(flavour)] | _PACKAGES
    missing = [package for program, package in needed.items() if _find(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or _find("apt-get") is None:
        raise SetupError(f"missing Debian packages: apt-get install {' '.join(missing)}")
    print(f"vm: installing {' '.join(missing)}", file=sys.stderr)
    run(*APT_GET, "update")
    run(*APT_GET, "-y", "--no-install-recommends", "install", *missing)


def virtme() -> Path:
    """The folder with virtme-ng's commands, installed into a new environment when missing."""
    bin_folder = cache_folder() / _VIRTME.replace("==", "-") / "bin"
    if not (bin_folder / "vng").exists():
        print(f"vm: installing {_VIRTME}", file=sys.stderr)
        run(sys.executable, "-m", "venv", "--clear", bin_folder.parent)
        pip = (bin_folder / "pip", "--quiet", "--retries", "1", "--timeout", "20")
        run(*pip, "install", _VIRTME)
    return bin_folder


def _order(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _cached(series: str, flavour: str) -> Kernel | None:
    roots = (cache_folder() / "kernels").glob(f"{series}.*-{flavour}")
    kernels = (Kernel(root.name, root) for root in roots)
    return max(kernels, key=lambda kernel: _order(kernel.release), default=None)


def _releases(series: str, flavour: str, lists: tuple[str, ...]) -> list[str]:
    pattern = rf"^linux-image-{re.escape(series)}\.[0-9]"
    names = run("apt-cache", *lists, "search", "--names-only", pattern)
    found = re.findall(rf"^linux-image-(\S+-{flavour}) ", names, flags=re.MULTILINE)
    return [release for release in found if not re.search(r"cloud|rt-", release)]


def _lists(name: str, arch: str, sources: Mapping[str, Path]) -> tuple[str, ...]:
    """Options for apt to have lists of its own, so that this machine's stay as they are."""
    own = cache_folder() / name
    for folder in ("lists/partial", "archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    (own / "status").touch()
    settings = {
        **sources,
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Sandbox::User": "root",
        "Dir::State": own,
        "Dir::State::status": own / "status",
        "Dir::Cache": own,
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def lists_of(arch: str) -> tuple[str, ...]:
    """Options for apt to look at this machine's suites, for an architecture."""
    return () if arch == _NATIVE else _lists(f"apt-{arch}", arch, {})


def _unstable(arch: str) -> tuple[str, ...]:
    """Options for apt to look at Debian's unstable suite only, where the newest kernels are: at the
    mirror that this machine uses.
    """
    places = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    mirror = next((place for place in places.split() if place.rstrip("/").endswith("/debian")), "")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not mirror or not keyring.exists():
        raise SetupError("apt has no mirror of Debian's on this machine")
    own = cache_folder() / f"apt-sid-{arch}"
    own.mkdir(parents=True, exist_ok=True)
    sources = own / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {mirror} sid main\n", encoding="utf-8")
    settings = {"Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": own / "none"}
    return _lists(own.name, arch, settings)


def _look_for(series: str, flavour: str) -> tuple[list[str], tuple[str, ...]]:
    """Releases, and apt's options with which they are had."""
    arch = arch_of(flavour)
    releases = _releases(series, flavour, lists_of(arch))
    if not releases and os.geteuid() == 0:
        for lists in (lists_of(arch), _unstable(arch)):
            run(*APT_GET, *lists, "update")
            releases = _releases(series, flavour, lists)
            if releases:
                return releases, lists
    return releases, lists_of(arch)


def kernel(series: str, flavour: str) -> Kernel:
    """Debian's newest kernel of a series such as "6.1", downloaded when it is not cached."""
    cached = _cached(series, flavour)
    if cached is not None:
        return cached
    releases, lists = _look_for(series, flavour)
    if not releases:
        raise SetupError(f"apt knows no package of a {series} kernel (apt-get update?)")
    return _unpack(max(releases, key=_order), lists)


@contextmanager
def partial(final: Path) -> Iterator[Path]:
    """A folder that becomes `final` when the block ends: by a rename, so that a run that was
    interrupted leaves nothing that looks complete. Next to it there is room for downloads.
    """
    work = cache_folder() / "partial" / f"{final.name}.{os.getpid()}"
    (work / "root").mkdir(parents=True)
    try:
        yield work / "root"
        final.parent.mkdir(exist_ok=True)
        (work / "root").rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpack(package: Path, root: Path) -> None:
    """Unpack a Debian package. Links in the place of its folders stay."""
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", package), stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            ("tar", "-x", "--keep-directory-symlink", "-C", root), stdin=tar.stdout, check=False
        )
    if done.returncode or tar.returncode:
        raise SetupError(f"{package} cannot be unpacked")


def index_modules(root: Path, release: str) -> None:
    """Have the modules of a kernel found."""
    run(_find("depmod") or "depmod", "-a", "-b", root, release)


def _unpack(release: str, lists: tuple[str, ...]) -> Kernel:
    print(f"vm: getting Linux {release}", file=sys.stderr)
    final = cache_folder() / "kernels" / release
    with partial(final) as root:
        # Newer ones come in parts, of which the image is an empty one.
        pattern = rf"^linux-(image|binary|modules|base)-{re.escape(release)}$"
        packages = run("apt-cache", *lists, "search", "--names-only", pattern).splitlines()
        download = (*APT_GET, *lists, "-o", "APT::Sandbox::User=root", "download")
        run(*download, *(line.split()[0] for line in packages), cwd=root.parent)
        for package in root.parent.glob("*.deb"):
            unpack(package, root)
        if not (root / "lib").exists():
            (root / "lib").symlink_to("usr/lib")
        index_modules(root, release)
    return Kernel(release, final)
