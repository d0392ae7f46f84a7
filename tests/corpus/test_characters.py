from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest

from fledge.corpus.characters import DIGIT, LETTER, MARK, OTHER, SPACE, TABLE_SIZE, UNICODE_VERSION, UNSPACED, character_tables


@pytest.mark.parametrize(
    ("character", "kind"),
    [
        ("a", LETTER), ("É", LETTER), ("ß", LETTER), ("я", LETTER), ("ع", LETTER), ("한", LETTER), ("_", LETTER), ("\u02bc", LETTER),
        ("7", DIGIT), ("٣", DIGIT), ("๓", DIGIT), ("½", DIGIT), ("Ⅷ", DIGIT), ("②", DIGIT),
        ("\u0301", MARK), ("\u093f", MARK), ("\u0e35", MARK), ("\ufe0f", MARK),
        ("漢", UNSPACED), ("\U00020000", UNSPACED), ("の", UNSPACED), ("ｶ", UNSPACED), ("\u3007", UNSPACED),
        ("ท", UNSPACED), ("ສ", UNSPACED), ("က", UNSPACED), ("ក", UNSPACED), ("བ", UNSPACED), ("ㄅ", UNSPACED), ("ꀀ", UNSPACED),
        (" ", SPACE), ("\n", SPACE), ("\u00a0", SPACE), ("\u3000", SPACE), ("\u2028", SPACE),
        ("-", OTHER), ("。", OTHER), ("€", OTHER), ("😀", OTHER), ("\x00", OTHER), ("\u200b", OTHER), ("\u00ad", OTHER), ("\u0e3f", OTHER),
        ("\ue000", OTHER), ("\u0378", OTHER),
    ],
)  # fmt: skip
def test_kinds(character: str, kind: int) -> None:
    assert character_tables().kind[ord(character)] == kind


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        ("A", "a"),
        ("É", "é"),
        ("Σ", "\u03c3"),
        ("ς", "ς"),
        ("İ", "i"),
        ("\u0131", "\u0131"),
        ("ẞ", "ß"),
        ("ß", "ß"),
        ("ǅ", "ǆ"),
        ("Ⅷ", "ⅷ"),
        ("𐐀", "𐐨"),
    ],
)
def test_lower_case(upper: str, lower: str) -> None:
    assert chr(character_tables().lower[ord(upper)]) == lower


def test_every_character_has_the_kind_of_its_category() -> None:
    kind = character_tables().kind
    kinds_of = {"L": {LETTER, UNSPACED}, "N": {DIGIT, UNSPACED}, "M": {MARK}, "Z": {SPACE}}
    for code in range(TABLE_SIZE):
        if code != ord("_"):
            expected = kinds_of.get(unicodedata.category(chr(code))[0], {SPACE, OTHER})
            assert kind[code] in expected, hex(code)


def test_lower_case_is_stable_and_changes_no_kind() -> None:
    kind, lower = character_tables()
    assert np.array_equal(lower[lower], lower)
    assert np.array_equal(kind[lower], kind)


def test_nothing_beyond_the_table_makes_words() -> None:
    beyond = {unicodedata.category(chr(code))[0] for code in range(TABLE_SIZE, sys.maxunicode + 1) if not 0xE0100 <= code <= 0xE01EF}
    assert beyond <= {"C"}
    assert unicodedata.unidata_version == UNICODE_VERSION
