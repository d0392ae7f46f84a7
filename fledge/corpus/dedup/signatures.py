"""Each document becomes keys under which its duplicates meet: one for the same words, several for nearly the same.

Near duplicates share most of their shingles, the runs of a few words. A MinHash is the least value that one hash function takes on
the shingles of a document; two documents agree in it with a probability equal to the Jaccard similarity J of their sets of shingles
(A. Broder, 1997). `rows` MinHashes make the key of a band, and documents that agree in one of `bands` keys are near duplicates, which
happens with probability 1 - (1 - J^rows)^bands (Indyk and Motwani, 1998). The MinHashes themselves are folded into keys at once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.dedup.words import blocks, hash_runs, hash_words, text_buffers

_U32 = np.uint32
_U64 = np.uint64
_MASK_64 = (1 << 64) - 1

_GOLDEN = _U64(0x9E3779B97F4A7C15)
_MURMUR_1 = _U64(0xFF51AFD7ED558CCD)
_MURMUR_2 = _U64(0xC4CEB9FE1A85EC53)
_WORDS_START = (_U64(0x243F6A8885A308D3), _U64(0x13198A2E03707344))
_BYTES_START = (_U64(0xA4093822299F31D0), _U64(0x082EFA98EC4E6C89))


@dataclass(frozen=True)
class Signatures:
    """Keys of n documents."""

    exact: NDArray[np.uint64]
    """(n, 2): 128 bits, equal if the normalised words are; of a document without words, if its bytes are."""
    bands: NDArray[np.uint64]
    """(bands, n): equal in a row if the documents meet there; (0, n) unless near duplicates are wanted."""


def signatures(texts: pa.LargeStringArray, settings: DeduplicateSettings) -> Signatures:
    """The keys of each text; they depend on the text and the settings alone."""
    data, offsets = text_buffers(texts)
    bands = settings.bands if settings.kind == "near" else 0
    found = Signatures(np.empty((len(texts), 2), np.uint64), np.empty((bands, len(texts)), np.uint64))
    multipliers = _multipliers(settings.seed, bands * settings.rows)
    for block in blocks(offsets):
        own = offsets[block.start : block.stop + 1]
        words = hash_words(data, own)
        _exact_hashes(data, own, words.values, words.offsets, found.exact[block])
        if bands:
            shingles = hash_runs(words, settings.shingle_words)
            # A document without words is one shingle: its bytes. So it meets its equals, and no other.
            lone = found.exact[block, 0]
            _band_keys(shingles.values, shingles.offsets, lone, *multipliers, found.bands[:, block])
    return found


def similarity(text_a: str, text_b: str, shingle_words: int) -> float:
    """Jaccard similarity of two texts' sets of shingles, which the keys of bands estimate."""
    a, b = shingle_hashes(text_a, shingle_words), shingle_hashes(text_b, shingle_words)
    common = np.intersect1d(a, b, assume_unique=True).size
    return float(common / (a.size + b.size - common))


def shingle_hashes(text: str, shingle_words: int) -> NDArray[np.uint64]:
    """The set of shingles of a text, sorted; never empty."""
    data, offsets = text_buffers(pa.array([text], pa.large_string()))
    words = hash_words(data, offsets)
    if words.values.size:
        return np.unique(hash_runs(words, shingle_words).values)
    exact = np.empty((1, 2), np.uint64)
    _exact_hashes(data, offsets, words.values, words.offsets, exact)
    return exact[:, 0].copy()


