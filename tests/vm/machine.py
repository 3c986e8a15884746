"""Boot a kernel in qemu on top of this machine's file system and run one command there.

The guest sees the host's files read-only, with throw-away writable layers over the places that
programs write to. Output, exit code and kernel log come back through files in a folder that both
sides can write: the serial console mixes them with kernel messages, and loses the exit code when
the virtio console is a module.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .images import Kernel, cache_folder

TIMED_OUT = 124
NOT_RUN = 125
#: How many times longer than on the host tests may take; it is 10 to 30 for most things.
SLOWNESS = 15

_TROUBLE = re.compile(
    r"BUG:|Oops|WARNING: CPU|general protection|Kernel panic|INFO: task .* blocked"
)
_GUEST = Path(__file__).with_name("guest").resolve()
# Where a machine with files of its own has what it shares with this one.
_SHARED, _TREE = Path("/mnt/shared"), Path("/mnt/tree")
# Folders that virtme-ng makes writable by itself.
_WRITABLE = ("/etc", "/home", "/opt", "/srv", "/tmp", "/usr", "/var")


@dataclass(frozen=True)
class Foreign:
    """What a machine with another processor has in place of this one's files."""

    arch: str
    processor: str
    root: Path
    tree: Path
    """The current folder's, which the guest may write to."""
    packages: Path
    """Where the guest has its Python packages."""


@dataclass(frozen=True)
class Machine:
    """What to boot. `memory` (MiB) and `cpus` are split evenly over `nodes`; `swap` in MiB."""

    kernel: Kernel
    nodes: int = 1
    cpus: int = 4
    memory: int = 4096
    swap: int = 0
    foreign: Foreign | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.cpus < self.nodes or self.cpus % self.nodes:
            raise ValueError(f"{self.cpus} processors cannot be split over {self.nodes} nodes")

    def numa(self) -> Iterator[str]:
        """The options that describe the nodes."""
        cpus = self.cpus // self.nodes
        for node in range(self.nodes):
            first = node * cpus
            processors = f"{first}-{first + cpus - 1}" if cpus > 1 else f"{first}"
            yield from ("--numa", f"{self.memory // self.nodes}M,cpus={processors}")


def _forwarded(machine: Machine) -> dict[str, str]:
    """The guest's environment: of this one what concerns the tests, and this Python first."""
    keep = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("KSMPY_", "PYTEST_", "HYPOTHESIS_"))
        or name in ("CI", "LANG", "NO_COLOR", "VIRTUAL_ENV")
    }
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    modules: tuple[str | None, ...] = (str(_GUEST), os.environ.get("PYTHONPATH"))
    if machine.foreign:
        path = "/usr/bin:/usr/sbin"
        modules = (str(_TREE / "tests/vm/guest"), str(_TREE), str(machine.foreign.packages))
    return keep | {
        "HOME": "/tmp/home",
        "PATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        # The default limit, and a plugin that stretches the limits of single tests.
        "PYTEST_TIMEOUT": os.environ.get("PYTEST_TIMEOUT", "1800"),
        "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} -p patience",
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
        "KSMPY_VM": str(SLOWNESS),
    }


def _script(machine: Machine, command: Sequence[str], shared: Path) -> str:
    """What the guest runs. Swap is compressed memory: real swap entries without a disk."""
    folder = str(_TREE) if machine.foreign else os.getcwd()
    lines = ["#!/bin/sh", f"cd {shlex.quote(folder)} || exit", "mkdir -p /tmp/home"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in _forwarded(machine).items()]
    if machine.swap:
        lines += [
            "modprobe zram",
            f"echo {machine.swap}M >/sys/block/zram0/disksize",
            "mkswap /dev/zram0 >/dev/null && swapon /dev/zram0",
        ]
    output, status, log = (shlex.quote(str(shared / name)) for name in ("output", "status", "log"))
    lines += [
        "dmesg --clear",  # what the boot had to say is not the command's fault
        f"{shlex.join(command)} >{output} 2>&1 </dev/null",
        f"echo $? >{status}.part",
        f"dmesg >{log} 2>&1",
        f"mv {status}.part {status}",
    ]
    return "\n".join(lines) + "\n"


def _vng(machine: Machine, bin_folder: Path, shared: Path) -> list[str]:
    command = [str(bin_folder / "vng"), "--disable-kvm", "--force-9p", "--user", "root"]
    command += ["--run", str(machine.kernel.image)]
    command += ["--cpus", str(machine.cpus), "--memory", f"{machine.memory}M", *machine.numa()]
    # By default the emulator offers its memory to the host's KSM, whose counters tests look at.
    processor = f" -cpu {machine.foreign.processor}" if machine.foreign else ""
    command += [f"--qemu-opts=-machine mem-merge=off{processor}"]
    if foreign := machine.foreign:
        command += ["--arch", foreign.arch, "--root", str(foreign.root)]
        command += ["--rwdir", f"{_SHARED}={shared}", "--rwdir", f"{_TREE}={foreign.tree}"]
        return [*command, "--", "sh", str(_SHARED / "run")]
    command += ["--rwdir", str(shared)]
    here = os.getcwd()
    if not here.startswith(tuple(f"{folder}/" for folder in _WRITABLE)):
        command += ["--overlay-rwdir", here]
    return [*command, "--", "sh", str(shared / "run")]


@contextmanager
def _started(
    command: list[str], bin_folder: Path, console: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The emulator in a process group of its own, which is gone when the block ends."""
    path = os.pathsep.join(
        (str(bin_folder), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")
    )
    with console.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": path},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def _follow(process: subprocess.Popen[bytes], shared: Path, deadline: float) -> bool:
    """Copy the guest's output to ours until it is done; False when time ran out first."""
    with (shared / "output").open("rb") as output:
        while True:
            ended = process.poll() is not None or (shared / "status").exists()
            while chunk := output.read(1 << 16):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            if ended:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _report_trouble(shared: Path) -> None:
    log = shared / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line in filter(_TROUBLE.search, lines):
        print(f"vm: kernel: {line}", file=sys.stderr)


def run(machine: Machine, command: Sequence[str], *, bin_folder: Path, seconds: float) -> int:
    """Boot, run `command` in the current folder as root, and give its exit code.

    `TIMED_OUT` when it takes longer than `seconds`, boot included; `NOT_RUN` when the machine went
    down before the command ended, with the end of its console on stderr.
    """
    runs = cache_folder() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as name:
        shared = Path(name)
        (shared / "output").touch()
        seen = _SHARED if machine.foreign else shared
        (shared / "run").write_text(_script(machine, command, seen))
        with _started(_vng(machine, bin_folder, shared), bin_folder, shared / "console") as process:
            in_time = _follow(process, shared, time.monotonic() + seconds)
        _report_trouble(shared)
        if not in_time:
            print(f"vm: not done after {seconds:g} s", file=sys.stderr)
            return TIMED_OUT
        if not (shared / "status").exists():
            console = (shared / "console").read_text(errors="replace").splitlines()
            print("vm: the machine went down:", *console[-30:], sep="\n", file=sys.stderr)
            return NOT_RUN
        return int((shared / "status").read_text())
