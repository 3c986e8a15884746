"""What the demo's workers run: safetensors files read, and sentences turned into vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksmpy.demo.encoder import Encoder, Tokenizer, _gelu
from ksmpy.demo.fleet import SENTENCES
from ksmpy.demo.weights import load, read_layout
from ksmpy.errors import KsmpyError
from support.bert import WIDTH, minilm, write_encoder, write_model


@pytest.fixture(scope="module", autouse=True)
def blas() -> None:
    """Threads that numpy's BLAS starts again after a fork are there before a test counts what it
    left behind.
    """
    square = np.ones((512, 512), np.float32)
    np.matmul(square, square)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 10 MB."""
    return write_encoder(tmp_path_factory.mktemp("small"), words=1000)


# ---- safetensors -----------------------------------------------------------------------------


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Names, types, shapes and values come back; the bytes of the file are all there."""
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    path = write_model(tmp_path / "m", tensors)
    weights = load(read_layout(path))
    assert set(weights.tensors) == set(tensors)
    for name, values in tensors.items():
        assert weights.tensors[name].dtype == values.dtype
        assert np.array_equal(weights.tensors[name], values)
        assert weights.tensors[name].shape == values.shape
    assert weights.data.tobytes() == path.read_bytes()


def test_each_load_has_memory_of_its_own(small: Path) -> None:
    """Writing to one loaded model changes neither another one nor the file."""
    layout = read_layout(small)
    first, second = load(layout), load(layout)
    before = small.read_bytes()
    first.data[:] = 0
    assert second.data.tobytes() == before == small.read_bytes()


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
    small: Path, edit: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Whatever is wrong with a file is one error that names it, never a wrong tensor."""
    data = small.read_bytes()
    path = tmp_path / "broken"
    path.write_bytes(edit(data))
    assert path.read_bytes() != data
    with pytest.raises(KsmpyError, match="broken is not a safetensors file"):
        read_layout(path)


# ---- the encoder -----------------------------------------------------------------------------


def encoder(path: Path) -> Encoder:
    return Encoder(load(read_layout(path)), path.parent)


# What the tokenizers package makes of them, with the tokenizer.json of the model.
TOKENS = {
    "": [101, 102],
    "Hello, world!": [101, 7592, 1010, 2088, 999, 102],
    "Naïve CAFÉ in Ångström": [101, 15743, 7668, 1999, 17076, 15687, 102],
    "日本語 café": [101, 1864, 1876, 1950, 7668, 102],
    "It costs $5.00 (a+b=c).": [
        *(101, 2009, 5366, 1002, 1019, 1012, 4002, 1006, 1037, 1009, 1038, 1027, 1039, 1007),
        *(1012, 102),
    ],
    "unaffable embeddings": [101, 14477, 20961, 3468, 7861, 8270, 4667, 2015, 102],
    "tab\tnull\0 \ufffd zero\u200bwidth": [101, 21628, 19701, 5717, 9148, 11927, 2232, 102],
    "straße İstanbul": [101, 2358, 27807, 9960, 102],
    "\U0001f600 emoji": [101, 100, 7861, 29147, 2072, 102],
    "x" * 101: [101, 100, 102],
    "word " * 400: [101, *[2773] * 254, 102],
}


def test_sentences_become_the_tokens_that_the_model_was_trained_on() -> None:
    """Case, accents, punctuation, Han, unknown and endless words: as the original does it."""
    tokenizer = Tokenizer(minilm().parent / "vocab.txt")
    assert {text: tokenizer.encode(text) for text in TOKENS} == TOKENS


def test_the_longest_pieces_of_a_word_are_taken(small: Path) -> None:
    """A small vocabulary: whole words first, then pieces, then letters, then [UNK]."""
    tokenizer = Tokenizer(small.parent / "vocab.txt")
    pieces = {number: piece for piece, number in tokenizer.tokens.items()}
    told = [pieces[token] for token in tokenizer.encode("The sunny suns ☃")]
    assert told == ["[CLS]", "the", "sun", "##ny", "sun", "##s", "[UNK]", "[SEP]"]


def test_vectors_are_those_that_the_model_s_authors_publish() -> None:
    """The similarities of sbert.net's first example, and a vector that many have printed."""
    encode = encoder(minilm())
    first, second, third = (encode(text) for text in SENTENCES[:3])
    told = [round(float(a @ b), 4) for a, b in ((first, second), (first, third), (second, third))]
    assert told == [0.6660, 0.1046, 0.1411]
    known = [6.7657e-02, 6.3496e-02, 4.8713e-02, 7.9305e-02, 3.7448e-02]
    assert np.allclose(encode("This is an example sentence")[:5], known, atol=1e-6)


def test_a_vector_has_length_1_and_is_the_same_each_time(small: Path) -> None:
    """Bit for bit the same, from another copy of the weights too; other sentences, others."""
    first, second = encoder(small), encoder(small)
    vectors = [first(text) for text in SENTENCES]
    for text, vector in zip(SENTENCES, vectors, strict=True):
        assert vector.dtype == np.float32 and vector.shape == (WIDTH,)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6
        assert first(text).tobytes() == second(text).tobytes() == vector.tobytes()
    assert len({vector.tobytes() for vector in vectors}) == len(SENTENCES)


def test_gelu_is_exact_in_float32() -> None:
    """Against the C library's error function."""
    values = np.linspace(-9, 9, 4001, dtype=np.float32)
    exact = [x * 0.5 * (1 + math.erf(x / 2**0.5)) for x in map(float, values)]
    assert np.abs(_gelu(values) - exact).max() < 5e-7


NO_ENCODER: dict[str, Callable[[Path], object]] = {
    "no vocabulary": lambda folder: (folder / "vocab.txt").unlink(),
    "another vocabulary": lambda folder: (folder / "vocab.txt").write_text("a\nb\n"),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "broken configuration": lambda folder: (folder / "config.json").write_text("{"),
    "another configuration": lambda folder: (folder / "config.json").write_text("{}"),
    "other weights": lambda folder: write_model(
        folder / "model.safetensors", {"a": np.zeros((3, 4), np.float32)}
    ),
}


@pytest.mark.parametrize("edit", NO_ENCODER.values(), ids=NO_ENCODER)
def test_what_is_no_encoder_is_refused(edit: Callable[[Path], object], tmp_path: Path) -> None:
    """Weights that cannot answer: an error that names the folder, before any worker merges."""
    path = write_encoder(tmp_path, words=250, layers=1)
    edit(tmp_path)
    with pytest.raises((KsmpyError, OSError), match=re.escape(str(tmp_path))):
        encoder(path)
