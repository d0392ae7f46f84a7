"""What the compiled loops of the quality rules share: texts as bytes, traits of characters, and reading UTF-8.

Loops run over the UTF-8 of Arrow arrays. Bytes below 0x80 are looked up in a table of 256; anything else is decoded and looked up
by code point, so that English runs fast and no other script is treated as noise.

A word is a maximal run of characters other than white space, as `str.split` has it, which is cut before every letter of an
unspaced script, and before a letter or numeral that follows one. Marks and punctuation stay with the character before them.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fledge.corpus import characters as kinds
from fledge.corpus.characters import TABLE_SIZE, character_tables

SPACE, LETTER, NUMERAL, MARK, UNSPACED, TERMINAL, BREAK, COUNTED, NON_ASCII = (1 << bit for bit in range(9))
"""Traits. LETTER: `str.isalpha`. TERMINAL: ends a sentence. BREAK: ends a line, as `str.splitlines` has it. COUNTED: `#`, `.`, `…`."""

_BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
_COUNTED = "#.…"

# The property Sentence_Terminal of Unicode 15.1 (PropList.txt), and the interrobang, as first and last code points.
_TERMINAL_RANGES = (
    (0x21, 0x21), (0x2E, 0x2E), (0x3F, 0x3F), (0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702), (0x7F9, 0x7F9),
    (0x837, 0x837), (0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B), (0x1362, 0x1362), (0x1367, 0x1368),
    (0x166E, 0x166E), (0x1735, 0x1736), (0x17D4, 0x17D5), (0x17D9, 0x17DA), (0x1803, 0x1803), (0x1809, 0x1809), (0x1944, 0x1945),
    (0x1AA8, 0x1AAB), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7E), (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x203C, 0x203D),
    (0x2047, 0x2049), (0x2E2E, 0x2E2E), (0x2E3C, 0x2E3C), (0x2E53, 0x2E54), (0x3002, 0x3002), (0xA4FF, 0xA4FF), (0xA60E, 0xA60F),
    (0xA6F3, 0xA6F3), (0xA6F7, 0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF), (0xA92F, 0xA92F), (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F),
    (0xAAF0, 0xAAF1), (0xABEB, 0xABEB), (0xFE52, 0xFE52), (0xFE56, 0xFE57), (0xFF01, 0xFF01), (0xFF0E, 0xFF0E), (0xFF1F, 0xFF1F),
    (0xFF61, 0xFF61), (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89), (0x11047, 0x11048), (0x110BE, 0x110C1),
    (0x11141, 0x11143), (0x111C5, 0x111C6), (0x111CD, 0x111CD), (0x111DE, 0x111DF), (0x11238, 0x11239), (0x1123B, 0x1123C),
    (0x112A9, 0x112A9), (0x1144B, 0x1144C), (0x115C2, 0x115C3), (0x115C9, 0x115D7), (0x11641, 0x11642), (0x1173C, 0x1173E),
    (0x11944, 0x11944), (0x11946, 0x11946), (0x11A42, 0x11A43), (0x11A9B, 0x11A9C), (0x11C41, 0x11C42), (0x11EF7, 0x11EF8),
    (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), (0x16AF5, 0x16AF5), (0x16B37, 0x16B38), (0x16B44, 0x16B44), (0x16E98, 0x16E98),
    (0x1BC9F, 0x1BC9F), (0x1DA88, 0x1DA88),
)  # fmt: skip

TERMINALS = tuple(itertools.chain.from_iterable(range(first, last + 1) for first, last in _TERMINAL_RANGES))

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT_29, _SHIFT_32, _ONE, _WORD_SHIFT = np.uint64(29), np.uint64(32), np.uint64(1), np.uint64(63)
_PADDING_BYTES = 16


def _byte_traits() -> NDArray[np.uint16]:
    table = np.full(256, NON_ASCII, np.uint16)
    for byte in range(128):
        character = chr(byte)
        found = SPACE * character.isspace() | LETTER * character.isalpha() | NUMERAL * character.isdigit()
        table[byte] = found | TERMINAL * (character in ".!?") | BREAK * (character in _BREAKS) | COUNTED * (character in _COUNTED)
    return table


BYTE_TRAITS = _byte_traits()
"""Traits of ASCII; every other byte is NON_ASCII. A constant of the compiled code, because an array that is passed on costs 5 ns a call."""


@functools.cache
def code_point_traits() -> NDArray[np.uint16]:
    """Traits by code point below TABLE_SIZE, made once per process in about 10 ms from the tables of `characters.py`."""
    kind = character_tables().kind
    found = np.zeros(TABLE_SIZE, np.uint16)
    found[kind == kinds.SPACE] |= SPACE
    found[(kind == kinds.LETTER) | (kind == kinds.UNSPACED)] |= LETTER
    found[kind == kinds.DIGIT] |= NUMERAL
    found[kind == kinds.MARK] |= MARK
    found[kind == kinds.UNSPACED] |= UNSPACED
    found[ord("_")] = 0
    found[list(TERMINALS)] |= TERMINAL
    found[[ord(character) for character in _BREAKS]] |= BREAK
    found[[ord(character) for character in _COUNTED]] |= COUNTED
    return found


class Texts(NamedTuple):
    """Texts as UTF-8, one after another: text i is data[offsets[i]:offsets[i + 1]]; `words` is the same memory, eight bytes at a time."""

    data: NDArray[np.uint8]
    words: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def longest_bytes(self) -> int:
        return int(np.diff(self.offsets).max(initial=0))


def as_bytes(texts: pa.LargeStringArray) -> Texts:
    """A copy of the bytes of an Arrow array, padded so that loops may read a little beyond a text."""
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    start, end = (int(offsets[0]), int(offsets[-1])) if len(texts) else (0, 0)
    words = np.zeros((end - start + _PADDING_BYTES) // 8 + 1, np.uint64)
    data = words.view(np.uint8)
    if end > start:
        data[: end - start] = np.frombuffer(data_buffer, np.uint8)[start:end]
    return Texts(data, words, offsets - start if len(texts) else np.zeros(1, np.int64))


@njit(nogil=True, cache=True)
def decode(data, i):
    """(code point, bytes) of the character that begins at byte i; the text is valid UTF-8."""
    first = np.int64(data[i])
    if first < 0x80:
        return first, 1
    second = np.int64(data[i + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, 2
    third = np.int64(data[i + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[i + 3]) & 0x3F, 4


@njit(nogil=True, cache=True)
def trait_at(data, i, code_points):
    """(traits, bytes) of the character that begins at byte i."""
    code, size = decode(data, i)
    return (code_points[code] if code < code_points.size else np.uint16(0)), size


@njit(nogil=True, cache=True)
def skip_space(data, start, end, code_points):
    """First byte in start .. end that is not white space, or end."""
    i = start
    while 0 <= i < end and BYTE_TRAITS[data[i]] & SPACE:
        i += 1
    if i < end and BYTE_TRAITS[data[i]] & NON_ASCII:
        return _skip_any_space(data, i, end, code_points)
    return i


@njit(nogil=True, cache=True)
def _skip_any_space(data, start, end, code_points):
    i = start
    while i < end:
        trait, size = trait_at(data, i, code_points)
        if not trait & SPACE:
            break
        i += size
    return i


@njit(nogil=True, cache=True)
def last_character(data, start, end):
    """Byte at which the last character of start .. end begins; start < end."""
    i = end - 1
    while i > start and data[i] & 0xC0 == 0x80:
        i -= 1
    return i


@njit(nogil=True, cache=True)
def strip_end(data, start, end, code_points):
    """End of start .. end without the white space at its end."""
    while end > start:
        i = last_character(data, start, end)
        trait, _ = trait_at(data, i, code_points)
        if not trait & SPACE:
            break
        end = i
    return end


@njit(nogil=True, cache=True)
def word_end(data, start, end, code_points):
    """(end, characters, traits of its characters or-ed) of the word that begins at byte start."""
    i, found = start, np.uint16(0)
    while 0 <= i < end:
        trait = BYTE_TRAITS[data[i]]
        if trait & (SPACE | NON_ASCII):
            break
        found |= trait
        i += 1
    if i == end or not BYTE_TRAITS[data[i]] & NON_ASCII:
        return i, i - start, found
    return _word_end_of_any_script(data, start, i, end, found, code_points)


@njit(nogil=True, cache=True)
def _word_end_of_any_script(data, start, i, end, found, code_points):
    """As word_end, from byte i on, which begins the first character that is not ASCII."""
    characters = i - start
    while i < end:
        trait, size = trait_at(data, i, code_points)
        if trait & SPACE or (trait & UNSPACED and i > start):
            break
        if found & UNSPACED and trait & (LETTER | NUMERAL):
            break
        found |= trait
        characters += 1
        i += size
    return i, characters, found


@njit(nogil=True, cache=True)
def count_characters(data, start, end):
    """Code points in start .. end: bytes that continue no character."""
    characters = np.int64(0)
    for byte in data[start:end]:
        characters += np.int64((byte & np.uint8(0xC0)) != np.uint8(0x80))
    return characters


@njit(nogil=True, cache=True)
def mix(key):
    """Spreads the bits of a 64-bit value over all of them (the finaliser of MurmurHash3 with other shifts)."""
    key = (key ^ (key >> _SHIFT_32)) * _MULTIPLIER
    return key ^ (key >> _SHIFT_29)


@njit(nogil=True, cache=True)
def eight_bytes(first, second, start):
    """The eight bytes from byte `start` on, out of the two aligned words they lie in."""
    shift = np.uint64((start & 7) << 3)
    return first >> shift | (second << _ONE) << (_WORD_SHIFT - shift)


@njit(nogil=True, cache=True)
def hash_short(eight, size):
    """hash_bytes of at most eight bytes."""
    if size < 8:
        eight &= (_ONE << np.uint64(size << 3)) - _ONE
    key = (np.uint64(size) * _MULTIPLIER ^ eight) * _MULTIPLIER
    return mix(key ^ (key >> _SHIFT_29))


@njit(nogil=True, cache=True)
def hash_bytes(words, start, end):
    """64-bit hash of bytes start .. end, read eight at a time. Only for comparing texts within a run: depends on the byte order."""
    key = np.uint64(end - start) * _MULTIPLIER
    i = start
    while i < end:
        eight = eight_bytes(words[i >> 3], words[(i >> 3) + 1], i)
        if i + 8 > end:
            eight &= (_ONE << np.uint64((end - i) << 3)) - _ONE
        key = (key ^ eight) * _MULTIPLIER
        key ^= key >> _SHIFT_29
        i += 8
    return mix(key)
