"""The lines of JSON that most corpora consist of, flat objects with one text in them, go from bytes to Arrow without Python objects.

One compiled loop reads a block of lines: it checks a line as strictly as RFC 8259 and writes the text, unescaped, behind the text of
the line before. It says only "yes, this is the text" or nothing: a line that is not flat, or unusual in any other way, malformed or
not, is left to the reader of single lines, which knows the reasons. So a mistake here can cost time, but only a wrong yes a text;
tests compare every yes with the other reader.

Strings are read eight bytes at once: the first quote, backslash, control character or byte of another character is found by
arithmetic on a 64-bit number (H. S. Warren, Hacker's Delight, 2nd ed., 6-1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

_U64 = np.uint64
# Of a signed and an unsigned number numba makes a float, so that kernels spell out unsigned ones.
_ZERO, _ONE, _TWO, _THREE, _FOUR, _FIVE, _SIX, _SEVEN, _EIGHT = (_U64(number) for number in range(9))
_LOW_BITS = _U64(0x0101010101010101)
_HIGH_BITS = _U64(0x8080808080808080)
_QUOTES = _U64(0x2222222222222222)
_BACKSLASHES = _U64(0x5C5C5C5C5C5C5C5C)
_SPACES = _U64(0x2020202020202020)
_NEWLINES = _U64(0x0A0A0A0A0A0A0A0A)

_SPACE, _TAB, _NEWLINE, _RETURN = _U64(0x20), _U64(0x09), _U64(0x0A), _U64(0x0D)
_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE = (_U64(ord(mark)) for mark in '"\\,:{}')
_MINUS, _POINT, _DIGIT_0, _SMALL_A, _SMALL_U = (_U64(ord(mark)) for mark in "-.0au")

_BAILED = _ZERO
"""In place of a position: this line is for the other reader. No position behind a line is 0."""
_NO_CODE = _U64(0xFFFFFFFF)
_MOST_NUMBER_BYTES = _U64(32)  # without an exponent, so far any number is finite
_PAD_BYTES = 16  # zeros, which no value goes on with: loops need not look where the block ends


def _escapes() -> NDArray[np.uint8]:
    """By the byte behind a backslash: what it means; 0 if it is no escape, \\u, or \\r, of which the other reader makes newlines."""
    table = np.zeros(256, np.uint8)
    for mark, meaning in zip(b'"\\/bfnt', b'"\\/\b\f\n\t', strict=True):
        table[mark] = meaning
    return table


_ESCAPES = _escapes()


class FlatLines(NamedTuple):
    """What was read of a block of n lines."""

    ends: NDArray[np.int64]
    """Of every line, behind its newline. (n,)"""
    are_read: NDArray[np.bool_]
    """Whether a line's text is among `texts`. (n,)"""
    texts: pa.LargeStringArray


def read_flat_lines(block: bytes, lines: int, key: str, longest_bytes: int) -> FlatLines:
    """The string under `key` of each line of at most `longest_bytes` that is a flat object and holds a text that is not blank.

    Read texts are exactly what orjson makes of the line, and hold no carriage return.
    """
    data = np.frombuffer(block + bytes(_PAD_BYTES), np.uint8)
    texts = np.empty(len(data), np.uint8)
    ends, are_read, text_offsets = np.empty(lines, np.int64), np.empty(lines, np.bool_), np.zeros(lines + 1, np.int64)
    wanted = np.frombuffer(key.encode("utf-8", "surrogatepass"), np.uint8)
    read = _read_lines(data, _U64(len(block)), wanted, longest_bytes, texts, text_offsets, ends, are_read)
    # Only what was filled: Arrow writes whole buffers, and what lies behind would make other bytes of the same texts.
    offsets, filled = text_offsets[: read + 1], texts[: text_offsets[read]]
    return FlatLines(ends, are_read, pa.LargeStringArray.from_buffers(read, pa.py_buffer(offsets), pa.py_buffer(filled)))


