"""Cuts text into the pieces of `SPLIT_PATTERN` without a regular expression: one or two characters decide which alternative matches.

What a letter, a number or white space is comes from outside, as a table by code point: libraries follow different versions of Unicode.
The kernels are all in this file, as they call one another (see `merging.py`).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNKNOWN, LETTER, NUMBER, SYMBOL, SPACE, NEWLINE = range(6)
"""Classes of characters; NEWLINE is carriage return and line feed, SPACE all other white space."""


@njit(nogil=True, cache=True)
def cut_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], classes: NDArray[np.uint8], stops: NDArray[np.int64]) -> int:
    """Fills `stops` with the ends of the pieces of all texts, valid UTF-8; their number, or -1 at a character of UNKNOWN class."""
    count = 0
    for text in range(offsets.size - 1):
        position, end = offsets[text], offsets[text + 1]
        while position < end:
            position = _piece_end(data, position, end, classes)
            if position < 0:
                return -1
            stops[count] = position
            count += 1
    return count


@njit(nogil=True, cache=True)
def _class_at(data: NDArray[np.uint8], position: int, classes: NDArray[np.uint8]) -> tuple[int, int]:
    """Class and bytes of the character that begins here."""
    byte = np.int64(data[position])
    if byte < 0x80:
        return classes[byte], 1
    code = np.int64(data[position + 1]) & 0x3F
    if byte < 0xE0:
        return classes[(byte & 0x1F) << 6 | code], 2
    code = code << 6 | np.int64(data[position + 2]) & 0x3F
    if byte < 0xF0:
        return classes[(byte & 0x0F) << 12 | code], 3
    return classes[(byte & 0x07) << 18 | code << 6 | np.int64(data[position + 3]) & 0x3F], 4


@njit(nogil=True, cache=True)
def _run_end(data: NDArray[np.uint8], position: int, end: int, classes: NDArray[np.uint8], wanted: int) -> int:
    """Where characters of a class end; -1 at an unknown one."""
    while position < end:
        found, size = _class_at(data, position, classes)
        if found != wanted:
            return position if found != UNKNOWN else -1
        position += size
    return position


@njit(nogil=True, cache=True)
def _piece_end(data: NDArray[np.uint8], start: int, end: int, classes: NDArray[np.uint8]) -> int:
    """Where the piece that begins here ends, by SPLIT_PATTERN; -1 at an unknown character."""
    first, size = _class_at(data, start, classes)
    if data[start] == 0x27:
        contracted = _contraction(data, start + 1, end)
        if contracted > 0:
            return start + 1 + contracted
    behind = start + size
    if first == LETTER:
        return _run_end(data, behind, end, classes, LETTER)
    if first == UNKNOWN:
        return -1
    second, second_size = _class_at(data, behind, classes) if behind < end else (SPACE, 0)
    if first == NUMBER:
        return _number_end(data, behind, end, classes)
    if second == UNKNOWN:
        return -1
    if second == LETTER and first != NEWLINE:
        return _run_end(data, behind + second_size, end, classes, LETTER)
    if first == SYMBOL or (second == SYMBOL and data[start] == 0x20):
        stop = _run_end(data, behind, end, classes, SYMBOL)
        return stop if stop < 0 else _newlines_end(data, stop, end)
    return _white_space_end(data, start, end, classes)


@njit(nogil=True, cache=True)
def _contraction(data: NDArray[np.uint8], position: int, end: int) -> int:
    """Bytes of s, t, m, d, re, ve or ll in either case, or of the long s (U+017F), which is an s without case; else 0."""
    left = end - position
    if left < 1:
        return 0
    first = data[position] | 0x20
    if first in (0x73, 0x74, 0x6D, 0x64):
        return 1
    if left < 2:
        return 0
    second = data[position + 1] | 0x20
    if (first in (0x72, 0x76) and second == 0x65) or (first == 0x6C and second == 0x6C):
        return 2
    return 2 if data[position] == 0xC5 and data[position + 1] == 0xBF else 0


@njit(nogil=True, cache=True)
def _number_end(data: NDArray[np.uint8], position: int, end: int, classes: NDArray[np.uint8]) -> int:
    """Behind at most two more numerals."""
    for _ in range(2):
        if position == end:
            return position
        found, size = _class_at(data, position, classes)
        if found != NUMBER:
            return position if found != UNKNOWN else -1
        position += size
    return position


@njit(nogil=True, cache=True)
def _newlines_end(data: NDArray[np.uint8], position: int, end: int) -> int:
    while position < end and (data[position] == 0x0A or data[position] == 0x0D):
        position += 1
    return position


@njit(nogil=True, cache=True)
def _white_space_end(data: NDArray[np.uint8], start: int, end: int, classes: NDArray[np.uint8]) -> int:
    """Behind the last newline of the run, if there is one; else all of it at the end of the text, or all but its last character."""
    position, last, newline = start, start, -1
    while position < end:
        found, size = _class_at(data, position, classes)
        if found == UNKNOWN:
            return -1
        if found != SPACE and found != NEWLINE:
            break
        last = position
        position += size
        if found == NEWLINE:
            newline = position
    if newline >= 0:
        return newline
    return last if position < end and last > start else position
