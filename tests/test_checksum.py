"""The page checksum against its written definition, and against mmh3 as a judge of distinctness."""

from __future__ import annotations

import random
import struct

import mmh3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c_programs import SANITIZERS, run_c_program

native = pytest.importorskip("ksmpy.native", reason="the extension is built on Linux only")

PAGE = 4096
MASK = (1 << 64) - 1
SEED = 0x6B736D7079763031
MIX = 0x9FB21C651E98DF25


def checksum(data: bytes) -> int:
    return int(native.lib.ksmpy_checksum(native.ffi.from_buffer(data), len(data)))


def splitmix64(seed: int, count: int) -> list[int]:
    """Steele, Lea and Flood's generator, from the paper's description."""
    values = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(z ^ (z >> 31))
    return values


KEY = splitmix64(SEED, 512)


def mix(h: int) -> int:
    return ((h ^ (h >> 32)) * MIX) & MASK


def checksum_as_defined(data: bytes) -> int:
    """csrc/base/checksum.h's definition, word by word and with Python's own integers."""
    acc = KEY[:8]
    for block in range(0, max(len(data), 1), PAGE):
        if block:
            acc = [mix(acc[i] ^ KEY[511 - i]) for i in range(8)]
        chunk = data[block : block + PAGE]
        for n, word in enumerate(struct.unpack(f"<{len(chunk) // 8}Q", chunk)):
            x = word ^ KEY[n]
            lane = n % 8
            acc[lane] = (acc[lane] + (x & 0xFFFFFFFF) * (x >> 32)) & MASK
            acc[lane ^ 1] = (acc[lane ^ 1] + word) & MASK
    h = len(data)
    for value in acc:
        h = mix(h ^ value)
    return mix(h)


@pytest.mark.parametrize("length", [0, 64, 128, 4032, 4096, 4160, 8192, 3 * 4096 + 192])
def test_checksum_is_what_its_definition_says(length: int) -> None:
    """An independent reading of the definition gives the same value at every kind of length."""
    data = random.Random(length).randbytes(length)
    assert checksum(data) == checksum_as_defined(data)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, MASK), min_size=8, max_size=64).map(lambda w: w[: len(w) & ~7]))
def test_checksum_of_chosen_words_is_what_its_definition_says(words: list[int]) -> None:
    """Words that a shrinking generator likes (0, 1, powers of two, all ones) are no exception."""
    data = struct.pack(f"<{len(words)}Q", *words)
    assert checksum(data) == checksum_as_defined(data)


def test_zero_page_has_a_checksum_that_never_changes() -> None:
    """The value is part of a named store's format: processes of two versions must agree on it."""
    assert checksum(bytes(PAGE)) == 0x5EB787D6ED9DBB06


def structured_pages() -> dict[str, list[bytes]]:
    """Return pages of the kinds programs hold: numbers in order, text, sparse and constant ones."""
    rng = random.Random(7)
    text = b"the quick brown fox jumps over the lazy dog; " * 200
    return {
        "counters": [struct.pack("<512Q", *range(n, n + 512)) for n in range(3000)],
        "constants": [struct.pack("<Q", n) * 512 for n in range(3000)],
        "floats": [struct.pack("<1024f", *[n + i / 8 for i in range(1024)]) for n in range(1000)],
        "text": [text[n : n + PAGE] for n in range(45)],
        "one byte": [bytes(n) + b"\x01" + bytes(PAGE - 1 - n) for n in range(PAGE)],
        "noise": [rng.randbytes(PAGE) for _ in range(1000)],
    }


@pytest.mark.parametrize("kind", list(structured_pages()))
def test_checksum_tells_apart_what_mmh3_tells_apart(kind: str) -> None:
    """On 64 bits the checksum finds exactly as many different pages as a 128-bit hash does."""
    pages = structured_pages()[kind]
    assert len({checksum(page) for page in pages}) == len({mmh3.hash_bytes(page) for page in pages})


def test_read_only_is_the_sum_of_the_words() -> None:
    """The yardstick really reads everything."""
    data = random.Random(1).randbytes(3 * PAGE)
    pointer = native.ffi.from_buffer(data)
    expected = sum(struct.unpack(f"<{len(data) // 8}Q", data)) & MASK
    assert native.lib.ksmpy_read_only(pointer, len(data)) == expected


@pytest.mark.parametrize("sanitize", ["", *SANITIZERS])
def test_c_program(sanitize: str) -> None:
    """Vector and portable code agree, and families of difficult pages never collide."""
    run_c_program("test_checksum", sanitize)
