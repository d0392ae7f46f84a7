"""Texts become hashes of their normalised words: what signatures and contamination compare instead of bytes.

Letters, digits and `_` make words, lower-cased; a combining mark belongs to the word before it; everything else separates, so
case, punctuation and layout do not count. A character of an unspaced script is a word of its own, so runs of words are character
n-grams there. The hash of a word is taken over its UTF-8, whole characters of up to eight bytes at a time.

ASCII is read eight bytes at once: the byte that ends a word, or the gap between words, is found by arithmetic on a 64-bit number
(H. S. Warren, Hacker's Delight, 2nd ed., 6-1): 600 MB of English per CPU second, where a loop over bytes reaches 350. Other
characters are decoded and looked up one by one: 450 MB of Russian, 600 MB of Chinese.

Memory: 9 bytes per byte of the largest document at most, for words of one letter and runs of them; 4 for English.

Kernels hand arrays to the kernels of other modules but never call them: numba keeps compiled code until the file of the outermost
function changes, so a change here would not reach a kernel that calls this one from another file, and keys would silently differ.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.characters import MARK, OTHER, SPACE, UNSPACED, character_tables

BLOCK_BYTES = 1 << 18
"""Text hashed at once: its word and run hashes, 8 bytes for about 6 of text each, then stay in the cache of a core."""

_U64 = np.uint64
# Of a signed and an unsigned number numba makes a float, so that kernels spell out unsigned ones.
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX, _SEVEN, _EIGHT = (_U64(number) for number in range(9))
_LOW_BITS = _U64(0x0101010101010101)
_HIGH_BITS = _U64(0x8080808080808080)
_OTHER_BITS = _U64(0x7F7F7F7F7F7F7F7F)
_PAD_BYTES = 8

# An entry of the word table: bits 0-31 the UTF-8 bytes of the lower case, the first lowest; from bit 32 on their number of bits.
_UTF8_BYTES = _U64(0xFFFFFFFF)
_SIZE_SHIFT = 32
_SIZE_BITS = _U64(0xFF)
_IS_UNSPACED = _U64(1 << 40)
_IS_MARK = _U64(1 << 41)

# Odd constants without pattern: 2^64 over the golden ratio (Knuth), those of MurmurHash3's finaliser (A. Appleby), and others.
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_MURMUR_1 = _U64(0xFF51AFD7ED558CCD)
_MURMUR_2 = _U64(0xC4CEB9FE1A85EC53)
_WORD_START = _U64(0x2545F4914F6CDD1D)
_RUN_BASE = 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Hashes:
    """Hashes of consecutive documents, of document d those from offsets[d] to offsets[d + 1]."""

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]


def text_buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of all texts and the len(texts) + 1 offsets of theirs, without a copy."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), ends


def blocks(offsets: NDArray[np.int64]) -> Iterator[slice]:
    """Consecutive documents of about BLOCK_BYTES together, at least one; offsets[block.start : block.stop + 1] are theirs."""
    start, documents = 0, len(offsets) - 1
    while start < documents:
        reached = int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES, side="right")) - 1
        stop = min(max(reached, start + 1), documents)
        yield slice(start, stop)
        start = stop


def hash_words(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    """The words of each document. Bytes that are not UTF-8 separate words."""
    longest_bytes = int(np.diff(offsets).max(initial=0))
    # Two words of one byte need a separator, words of an unspaced script have 3 bytes: never more than every second byte.
    words = np.empty((int(offsets[-1] - offsets[0]) + len(offsets)) // 2 + 1, np.uint64)
    word_offsets = np.zeros(len(offsets), np.int64)
    count = _hash_words(data, offsets, _word_table(), np.empty(longest_bytes + _PAD_BYTES, np.uint8), words, word_offsets)
    return Hashes(words[:count], word_offsets)


def hash_runs(words: Hashes, length_words: int) -> Hashes:
    """All runs of `length_words` words of each document; a shorter document is one run, one without words has none."""
    runs = np.empty(len(words.values), np.uint64)
    offsets = np.zeros(len(words.offsets), np.int64)
    base_to_length = _U64(pow(_RUN_BASE, length_words, 1 << 64))
    count = _hash_runs(words.values, words.offsets, length_words, base_to_length, runs, offsets)
    return Hashes(runs[:count], offsets)


@functools.cache
def _word_table() -> NDArray[np.uint64]:
    """By code point: how a character enters a word; 0 if it separates words."""
    kind, lower = character_tables()
    code = lower.astype(np.uint64)
    low, second, third = (_U64(0x80) | (code >> _U64(shift)) & _U64(0x3F) for shift in (0, 6, 12))
    two = _U64(0xC0) | code >> _SIX | low << _EIGHT
    three = _U64(0xE0) | code >> _U64(12) | second << _EIGHT | low << _U64(16)
    four = _U64(0xF0) | code >> _U64(18) | third << _EIGHT | second << _U64(16) | low << _U64(24)
    shorter = [code < _U64(bound) for bound in (0x80, 0x800, 0x10000)]
    utf8 = np.select(shorter, [code, two, three], four)
    size_bits = np.select(shorter, [_EIGHT, _U64(16), _U64(24)], _U64(32))
    table = np.where((kind == SPACE) | (kind == OTHER), _ZERO, utf8 | size_bits << _U64(_SIZE_SHIFT))
    table[kind == UNSPACED] |= _IS_UNSPACED
    table[kind == MARK] |= _IS_MARK
    return table


@njit(nogil=True, cache=True)
def _hash_words(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    table: NDArray[np.uint64],
    lowered: NDArray[np.uint8],
    words: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
) -> int:
    """Fills words and word_offsets; the number of words. `lowered` holds the longest document and _PAD_BYTES more."""
    count = _ZERO
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        _lower_ascii(text, lowered)
        count = _read_words(lowered, _U64(text.size), table, words, count)
        word_offsets[document + 1] = count
    return int(count)


@njit(nogil=True, cache=True)
def _lower_ascii(text: NDArray[np.uint8], lowered: NDArray[np.uint8]) -> None:
    """ASCII word characters in lower case, other ASCII as 0, bytes of other characters as they are; then _PAD_BYTES zeros.

    Comparisons, not a table, so that the compiler makes vector instructions of it: 20 GB per second instead of 3.
    """
    for position in range(text.size):
        byte = np.uint8(text[position])
        small = np.uint8(byte | 32)
        is_letter = np.uint8(small - 97) < np.uint8(26)
        stays = (np.uint8(byte - 48) < np.uint8(10)) | (byte == 95) | (byte > 127)
        lowered[position] = np.uint8(small if is_letter and byte < 128 else np.uint8(byte if stays else np.uint8(0)))
    for position in range(text.size, text.size + _PAD_BYTES):
        lowered[position] = 0


@njit(nogil=True, cache=True)
def _read_words(
    lowered: NDArray[np.uint8], end: np.uint64, table: NDArray[np.uint64], words: NDArray[np.uint64], count: np.uint64
) -> np.uint64:
    """Appends the words of one document from words[count] on; the new count.

    Positions are unsigned: numba then leaves out the check for negative ones, and eight loads of a byte become one of eight.
    """
    position = _ZERO
    while True:
        chunk = _eight_bytes(lowered, position)
        in_word = (((chunk & _OTHER_BITS) + _OTHER_BITS) | chunk) & _HIGH_BITS
        if in_word == _ZERO:
            position += _EIGHT
            if position >= end:
                return count
            continue
        position += _bytes_below(_bits_below(in_word))
        hashed = _WORD_START
        chunk = _eight_bytes(lowered, position)
        # The high bit of a byte that is 0 or no ASCII; above the first such byte other bits may be set too.
        stops = (((chunk - _LOW_BITS) & ~chunk) | chunk) & _HIGH_BITS
        while stops == _ZERO:
            hashed = _fold(hashed, chunk)
            position += _EIGHT
            chunk = _eight_bytes(lowered, position)
            stops = (((chunk - _LOW_BITS) & ~chunk) | chunk) & _HIGH_BITS
        below = _bits_below(stops)
        size_bytes = _bytes_below(below)
        position += size_bytes
        chunk &= below >> _SEVEN
        if lowered[position] == 0:
            words[count] = _finish(hashed, chunk)
            count += _ONE
        else:
            inside = size_bytes != _ZERO or hashed != _WORD_START
            position, count = _read_any_words(lowered, position, table, words, count, hashed, chunk, size_bytes << _THREE, inside)


@njit(nogil=True, cache=True)
def _read_any_words(
    lowered: NDArray[np.uint8],
    position: np.uint64,
    table: NDArray[np.uint64],
    words: NDArray[np.uint64],
    count: np.uint64,
    hashed: np.uint64,
    chunk: np.uint64,
    chunk_bits: np.uint64,
    inside: bool,
) -> tuple[np.uint64, np.uint64]:
    """Goes on, character by character, inside a word or before one, to the next separator or ASCII start of a word."""
    unspaced = False
    while True:
        byte = _U64(lowered[position])
        if byte < _U64(0x80):
            if byte == _ZERO or not inside or unspaced:
                if inside:
                    words[count] = _finish(hashed, chunk)
                    count += _ONE
                # Go on behind a single space only where the next word is no ASCII either.
                if byte != _ZERO or lowered[position + _ONE] < 0x80:
                    return position, count
                hashed, chunk, chunk_bits, inside = _WORD_START, _ZERO, _ZERO, False
                position += _ONE
                continue
            entry = byte | _U64(8 << _SIZE_SHIFT)
            position += _ONE
        else:
            code, size_bytes = _decode(lowered, position, byte)
            entry = table[code] if code < _U64(table.size) else _ZERO
            is_mark = entry & _IS_MARK != _ZERO
            starts_unspaced = entry & _IS_UNSPACED != _ZERO
            if inside and (entry == _ZERO or starts_unspaced or (unspaced and not is_mark)):
                words[count] = _finish(hashed, chunk)
                count += _ONE
                hashed, chunk, chunk_bits, inside = _WORD_START, _ZERO, _ZERO, False
            position += size_bytes
            if entry == _ZERO or (is_mark and not inside):
                continue
            if not inside:
                inside, unspaced = True, starts_unspaced
        size_bits = (entry >> _U64(_SIZE_SHIFT)) & _SIZE_BITS
        if chunk_bits + size_bits > _U64(64):
            hashed, chunk, chunk_bits = _fold(hashed, chunk), _ZERO, _ZERO
        chunk |= (entry & _UTF8_BYTES) << chunk_bits
        chunk_bits += size_bits
        if chunk_bits == _U64(64):
            hashed, chunk, chunk_bits = _fold(hashed, chunk), _ZERO, _ZERO


@njit(nogil=True, cache=True)
def _decode(lowered: NDArray[np.uint8], position: np.uint64, first: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Code point and bytes of the character that begins with the byte `first`; 0 and 1 if it is malformed.

    At the end of a text this reads zeros of the padding, with which no character goes on.
    """
    second = _U64(lowered[position + _ONE])
    if first < _U64(0xE0):
        if first >= _U64(0xC2) and second & _U64(0xC0) == _U64(0x80):
            return (first & _U64(0x1F)) << _SIX | second & _U64(0x3F), _TWO
        return _ZERO, _ONE
    third = _U64(lowered[position + _TWO])
    if (second | third << _EIGHT) & _U64(0xC0C0) != _U64(0x8080) or (first == _U64(0xE0) and second < _U64(0xA0)):
        return _ZERO, _ONE
    last_two = (second & _U64(0x3F)) << _SIX | third & _U64(0x3F)
    if first < _U64(0xF0):
        return (first & _U64(0x0F)) << _U64(12) | last_two, _THREE
    fourth = _U64(lowered[position + _THREE])
    code = (first & _SEVEN) << _U64(18) | last_two << _SIX | fourth & _U64(0x3F)
    if fourth & _U64(0xC0) != _U64(0x80) or code < _U64(0x10000) or first > _U64(0xF4):
        return _ZERO, _ONE
    return code, _FOUR


