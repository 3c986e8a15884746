"""Sentences to vectors with a BERT encoder such as all-MiniLM-L6-v2, in numpy: WordPiece, the
forward pass, the mean over the tokens, length 1.

It reads the weights where they lie and never copies them, so what it costs in memory are the
activations. The same sentence gives the same bits each time, in every process of a machine.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksmpy.errors import KsmpyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ksmpy.demo.weights import Weights

    Floats = NDArray[np.float32]

__all__ = ["Encoder", "Tokenizer"]

_MAX_TOKENS = 256  # what the model was made for (its sentence_bert_config.json)
_MAX_WORD = 100  # characters; a longer word is unknown
_WORDS = "embeddings.word_embeddings.weight"
_CONTROL = ("Cc", "Cf", "Co")
# Blocks of Han characters, each of which is a word of its own.
_HAN = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class Tokenizer:
    """BERT's uncased WordPiece: words and punctuation apart, then the longest pieces that the
    vocabulary has.
    """

    def __init__(self, vocabulary: Path) -> None:
        """`vocabulary`: a piece on each line, its number the token. OSError, or KsmpyError when
        it is none.
        """
        pieces = vocabulary.read_text(encoding="utf-8").split("\n")
        self.tokens = {piece: number for number, piece in enumerate(pieces) if piece}
        try:
            self._unknown, self._first, self._last = (
                self.tokens[name] for name in ("[UNK]", "[CLS]", "[SEP]")
            )
        except KeyError as error:
            raise KsmpyError(f"{vocabulary} is not a WordPiece vocabulary: no {error}") from None

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with [CLS] and [SEP] around them; what is too long is cut off."""
        found = [token for word in _words(text) for token in self._pieces(word)]
        return [self._first, *found[: _MAX_TOKENS - 2], self._last]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MAX_WORD:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(len(word), start, -1):
                token = self.tokens.get(mark + word[start:end])
                if token is not None:
                    break
            else:
                return [self._unknown]
            found.append(token)
            start = end
        return found


def _words(text: str) -> Iterator[str]:
    """Lower case without accents, at white space and around each punctuation mark and Han
    character apart.
    """
    word = ""
    for character in _plain(text):
        if character.isspace() or _is_separate(character):
            if word:
                yield word
            word = ""
            if not character.isspace():
                yield character
        else:
            word += character
    if word:
        yield word


def _plain(text: str) -> Iterator[str]:
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)
        if (
            kind == "Mn"
            or (kind in _CONTROL and character not in "\t\n\r")
            or character == "\ufffd"
        ):
            continue
        yield from character.lower()


def _is_separate(character: str) -> bool:
    code = ord(character)
    if code < 128:
        return not character.isalnum() and character.isprintable()
    if unicodedata.category(character)[0] == "P":
        return True
    return any(low <= code <= high for low, high in _HAN)


class Encoder:
    """A sentence encoder over loaded weights: encoder(text) -> a vector of length 1.

    The weights stay where they are: what is written into them changes the next answer.
    """

    def __init__(self, weights: Weights, folder: Path) -> None:
        """`folder`: where the model's config.json and vocab.txt are.

        KsmpyError when it is not a BERT encoder with its weights in float32; OSError.
        """
        self.tokenizer = Tokenizer(folder / "vocab.txt")
        self._tensors = weights.tensors
        text = (folder / "config.json").read_text(encoding="utf-8")
        try:
            config = json.loads(text)
            self.heads = int(config["num_attention_heads"])
            self.layers = int(config["num_hidden_layers"])
            self._epsilon = float(config["layer_norm_eps"])
            kind, width = self._tensors[_WORDS].dtype, self._tensors[_WORDS].shape[1]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise KsmpyError(f"{folder} holds no BERT encoder: {error!r}") from None
        if kind != "float32" or width % self.heads:
            raise KsmpyError(f"{folder} holds no BERT encoder: {kind}, {self.heads} heads, {width}")

    def __call__(self, text: str) -> Floats:
        """The vector of a sentence. KsmpyError when a layer's weights are missing."""
        import numpy as np

        tokens = self.tokenizer.encode(text)
        try:
            states = self._embed(tokens)
            for layer in range(self.layers):
                states = self._layer(f"encoder.layer.{layer}.", states)
        except KeyError as error:
            raise KsmpyError(f"the model has no tensor {error}") from None
        mean = states.mean(axis=0)
        vector: Floats = mean / np.linalg.norm(mean)
        return vector

    def _embed(self, tokens: list[int]) -> Floats:
        words = self._tensors[_WORDS][tokens]
        places = self._tensors["embeddings.position_embeddings.weight"][: len(tokens)]
        kind = self._tensors["embeddings.token_type_embeddings.weight"][0]
        return self._norm("embeddings.", words + places + kind)

    def _layer(self, prefix: str, states: Floats) -> Floats:
        attended = self._attend(prefix + "attention.self.", states)
        attended = self._dense(prefix + "attention.output.", attended)
        states = self._norm(prefix + "attention.output.", attended + states)
        inner = _gelu(self._dense(prefix + "intermediate.", states))
        return self._norm(prefix + "output.", self._dense(prefix + "output.", inner) + states)

    def _attend(self, prefix: str, states: Floats) -> Floats:
        """Each token's mix of all tokens, in each head."""
        import numpy as np

        length, width = states.shape
        query, key, value = (
            self._linear(prefix + name, states)
            .reshape(length, self.heads, width // self.heads)
            .transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32((width // self.heads) ** 0.5)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: Floats = (scores @ value).transpose(1, 0, 2).reshape(length, width)
        return mixed

    def _dense(self, prefix: str, states: Floats) -> Floats:
        return self._linear(prefix + "dense", states)

    def _linear(self, name: str, states: Floats) -> Floats:
        result: Floats = states @ self._tensors[name + ".weight"].T + self._tensors[name + ".bias"]
        return result

    def _norm(self, prefix: str, states: Floats) -> Floats:
        import numpy as np

        states = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((states * states).mean(axis=-1, keepdims=True) + self._epsilon)
        weight = self._tensors[prefix + "LayerNorm.weight"]
        result: Floats = states / spread * weight + self._tensors[prefix + "LayerNorm.bias"]
        return result


def _gelu(values: Floats) -> Floats:
    """The Gaussian error linear unit, with the error function of Abramowitz and Stegun 7.1.26: off
    by 1.5e-7 at most, which is what float32 can tell.
    """
    import numpy as np

    size: Any = np.abs(values) * np.float32(0.5**0.5)
    share = 1 / (1 + np.float32(0.3275911) * size)
    tail = np.float32(1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = tail * share + np.float32(factor)
    tail = tail * share * np.exp(-size * size)  # 1 - erf(size)
    result: Floats = values * np.where(values < 0, tail, 2 - tail) / 2
    return result