@njit(nogil=True, cache=True)
def _read_lines(
    data: NDArray[np.uint8],
    size_bytes: np.uint64,
    key: NDArray[np.uint8],
    longest_bytes: int,
    texts: NDArray[np.uint8],
    text_offsets: NDArray[np.int64],
    ends: NDArray[np.int64],
    are_read: NDArray[np.bool_],
) -> int:
    """Fills the last four; the number of texts."""
    start, filled = _ZERO, _ZERO
    read = 0
    for line in range(ends.size):
        end, text_end = _read_object(data, start, size_bytes, key, texts, filled)
        is_read = end != _BAILED and end - start <= _U64(longest_bytes)
        if is_read:
            read += 1
            filled = text_end
            text_offsets[read] = filled
        else:
            end = _line_end(data, start, size_bytes)
        ends[line] = end
        are_read[line] = is_read
        start = end
    return read


@njit(nogil=True, cache=True)
def _line_end(data: NDArray[np.uint8], position: np.uint64, size_bytes: np.uint64) -> np.uint64:
    """Behind the next newline, or the end of the block."""
    while position < size_bytes:
        chunk = _eight_bytes(data, position) ^ _NEWLINES
        found = (chunk - _LOW_BITS) & ~chunk & _HIGH_BITS
        if found != _ZERO:
            return min(position + _bytes_below(found) + _ONE, size_bytes)
        position += _EIGHT
    return size_bytes