@functools.lru_cache(maxsize=8)
def _multipliers(seed: int, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd numbers that make the hash functions, by SplitMix64 (Steele, Lea and Flood, 2014): NumPy does not promise its streams."""
    numbers = []
    state = seed & _MASK_64
    for _ in range(count):
        state = (state + int(_GOLDEN)) & _MASK_64
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK_64
        numbers.append(mixed ^ mixed >> 31)
    both = np.array(numbers, np.uint64)
    return (both >> _U64(32)).astype(np.uint32) | _U32(1), both.astype(np.uint32) | _U32(1)


@njit(nogil=True, cache=True)
def _exact_hashes(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    words: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    exact: NDArray[np.uint64],
) -> None:
    """Two chains of 64 bits over the hashes of the words, or over the bytes of a document without words."""
    for document in range(word_offsets.size - 1):
        first, last = word_offsets[document], word_offsets[document + 1]
        count = last - first
        if count > 0:
            one, two = _WORDS_START
            for index in range(first, last):
                one, two = _chain(one, two, words[index])
        else:
            count = offsets[document + 1] - offsets[document]
            one, two = _BYTES_START
            for position in range(offsets[document], offsets[document + 1]):
                one, two = _chain(one, two, _U64(data[position]))
        exact[document, 0] = _mix(one ^ _U64(count))
        exact[document, 1] = _mix(two + _U64(count))


@njit(nogil=True, cache=True)
def _band_keys(
    shingles: NDArray[np.uint64],
    shingle_offsets: NDArray[np.int64],
    lone: NDArray[np.uint64],
    high_multipliers: NDArray[np.uint32],
    low_multipliers: NDArray[np.uint32],
    keys: NDArray[np.uint64],
) -> None:
    """Fills keys (bands, documents).

    Hash function j of a shingle is multiplier_j * high half XOR other multiplier_j * low half, modulo 2^32. On random sets of 40 to
    20,000 shingles the share of MinHashes that agree has the mean and, within 2 %, the variance of independent functions, no other
    than with 64-bit mixing, which is six times as slow. Four shingles at a time: a MinHash is loaded and stored once for all four.
    """
    hashes = high_multipliers.size
    rows = hashes // keys.shape[0]
    least = np.empty(hashes, np.uint32)
    for document in range(shingle_offsets.size - 1):
        least[:] = _U32(0xFFFFFFFF)
        first, last = shingle_offsets[document], shingle_offsets[document + 1]
        if first == last:
            _lower(least, lone[document], high_multipliers, low_multipliers)
        whole = first + (last - first) // 4 * 4
        for index in range(first, whole, 4):
            four = shingles[index], shingles[index + 1], shingles[index + 2], shingles[index + 3]
            _lower_by_four(least, four, high_multipliers, low_multipliers)
        for index in range(whole, last):
            _lower(least, shingles[index], high_multipliers, low_multipliers)
        for band in range(keys.shape[0]):
            key = _mix(_U64(band + 1) * _GOLDEN)
            for row in range(band * rows, (band + 1) * rows):
                key = (key ^ _U64(least[row])) * _MURMUR_1
                key ^= key >> _U64(32)
            keys[band, document] = key


@njit(nogil=True, cache=True)
def _lower(least: NDArray[np.uint32], shingle: np.uint64, high: NDArray[np.uint32], low: NDArray[np.uint32]) -> None:
    for index in range(least.size):
        least[index] = min(least[index], _hash(shingle, high[index], low[index]))


@njit(nogil=True, cache=True)
def _lower_by_four(least: NDArray[np.uint32], shingles: tuple[np.uint64, ...], high: NDArray[np.uint32], low: NDArray[np.uint32]) -> None:
    one, two, three, four = shingles
    for index in range(least.size):
        first_two = min(_hash(one, high[index], low[index]), _hash(two, high[index], low[index]))
        last_two = min(_hash(three, high[index], low[index]), _hash(four, high[index], low[index]))
        least[index] = min(least[index], min(first_two, last_two))


@njit(nogil=True, cache=True)
def _hash(shingle: np.uint64, high_multiplier: np.uint32, low_multiplier: np.uint32) -> np.uint32:
    return _U32(_U32(high_multiplier * _U32(shingle >> _U64(32))) ^ _U32(low_multiplier * _U32(shingle)))


@njit(nogil=True, cache=True)
def _chain(one: np.uint64, two: np.uint64, number: np.uint64) -> tuple[np.uint64, np.uint64]:
    one = (one ^ number) * _GOLDEN
    two = (two + number) * _MURMUR_2
    return one ^ one >> _U64(32), two ^ two >> _U64(29)


@njit(nogil=True, cache=True)
def _mix(number: np.uint64) -> np.uint64:
    """MurmurHash3's finaliser (A. Appleby). Not shared with `words.py`: numba's cache does not see a change in another file."""
    number = (number ^ number >> _U64(33)) * _MURMUR_1
    number = (number ^ number >> _U64(33)) * _MURMUR_2
    return number ^ number >> _U64(33)
