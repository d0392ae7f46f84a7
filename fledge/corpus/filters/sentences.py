"""How many sentences a line holds, as a rule-based splitter would say that knows no more than characters.

A sentence ends at a `.`, `!` or `?` that closes a word, and at any sentence terminal of another script; the next one begins with the
next letter, numeral or symbol. A full stop ends no sentence in an ellipsis, inside a word and after a single letter (initials, labels of
lists, the `g` of `e.g.`). That is close to what spaCy's sentencizer does on English tokens, by which datatrove counts the sentences
of C4's last rule; titles such as `Mr.` it knows from a list.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.filters.scanning import LETTER, NUMERAL, trait_at

_CLOSES, _BEGINS, _LOWER, _UPPER, _BEFORE_STOP, _SPACE = (1 << bit for bit in range(6))
"""What a byte may be: after a terminal, still the same word's end; the begin of the next sentence; a cased letter; before a full stop
that ends a sentence; white space."""

_COMPILED_IN = {"scanning": "35c21c8b30b1f5b6"}
"""What of other files is compiled into the loops here. numba keeps compiled code as long as this file stays the same and would miss a
change there; a test compares these beginnings of their SHA-256."""

_FULL_STOP = 0x2E


def _sentence_bytes() -> NDArray[np.uint8]:
    """The table by byte; a byte of a character beyond ASCII may precede a full stop and close a word, as typographic quotes do."""
    table = np.zeros(256, np.uint8)
    for byte in range(128):
        character = chr(byte)
        table[byte] |= _SPACE * character.isspace() | _LOWER * character.islower() | _UPPER * character.isupper()
        table[byte] |= _BEGINS * (character.isalnum() or character in "$+<=>^`|~")
        table[byte] |= _CLOSES * (character in "!\"#&'()*,.:;<>?[]_`{}")
        table[byte] |= _BEFORE_STOP * (character.islower() or character.isdigit() or character in "!\"#%&'()*+,-:;<>?[]_`{}")
    table[128:] = _CLOSES | _BEFORE_STOP
    return table


_BYTES = _sentence_bytes()


@njit(nogil=True, cache=True)
def ends_sentence(data, i, start, end):
    """Whether the `.`, `!` or `?` at byte i of the line start .. end is the end of a sentence, if another follows."""
    before = data[i - 1] if i > start else np.uint8(0x20)
    after = data[i + 1] if i + 1 < end else np.uint8(0x20)
    if data[i] == _FULL_STOP:
        if before == _FULL_STOP or after == _FULL_STOP:
            return False
        if _BYTES[before] & _LOWER and _BYTES[after] & _UPPER:
            return True
    j = i + 1
    while j < end and _BYTES[data[j]] & _CLOSES:
        j += 1
    closes = j == end or _BYTES[data[j]] & _SPACE
    if data[i] == _FULL_STOP:
        return closes and (_BYTES[before] & _SPACE or _may_stop_after(data, i, start))
    return closes or _opens_word(data, i, start)


@njit(nogil=True, cache=True)
def _opens_word(data, i, start):
    """Whether nothing but punctuation stands before byte i in its word."""
    while i > start and _BYTES[data[i - 1]] & _CLOSES:
        i -= 1
    return i == start or _BYTES[data[i - 1]] & _SPACE


@njit(nogil=True, cache=True)
def _may_stop_after(data, i, start):
    """Whether what stands before the full stop at byte i is no initial and no single letter."""
    before = _BYTES[data[i - 1]]
    if before & _UPPER:
        return i - start >= 2 and _BYTES[data[i - 2]] & _UPPER
    if not before & _BEFORE_STOP:
        return False
    if before & _LOWER and (i - 1 == start or not _BYTES[data[i - 2]] & (_LOWER | _UPPER)):
        # A word of one letter, or the last letter of one with full stops in it: a., e.g., p.m.
        k = i - 1
        return not (k == start or _BYTES[data[k - 1]] & (_SPACE | _CLOSES))
    return True


@njit(nogil=True, cache=True)
def next_sentence(data, i, end, code_points):
    """Byte at which the next letter, numeral or symbol of the line begins, from byte i on; `end` if there is none."""
    while i < end:
        if data[i] < 0x80:
            if _BYTES[data[i]] & _BEGINS:
                break
            i += 1
        else:
            trait, size = trait_at(data, i, code_points)
            if trait & (LETTER | NUMERAL):
                break
            i += size
    return i
