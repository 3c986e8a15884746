"""What containers and service managers take away, and the files that docs/deploy.md shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ksmpy
from support import confine
from test_cli import needs_engine

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")

_MERGE = """
import numpy as np, ksmpy
a = np.random.default_rng(0).random(1 << 18)
b = a.copy()
with ksmpy.Engine() as engine:
    for each in a, b:
        engine.register(each)
    engine.scan(2, eager=True)
    print(engine.freeze, engine.tracking, engine.stats().saved_bytes >> 20)
    before = a.copy()
    b[::512] = 1
    assert (a == before).all() and (b[::512] == 1).all()
    features = [check for check in ksmpy.doctor() if not check.ok]
print(*sorted({check.hint for check in features if check.detail == "missing"}), sep="|")
"""


def confined(*names: str) -> list[str]:
    """What is printed by a program that merges, where these system calls are refused."""
    done = subprocess.run(
        [sys.executable, "-m", "support.confine", ",".join(names), sys.executable, "-c", _MERGE],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_engine
@pytest.mark.skipif(not confine.possible(), reason="no seccomp filter for this machine here")
def test_what_dockers_profile_refuses_costs_no_byte() -> None:
    """Without the system call, and without the device that goes around it, pages are frozen by
    signals; and what is missing then is not put down to the kernel's age.
    """
    chosen, hints = (*confined(*confine.DOCKER), "")[:2]
    if os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        with ksmpy.Engine() as engine:
            assert chosen == f"{engine.freeze} {engine.tracking} 1"
        return
    assert chosen == "signal checksum 1"
    assert hints == "goes with userfaultfd: see above"


@needs_engine
@pytest.mark.skipif(not confine.possible(), reason="no seccomp filter for this machine here")
def test_a_profile_with_userfaultfd_is_as_good_as_none() -> None:
    """The rest that Docker refuses is not needed."""
    chosen = confined(*(name for name in confine.DOCKER if name != "userfaultfd"))[0]
    with ksmpy.Engine() as engine:
        assert chosen == f"{engine.freeze} {engine.tracking} 1"


def blocks(kind: str) -> list[str]:
    """Of the page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_units_are_sound(tmp_path: Path) -> None:
    """Systemd itself finds nothing wrong with them, but that it knows no such user or program."""
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    units = blocks("ini")
    assert len(units) == 2
    for unit in units:
        path = tmp_path / unit.partition("\n")[0].removeprefix("# ")
        path.write_text(re.sub(r"/srv/app/bin/\S+", sys.executable, unit))
        done = subprocess.run(
            [verify, "verify", "--man=no", str(path)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert path.name not in done.stderr, done.stderr


def test_the_pod_fits_kubernetes_schema() -> None:
    """Where its schema is installed (pip install kubernetes-validate)."""
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    (pod,) = blocks("yaml")
    validate.validate(yaml.safe_load(pod), "1.30", strict=True)