@njit(nogil=True, cache=True)
def _read_object(
    data: NDArray[np.uint8], position: np.uint64, size_bytes: np.uint64, key: NDArray[np.uint8], texts: NDArray[np.uint8], filled: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Writes the text of one line to texts[filled:]; the end of the line and of the text.

    Other strings are read the same way, but written where the next text will be.
    """
    position = _behind_spaces(data, position)
    if _U64(data[position]) != _OPEN:
        return _BAILED, filled
    text_end = filled
    is_found = False
    while True:
        position = _behind_spaces(data, position + _ONE)
        key_start = position + _ONE
        key_end = _key_end(data, position)
        position = _behind_spaces(data, key_end + _ONE)
        if key_end == _BAILED or _U64(data[position]) != _COLON:
            return _BAILED, filled
        position = _behind_spaces(data, position + _ONE)
        is_wanted = _is_key(data, key_start, key_end, key)
        if _U64(data[position]) == _QUOTE:
            position, string_end = _read_string(data, position + _ONE, texts, text_end)
            if is_wanted and not is_found:
                text_end = string_end
                is_found = True
            elif is_wanted:
                return _BAILED, filled
        elif is_wanted:
            return _BAILED, filled
        else:
            position = _behind_word(data, position)
        if position == _BAILED:
            return _BAILED, filled
        position = _behind_spaces(data, position)
        byte = _U64(data[position])
        if byte == _CLOSE:
            break
        if byte != _COMMA:
            return _BAILED, filled
    position = _behind_spaces(data, position + _ONE)
    if not is_found or not _holds_ink(texts, filled, text_end):
        return _BAILED, filled
    if position == size_bytes:
        return position, text_end
    return (position + _ONE if _U64(data[position]) == _NEWLINE else _BAILED), text_end


@njit(nogil=True, cache=True)
def _behind_spaces(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    byte = _U64(data[position])
    while byte in (_SPACE, _TAB, _RETURN):
        position += _ONE
        byte = _U64(data[position])
    return position


@njit(nogil=True, cache=True)
def _key_end(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """Where the quote behind a key is, of ASCII without escapes, whose first quote is at `position`."""
    if _U64(data[position]) != _QUOTE:
        return _BAILED
    position += _ONE
    while True:
        byte = _U64(data[position])
        if byte == _QUOTE:
            return position
        if byte < _SPACE or byte == _BACKSLASH or byte >= _U64(0x80):
            return _BAILED
        position += _ONE


@njit(nogil=True, cache=True)
def _is_key(data: NDArray[np.uint8], start: np.uint64, end: np.uint64, key: NDArray[np.uint8]) -> bool:
    if end - start != _U64(key.size):
        return False
    differing = np.uint8(0)
    for index in range(key.size):
        differing |= data[start + _U64(index)] ^ key[index]
    return bool(differing == 0)


@njit(nogil=True, cache=True)
def _behind_word(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """Behind true, false, null or a plain number."""
    four = _eight_bytes(data, position) & _U64(0xFFFFFFFF)
    if four == _U64(0x65757274) or four == _U64(0x6C6C756E):  # "true", "null" from the last byte to the first
        return position + _FOUR
    if four == _U64(0x736C6166) and data[position + _FOUR] == 0x65:  # "fals", "e"
        return position + _FIVE
    start = position
    if _U64(data[position]) == _MINUS:
        position += _ONE
    whole = position
    position = _behind_digits(data, position)
    if position == whole or (position > whole + _ONE and _U64(data[whole]) == _DIGIT_0):
        return _BAILED
    if _U64(data[position]) == _POINT:
        fraction = position + _ONE
        position = _behind_digits(data, fraction)
        if position == fraction:
            return _BAILED
    return position if position - start <= _MOST_NUMBER_BYTES else _BAILED


@njit(nogil=True, cache=True)
def _behind_digits(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    while _U64(data[position]) - _DIGIT_0 < _U64(10):
        position += _ONE
    return position


@njit(nogil=True, cache=True)
def _read_string(data: NDArray[np.uint8], position: np.uint64, texts: NDArray[np.uint8], filled: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Writes a string, whose first quote is before `position`, to texts[filled:]; where to go on behind it, and its end in `texts`.

    Eight bytes are written even if fewer belong to the string: those behind are overwritten by what comes next.
    """
    while True:
        chunk = _eight_bytes(data, position)
        _write_eight(texts, filled, chunk)
        quotes, backslashes = chunk ^ _QUOTES, chunk ^ _BACKSLASHES
        # The lowest of these bits is right; above it others may be set too.
        stops = ((quotes - _LOW_BITS) & ~quotes) | ((backslashes - _LOW_BITS) & ~backslashes) | ((chunk - _SPACES) & ~chunk) | chunk
        stops &= _HIGH_BITS
        if stops == _ZERO:
            position += _EIGHT
            filled += _EIGHT
            continue
        plain_bytes = _bytes_below(stops)
        position += plain_bytes
        filled += plain_bytes
        byte = _U64(data[position])
        if byte == _QUOTE:
            return position + _ONE, filled
        if byte >= _U64(0x80):
            position, filled = _copy_characters(data, position, texts, filled)
        elif byte == _BACKSLASH:
            meaning = _ESCAPES[data[position + _ONE]]
            if meaning != 0:
                texts[filled] = meaning
                position += _TWO
                filled += _ONE
            else:
                position, filled = _read_code(data, position, texts, filled)
        else:
            return _BAILED, filled
        if position == _BAILED:
            return _BAILED, filled


@njit(nogil=True, cache=True)
def _copy_characters(
    data: NDArray[np.uint8], position: np.uint64, texts: NDArray[np.uint8], filled: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Copies characters of several bytes up to the next of one; bails out at what is no UTF-8 (Unicode 17, table 3-7)."""
    first = _U64(data[position])
    while first >= _U64(0x80):
        second = _U64(data[position + _ONE])
        lowest, highest = _U64(0x80), _U64(0xBF)
        size_bytes = _TWO
        if first >= _U64(0xE0):
            size_bytes = _THREE if first < _U64(0xF0) else _FOUR
            if first == _U64(0xE0):
                lowest = _U64(0xA0)
            elif first == _U64(0xED):
                highest = _U64(0x9F)
            elif first == _U64(0xF0):
                lowest = _U64(0x90)
            elif first == _U64(0xF4):
                highest = _U64(0x8F)
        if first < _U64(0xC2) or first > _U64(0xF4) or second < lowest or second > highest:
            return _BAILED, filled
        texts[filled] = first
        texts[filled + _ONE] = second
        for index in range(2, int(size_bytes)):
            byte = data[position + _U64(index)]
            if byte & 0xC0 != 0x80:
                return _BAILED, filled
            texts[filled + _U64(index)] = byte
        position += size_bytes
        filled += size_bytes
        first = _U64(data[position])
    return position, filled


@njit(nogil=True, cache=True)
def _read_code(data: NDArray[np.uint8], position: np.uint64, texts: NDArray[np.uint8], filled: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Writes the character of one or, above U+FFFF, two escapes of the form \\u0000."""
    code = _hexadecimal(data, position)
    position += _SIX
    if code - _U64(0xD800) < _U64(0x400):
        low = _hexadecimal(data, position) - _U64(0xDC00)
        position += _SIX
        code = _U64(0x10000) + ((code - _U64(0xD800)) << _U64(10)) + low if low < _U64(0x400) else _NO_CODE
    elif code - _U64(0xDC00) < _U64(0x400) or code == _RETURN:
        code = _NO_CODE
    if code == _NO_CODE:
        return _BAILED, filled
    if code < _U64(0x80):
        texts[filled] = code
        return position, filled + _ONE
    if code < _U64(0x800):
        size_bytes, lead = _TWO, _U64(0xC0)
    elif code < _U64(0x10000):
        size_bytes, lead = _THREE, _U64(0xE0)
    else:
        size_bytes, lead = _FOUR, _U64(0xF0)
    for index in range(int(size_bytes) - 1, 0, -1):
        texts[filled + _U64(index)] = _U64(0x80) | code & _U64(0x3F)
        code >>= _SIX
    texts[filled] = lead | code
    return position, filled + size_bytes


@njit(nogil=True, cache=True)
def _hexadecimal(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """The number in \\u0000; _NO_CODE if there is none."""
    if _U64(data[position]) != _BACKSLASH or _U64(data[position + _ONE]) != _SMALL_U:
        return _NO_CODE
    code = _ZERO
    for index in range(2, 6):
        byte = _U64(data[position + _U64(index)])
        digit = byte - _DIGIT_0
        letter = (byte | _SPACE) - _SMALL_A
        if digit >= _U64(10):
            if letter >= _SIX:
                return _NO_CODE
            digit = letter + _U64(10)
        code = code << _FOUR | digit
    return code


@njit(nogil=True, cache=True)
def _holds_ink(texts: NDArray[np.uint8], start: np.uint64, end: np.uint64) -> bool:
    """Whether some byte shows that a text is not blank: characters that begin with C2, E1, E2 or E3 may be white space."""
    for position in range(start, end):
        byte = texts[position]
        if (byte > 0x20 and byte < 0x80) or (byte > 0xC2 and byte < 0xE1) or byte > 0xE3:
            return True
    return False


@njit(nogil=True, cache=True)
def _eight_bytes(data: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """The bytes from position on as one number, the first lowest, on any machine."""
    low = _U64(data[position]) | _U64(data[position + _ONE]) << _EIGHT
    low |= _U64(data[position + _TWO]) << _U64(16) | _U64(data[position + _THREE]) << _U64(24)
    high = _U64(data[position + _FOUR]) | _U64(data[position + _FIVE]) << _EIGHT
    high |= _U64(data[position + _SIX]) << _U64(16) | _U64(data[position + _SEVEN]) << _U64(24)
    return low | high << _U64(32)


@njit(nogil=True, cache=True)
def _write_eight(texts: NDArray[np.uint8], position: np.uint64, chunk: np.uint64) -> None:
    for index in range(8):
        texts[position + _U64(index)] = chunk >> _U64(8 * index)


@njit(nogil=True, cache=True)
def _bytes_below(flags: np.uint64) -> np.uint64:
    """Whole bytes below the lowest bit that is set, which is the high bit of a byte."""
    below = (flags & (_ZERO - flags)) - _ONE
    return ((below & _LOW_BITS) * _LOW_BITS >> _U64(56)) - _ONE
