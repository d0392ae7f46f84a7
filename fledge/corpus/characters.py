"""What every character is, as tables that compiled loops can index: the one home of "word" for quality rules and duplicates.

Nothing here assumes ASCII. A character is one of six kinds; scripts that write without spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan) are told apart, because there every character stands for a word of its own: shingles of words then are
character n-grams.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPACE, OTHER, DIGIT, LETTER, MARK, UNSPACED = range(6)
"""Kinds of characters: white space; punctuation, symbols, controls; numerals; letters and `_`; combining marks; letters of
unspaced scripts."""

TABLE_SIZE = 0x40000
"""Code points from here on (tags, private use) count as OTHER and have no lower case."""

# Scripts whose words are not separated by spaces: the classes ID (ideographs, kana, ...), SA (complex context) and AK (aksara) of
# UAX #14, and Tibetan. Only the letters in these ranges count.
_UNSPACED_RANGES = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3000, 0x30FF),  # iteration marks, numerals, Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # CJK unified ideographs
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x11700, 0x1174F),  # Ahom
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # Kana, Nushu
    (0x20000, 0x3FFFF),
)


class CharacterTables(NamedTuple):
    """Indexed by code point below TABLE_SIZE."""

    kind: NDArray[np.uint8]
    lower: NDArray[np.uint32]
    """The lower-case code point; of a letter whose lower case is several characters, the first."""


UNICODE_VERSION = unicodedata.unidata_version
"""Of the tables. What is kept of a corpus by its words can differ in characters that another version does not know yet."""


@functools.cache
def character_tables() -> CharacterTables:
    """The tables of the running Python's Unicode version, made once per process in about 0.1 s."""
    characters = list(map(chr, range(TABLE_SIZE)))
    categories = "".join(map(unicodedata.category, characters)).encode("ascii")
    major, minor = np.frombuffer(categories, np.uint8).reshape(-1, 2).T
    kind = np.full(TABLE_SIZE, OTHER, np.uint8)
    kind[np.fromiter(map(str.isspace, characters), bool)] = SPACE
    for letter, its_kind in ((b"L", LETTER), (b"N", DIGIT), (b"M", MARK)):
        kind[major == ord(letter)] = its_kind
    unspaced = np.zeros(TABLE_SIZE, bool)
    for first, last in _UNSPACED_RANGES:
        unspaced[first : last + 1] = True
    kind[unspaced & ((kind == LETTER) | ((kind == DIGIT) & (minor == ord("l"))))] = UNSPACED
    kind[ord("_")] = LETTER
    small = "".join([character[0] for character in map(str.lower, characters)]).encode("utf-32-le", "surrogatepass")
    has_case = np.isin(kind, (SPACE, OTHER), invert=True)
    lower = np.where(has_case, np.frombuffer(small, "<u4"), np.arange(TABLE_SIZE, dtype=np.uint32))
    return CharacterTables(kind, lower)