@njit(nogil=True, cache=True)
def _hash_runs(
    words: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    length_words: int,
    base_to_length: np.uint64,
    runs: NDArray[np.uint64],
    run_offsets: NDArray[np.int64],
) -> int:
    """Polynomials over the words of a run, each from the one before (Karp and Rabin, 1987), mixed; the number of runs."""
    base = _U64(_RUN_BASE)
    count = 0
    for document in range(word_offsets.size - 1):
        text = words[word_offsets[document] : word_offsets[document + 1]]
        first_words = min(length_words, text.size)
        rolling = _ZERO
        for position in range(first_words):
            rolling = rolling * base + text[position]
        if first_words > 0:
            runs[count] = rolling
            count += 1
        for position in range(first_words, text.size):
            rolling = rolling * base + text[position] - text[position - first_words] * base_to_length
            runs[count] = rolling
            count += 1
        run_offsets[document + 1] = count
    for run in range(count):
        runs[run] = _mix(runs[run])
    return count


@njit(nogil=True, cache=True)
def _eight_bytes(lowered: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """The bytes from position on as one number, the first lowest, on any machine."""
    low = _U64(lowered[position]) | _U64(lowered[position + _ONE]) << _EIGHT
    low |= _U64(lowered[position + _TWO]) << _U64(16) | _U64(lowered[position + _THREE]) << _U64(24)
    high = _U64(lowered[position + _FOUR]) | _U64(lowered[position + _FIVE]) << _EIGHT
    high |= _U64(lowered[position + _SIX]) << _U64(16) | _U64(lowered[position + _SEVEN]) << _U64(24)
    return low | high << _U64(32)


@njit(nogil=True, cache=True)
def _bits_below(flags: np.uint64) -> np.uint64:
    """All bits below the lowest one that is set."""
    return (flags & (_ZERO - flags)) - _ONE


@njit(nogil=True, cache=True)
def _bytes_below(below: np.uint64) -> np.uint64:
    """Whole bytes in _bits_below() of the high bit of a byte."""
    return ((below & _LOW_BITS) * _LOW_BITS >> _U64(56)) - _ONE


@njit(nogil=True, cache=True)
def _fold(hashed: np.uint64, chunk: np.uint64) -> np.uint64:
    product = (hashed ^ chunk) * _GOLDEN
    return product ^ product >> _U64(32)


@njit(nogil=True, cache=True)
def _finish(hashed: np.uint64, chunk: np.uint64) -> np.uint64:
    product = _fold(hashed, chunk) * _MURMUR_1
    return product ^ product >> _U64(29)


@njit(nogil=True, cache=True)
def _mix(number: np.uint64) -> np.uint64:
    """MurmurHash3's finaliser: each bit of the result depends on all of the number's."""
    number = (number ^ number >> _U64(33)) * _MURMUR_1
    number = (number ^ number >> _U64(33)) * _MURMUR_2
    return number ^ number >> _U64(33)
