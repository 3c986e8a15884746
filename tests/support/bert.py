"""Sentence encoders for tests: small ones with random weights, and the real one where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksmpy.demo.weights import find_model
from ksmpy.errors import KsmpyError

#: Numbers in each vector.
WIDTH = 384


def minilm() -> Path:
    """The weights of all-MiniLM-L6-v2; skips the test where its package is missing."""
    try:
        return find_model()
    except KsmpyError as error:
        pytest.skip(str(error))


def write_model(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A safetensors file: the header's length, the header, the tensors one after the other."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
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


def vocabulary(size: int) -> list[str]:
    """Letters, and words enough: a WordPiece vocabulary of this many lines."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += ["sun", "##ny", "weather", "the"]
    return pieces + [f"word{number}" for number in range(size - len(pieces))]


def bert(words: int, layers: int) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a BERT encoder with random weights."""
    generator = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray[Any, Any]:
        drawn: np.ndarray[Any, Any] = generator.standard_normal(shape, np.float32)
        drawn *= np.float32(0.05)
        return drawn

    tensors: dict[str, np.ndarray[Any, Any]] = {
        "embeddings.position_ids": np.arange(256, dtype=np.int64).reshape(1, 256),
        "embeddings.word_embeddings.weight": weights(words, WIDTH),
        "embeddings.position_embeddings.weight": weights(256, WIDTH),
        "embeddings.token_type_embeddings.weight": weights(2, WIDTH),
    }
    norms = ["embeddings."]
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        norms += [prefix + "attention.output.", prefix + "output."]
        for name, rows, columns in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", 2 * WIDTH, WIDTH),
            ("output.dense", WIDTH, 2 * WIDTH),
        ):
            tensors[f"{prefix}{name}.weight"] = weights(rows, columns)
            tensors[f"{prefix}{name}.bias"] = weights(rows)
    for prefix in norms:
        tensors[prefix + "LayerNorm.weight"] = 1 + weights(WIDTH)
        tensors[prefix + "LayerNorm.bias"] = weights(WIDTH)
    return tensors


def write_encoder(folder: Path, words: int, layers: int = 2) -> Path:
    """A small model as the package has it: weights, configuration, vocabulary."""
    config = {"num_attention_heads": 12, "num_hidden_layers": layers, "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary(words)))
    return write_model(folder / "model.safetensors", bert(words, layers))
