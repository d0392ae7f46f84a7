"""Orders that need no table: a bijection of the numbers below any size for every key.

A Feistel network permutes [0, 4^b), the smallest such range that holds the size; an image beyond the size goes through it again
(cycle walking, Black and Rogaway 2002). Rounds and keys are words of 64 bits, mixed by the finaliser of splitmix64.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

_FEISTEL_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15

Words = NDArray[np.uint64]


def permute(positions: Words, size: int, keys: Words) -> Words:
    """(N,) positions in [0, size) and a key for each -> (N,) images; for each key a bijection of [0, size)."""
    assert not positions.size or positions.max() < size, "a position outside would be walked for ever"
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    images, outside = positions.copy(), np.arange(len(positions))
    while outside.size:
        images[outside] = _feistel(images[outside], half_bits, keys[outside])
        outside = outside[images[outside] >= size]
    return images


def permute_by_epoch(positions: NDArray[np.int64], size: int, epochs: NDArray[np.int64], key: int) -> NDArray[np.int64]:
    """(N,) positions in [0, size) and (N,) epochs -> (N,) images; for each epoch another bijection."""
    keys = mix(epochs.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
    return permute(positions.astype(np.uint64), size, keys).astype(np.int64)


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order that only the seed decides."""
    keys = np.full(count, hash64(seed, "shuffled"), dtype=np.uint64)
    order: list[int] = permute(np.arange(count, dtype=np.uint64), count, keys).tolist()
    return order


def mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit given."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash64(*parts: int | str) -> int:
    """64 bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")


def _feistel(values: Words, half_bits: np.uint64, keys: Words) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for turn in range(1, _FEISTEL_ROUNDS + 1):
        round_keys = keys + np.uint64(turn * _GOLDEN % 2**64)
        left, right = right, left ^ (mix(right ^ mix(round_keys)) & mask)
    return (left << half_bits) | right
