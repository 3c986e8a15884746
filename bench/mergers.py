"""The two sides of every comparison behind one interface: ksmpy's engine and the kernel's KSM."""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import ksmpy
from ksmpy.watch import kernel

from .data import PAGE, Bytes, whole_pages

# How the kernel's KSM is tuned while it is measured: as fast as its settings let it.
TUNED = {"pages_to_scan": 10_000, "sleep_millisecs": 0, "smart_scan": 0}
_PATIENCE = 120.0
# So many passes without another page saved, and there is none to come.
_FRUITLESS = 5


class Merger(ABC):
    """Something that merges equal pages of this process."""

    @abstractmethod
    def offer(self, *arrays: Bytes) -> None:
        """Register arrays."""

    @abstractmethod
    def merge(self, saved: int) -> None:
        """Work until `saved` pages are saved, zero pages included; RuntimeError if it stalls."""

    @abstractmethod
    def saved(self) -> int:
        """Pages saved now."""

    @abstractmethod
    def align(self) -> None:
        """Go to the start of a pass; what happens until then is not measured."""

    @abstractmethod
    def one_pass(self) -> None:
        """Work from the start of a pass to its end."""

    @abstractmethod
    def run(self, **knobs: int) -> None:
        """Let it work in the background, with these knobs beside its defaults."""

    @abstractmethod
    def pause(self) -> None:
        """Stop that; nothing is unmerged."""

    @abstractmethod
    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time its work has cost so far: user and system."""

    @abstractmethod
    def withdraw(self) -> None:
        """Unmerge and unregister everything."""


class Ksmpy(Merger):
    """An engine that is driven from the measuring thread."""

    def __init__(self, **options: Any) -> None:
        self.engine = ksmpy.Engine(**options)
        self.regions: list[ksmpy.Region] = []

    def offer(self, *arrays: Bytes) -> None:
        self.regions += [self.engine.register(array) for array in arrays]

    def saved(self) -> int:
        stats = self.engine.stats()
        return stats.pages_sharing + stats.ksm_zero_pages

    def merge(self, saved: int) -> None:
        for _ in range(3):
            self.engine.scan(eager=True)
            if self.saved() >= saved:
                return
        raise RuntimeError(f"{self.saved()} pages saved instead of {saved}: {self.engine.stats()}")

    def align(self) -> None:
        """Nothing to do: a scan of the engine is always a whole pass."""

    def one_pass(self) -> None:
        self.engine.scan()

    def run(self, **knobs: int) -> None:
        for name, value in knobs.items():
            setattr(self.engine.knobs, name, value)
        self.engine.knobs.run = 1

    def pause(self) -> None:
        self.engine.knobs.run = 0

    def cpu(self) -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime, usage.ru_stime

    def withdraw(self) -> None:
        self.engine.knobs.run = 0
        for region in self.regions:
            region.release()
        self.regions.clear()


def _ksmd() -> Path:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "ksmd":
                return comm.parent
        except OSError:
            continue  # it ended while we looked
    raise LookupError("no ksmd thread to be seen")


class Kernel(Merger):
    """The kernel's KSM; to be used inside `kernel.settings`."""

    def __init__(self) -> None:
        self.ksmd = _ksmd()
        self.arrays: list[Bytes] = []

    def offer(self, *arrays: Bytes) -> None:
        for array in arrays:
            address, pages = whole_pages(array)
            kernel.mergeable(address, pages * PAGE)
            self.arrays.append(array)

    def _counter(self, name: str) -> int:
        try:
            return int((kernel.SYSFS / name).read_text())
        except FileNotFoundError:
            return 0

    def saved(self) -> int:
        return self._counter("pages_sharing") + self._counter("ksm_zero_pages")

    def merge(self, saved: int) -> None:
        kernel.write("run", 1)
        passes, last = self._counter("full_scans"), 0
        while (now := self.saved()) < saved:
            if now != last:
                passes, last = self._counter("full_scans"), now
            elif self._counter("full_scans") > passes + _FRUITLESS:
                raise RuntimeError(f"{now} pages saved instead of {saved}: {kernel.read()}")
            time.sleep(0.001)

    def align(self) -> None:
        kernel.write("run", 1)
        self.one_pass()

    def one_pass(self) -> None:
        before = self._counter("full_scans")
        deadline = time.monotonic() + _PATIENCE
        while self._counter("full_scans") == before:
            if time.monotonic() > deadline:
                raise RuntimeError("the kernel's KSM does not finish a pass")
            time.sleep(0.0005)

    def run(self, **knobs: int) -> None:
        for name, value in knobs.items():
            kernel.write(name, value)
        kernel.write("run", 1)

    def pause(self) -> None:
        kernel.write("run", 0)

    def cpu(self) -> tuple[float, float]:
        # Nanoseconds on a processor come first in schedstat; ksmd is all system time.
        return 0.0, int((self.ksmd / "schedstat").read_text().split()[0]) / 1e9

    def withdraw(self) -> None:
        kernel.write("run", 2)
        for array in self.arrays:
            address, pages = whole_pages(array)
            kernel.unmergeable(address, pages * PAGE)
        self.arrays.clear()
        kernel.write("run", 0)
