"""Compiled loops over the characters of documents: which of them need mending, and the two steps that every second corpus needs.

The one idea: a table says what each code point is, so one loop at about 1 GB per CPU second decides for four cleaning steps, and
control characters and white space are rewritten at the same pace without a Python string. All loops take the bytes and offsets of an
Arrow large_string array; offsets count from the beginning of the bytes.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNICODE, CONTROL, SPACE, MOJIBAKE = 1, 2, 4, 8
"""What a document is suspected of, and what makes it so in the table of characters: not composed (or composing with what stands
before it), control or line end, white space, a byte of Windows-1252 that was read as Latin-1."""
_FIRST_OF_2, _FIRST_OF_3, _FIRST_OF_4, _CONTINUES = 32, 64, 128, 256
"""What a character is if it stands for a byte of UTF-8 that was read in a single-byte encoding."""
_BEFORE_SPACE, _BLANK, _ODD_SPACE, _LINE_END = 512, 1024, 2048, 4096
_PENDING_SHIFT = 4
_MOST_NEWLINES = 3

TABLE_SIZE = 0x30000
"""Behind it are no canonical compositions, no spaces, and no controls but the tags of flags."""

_LINE_ENDS = (0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029)
"""The newline functions of the Unicode standard, section 5.8, beside the line feed."""
_INVISIBLE = (0xAD, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD), 0xFFFE, 0xFFFF)
"""The soft hyphen, a hint for typesetting that splits words; deprecated format characters; the byte order mark; anchors of
annotations and objects; non-characters. Joiners, direction marks and the zero-width space stay: Persian, Indic and Khmer are
written with them."""
_ODD_SPACES = (0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F)
"""No-break and typographic spaces; not the ideographic and the Ogham one, which are visible characters of their scripts."""
_SINGLE_BYTE_ENCODINGS = ("latin-1", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1257", "iso-8859-2", "mac-roman", "cp437")
"""Those that ftfy 6.3 tries."""
_BYTES_OF_UTF8 = (
    (range(0xC2, 0xE0), _FIRST_OF_2),
    (range(0xE0, 0xF0), _FIRST_OF_3),
    (range(0xF0, 0xF5), _FIRST_OF_4),
    (range(0x80, 0xC0), _CONTINUES),
)
_LETTERS_BEFORE_SPACE = "\xc2\xc3\xc5\xce\xd0\xd9\xe2\xe3\xf0"
"""Bytes of Latin-1 behind which ftfy takes a space for the no-break space that some program made of it; other letters, such as the
French word for `to`, far too often stand before a space of their own."""


@functools.cache
def character_table() -> NDArray[np.uint16]:
    """What each code point is; made once per process in about 0.1 s."""
    table = np.zeros(TABLE_SIZE, np.uint16)
    for code in range(TABLE_SIZE):
        character = chr(code)
        if character.isspace() and code != 0x0A:
            table[code] |= _BLANK
        if code < 0x80:
            continue
        decomposition = unicodedata.decomposition(character)
        if unicodedata.combining(character) or (decomposition and not unicodedata.is_normalized("NFC", character)):
            table[code] |= UNICODE
        parts = decomposition.split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            table[int(parts[1], 16)] |= UNICODE
    table[0x1161:0x1176] |= UNICODE  # vowels and final consonants of Hangul, which are composed by rule
    table[0x11A8:0x11C3] |= UNICODE
    table[0x80:] |= np.where(table[0x80:] & _BLANK, np.uint16(SPACE), np.uint16(0))
    controls = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in {0x09, 0x0A}]
    table[[*controls, *_LINE_ENDS, *_INVISIBLE]] |= CONTROL
    table[list(_LINE_ENDS)] |= _LINE_END
    table[list(_ODD_SPACES)] |= _ODD_SPACE
    table[0x80:0xA0] |= MOJIBAKE
    for values, bit in _BYTES_OF_UTF8:
        for encoding in _SINGLE_BYTE_ENCODINGS:
            table[[ord(character) for character in bytes(values).decode(encoding, errors="ignore")]] |= bit
    # Bytes that an encoding leaves undefined stay C1 controls; U+001A and U+FFFD stand where a byte was lost.
    table[[0x1A, 0xFFFD, *range(0x80, 0xA0)]] |= _CONTINUES
    table[[ord(letter) for letter in _LETTERS_BEFORE_SPACE]] |= _BEFORE_SPACE
    return table


@njit(nogil=True, cache=True)
def look_at_characters(data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.uint16], found: NDArray[np.uint16]) -> None:
    """Set the suspicions of each document; one that is not suspected would not be changed."""
    marks = np.uint16(UNICODE | CONTROL | SPACE | MOJIBAKE)
    for document in range(offsets.size - 1):
        start, end = offsets[document], offsets[document + 1]
        seen, pending, before_space, newlines, at = np.uint16(0), np.uint16(0), False, 0, start
        while at < end:
            code, width = np.uint32(data[at]), np.int64(1)
            if code >= 0x20 and code < 0x7F and pending == 0:
                newlines = 0
                at += 1
                continue
            if code >= 0x80:
                code, width = _decoded(data, at, end)
            bits = table[code] if code < table.size else np.uint16(0)
            seen |= bits & marks
            # Each bit of `pending` is a sequence that has begun; it moves down with every continuation and is whole at the lowest.
            continues = bits & np.uint16(_CONTINUES) or (before_space and (code == 0x20 or code == 0x3F))
            pending = (pending >> np.uint16(1)) if continues else np.uint16(0)
            if pending & np.uint16(1):
                seen |= np.uint16(MOJIBAKE)
            if bits & np.uint16(_FIRST_OF_2 | _FIRST_OF_3 | _FIRST_OF_4):
                before_space = bits & np.uint16(_BEFORE_SPACE) != 0
            pending = (pending | (bits >> np.uint16(_PENDING_SHIFT))) & np.uint16(14)
            newlines = newlines + 1 if code == 10 else 0
            if newlines and (at == start or newlines > _MOST_NEWLINES or (data[at - 1] <= 0x20 and data[at - 1] != 10)):
                seen |= np.uint16(SPACE)
            at += width
        if end > start and (data[end - 1] <= 0x20 or data[start] <= 0x20):
            seen |= np.uint16(SPACE)
        found[document] = seen


@njit(nogil=True, cache=True)
def drop_controls(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.uint16], kept: NDArray[np.uint8], ends: NDArray[np.int64]
) -> None:
    """Any line end becomes a newline, other controls go. Fills `kept`, at most as long as `data`, and where each document ends in it."""
    to = np.int64(0)
    for document in range(offsets.size - 1):
        at, end = offsets[document], offsets[document + 1]
        while at < end:
            code, width = np.uint32(data[at]), np.int64(1)
            if code >= 0x20 and code < 0x7F:
                kept[to] = code
                to += 1
                at += 1
                continue
            if code >= 0x80:
                code, width = _decoded(data, at, end)
            bits = table[code] if code < table.size else np.uint16(0)
            if bits & np.uint16(CONTROL) == 0:
                for place in range(at, at + width):
                    kept[to] = data[place]
                    to += 1
            elif bits & np.uint16(_LINE_END) and not (code == 13 and at + 1 < end and data[at + 1] == 10):
                kept[to] = 10
                to += 1
            at += width
        ends[document] = to


@njit(nogil=True, cache=True)
def tidy_space(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.uint16], kept: NDArray[np.uint8], ends: NDArray[np.int64]
) -> None:
    """No white space at line ends, at most two blank lines in a row, none at either end, plain spaces. Fills as `drop_controls` does."""
    to = np.int64(0)
    for document in range(offsets.size - 1):
        at, end = offsets[document], offsets[document + 1]
        start, line_start, text_end, newlines = to, to, to, 0
        while at < end:
            code, width = np.uint32(data[at]), np.int64(1)
            if code > 0x20 and code < 0x7F:
                kept[to] = code
                to += 1
                at += 1
                text_end = to
                continue
            if code >= 0x80:
                code, width = _decoded(data, at, end)
            bits = table[code] if code < table.size else np.uint16(0)
            if code == 10:
                newlines = 1 if text_end > line_start else newlines + 1
                to = max(line_start, text_end)
                if to > start and newlines <= _MOST_NEWLINES:
                    kept[to] = 10
                    to += 1
                line_start = to
            elif bits & np.uint16(_ODD_SPACE) and not (code == 0x202F and _is_mongolian(data, at + width, end)):
                kept[to] = 32
                to += 1
            else:
                for place in range(at, at + width):
                    kept[to] = data[place]
                    to += 1
                if bits & np.uint16(_BLANK) == 0:
                    text_end = to
            at += width
        to = _without_lone_indentation(kept, start, text_end)
        ends[document] = to


@njit(nogil=True, cache=True)
def _without_lone_indentation(kept: NDArray[np.uint8], start: np.int64, end: np.int64) -> np.int64:
    """The first line is indented only as part of a block that is: unless the next line is as well, its text moves to `start`."""
    first = start
    while first < end and (kept[first] == 32 or kept[first] == 9):
        first += 1
    following = first
    while following < end and kept[following] != 10:
        following += 1
    while following < end and kept[following] == 10:
        following += 1
    if first == start or (following < end and (kept[following] == 32 or kept[following] == 9)):
        return end
    for place in range(first, end):
        kept[start + place - first] = kept[place]
    return end - (first - start)


@njit(nogil=True, cache=True)
def _is_mongolian(data: NDArray[np.uint8], at: np.int64, end: np.int64) -> bool:
    """U+1800 to U+18BF: there a narrow no-break space joins a suffix to its word and is spelling."""
    return bool(at + 2 < end and data[at] == 0xE1 and data[at + 1] >= 0xA0 and data[at + 1] <= 0xA2)


@njit(nogil=True, cache=True)
def _decoded(data: NDArray[np.uint8], at: np.int64, end: np.int64) -> tuple[np.uint32, np.int64]:
    """Code point and bytes of the character that begins with the byte of 0x80 or more at `at`; never looks behind `end`."""
    first = np.uint32(data[at])
    width = np.int64(2 if first < 0xE0 else 3 if first < 0xF0 else 4)
    if at + width > end:
        return np.uint32(0xFFFD), end - at
    code = first & np.uint32(0x7F >> width)
    for place in range(at + 1, at + width):
        code = (code << np.uint32(6)) | (np.uint32(data[place]) & np.uint32(0x3F))
    return code, width
