"""The kernels against a reference in plain Python, which knows characters by name and category, not by the tables."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.corpus.characters import TABLE_SIZE
from fledge.corpus.dedup.words import BLOCK_BYTES, Hashes, blocks, hash_runs, hash_words, text_buffers

MASK = (1 << 64) - 1
UNSPACED_SCRIPTS = (
    "CJK", "IDEOGRAPHIC", "HANGZHOU", "OLD CHINESE", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "VERTICAL KANA", "VERTICAL IDEOGRAPHIC",
    "HENTAIGANA", "MASU", "BOPOMOFO", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "TAI", "NEW TAI", "BALINESE", "YI", "JAVANESE", "AHOM",
    "TANGUT", "KHITAN", "NUSHU",
)  # fmt: skip
PIECES = [
    *"aZ09_ .,\n\t-'", "The ", "word", "abcdefgh", "abcdefghijklmnop", "\u0301", "e\u0301", "é", "İstanbul", "\u0131", "ẞ", "Straße", "ΣΑΣ",
    "漢字", "。", "カタカナ", "ｶﾞ", "ที่", "한국어", "हिन्दी", "שָׁלוֹם", "العربية", "Привет", "мир ", "😀", "👩\u200d💻", "❤\ufe0f", "\u200b",
    "\x00", "\U00020000", "\U0001d400", "\U000e0041", "\u00a0", "naïve", "\u3007", "Ⅷ", "½",
]  # fmt: skip
any_text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=30).map("".join)


def reference_words(text: str) -> list[str]:
    words: list[str] = []
    inside = unspaced = False
    for character in text:
        category = unicodedata.category(character)
        if ord(character) >= TABLE_SIZE or (category[0] not in "LNM" and character != "_"):
            inside = False
            continue
        if category[0] == "M":
            if inside:
                words[-1] += character
            continue
        is_letter = category[0] == "L" or category == "Nl"
        # Tangut ideographs are the only letters whose names Python does not know.
        own_word = is_letter and unicodedata.name(character, "TANGUT").startswith(UNSPACED_SCRIPTS)
        if not inside or own_word or unspaced:
            words.append("")
        words[-1] += character.lower()[0]
        inside, unspaced = True, own_word
    return words


def reference_hash(word: str) -> int:
    """Chunks of up to eight bytes of whole characters; a chunk that is full, or that the next character does not fit in, is folded."""

    def fold(hashed: int, chunk: bytes) -> int:
        product = (hashed ^ int.from_bytes(chunk, "little")) * 0x9E3779B97F4A7C15 & MASK
        return product ^ product >> 32

    hashed, chunk = 0x2545F4914F6CDD1D, b""
    for character in word:
        if len(chunk) + len(character.encode()) > 8:
            hashed, chunk = fold(hashed, chunk), b""
        chunk += character.encode()
        if len(chunk) == 8:
            hashed, chunk = fold(hashed, chunk), b""
    hashed = fold(hashed, chunk) * 0xFF51AFD7ED558CCD & MASK
    return hashed ^ hashed >> 29


def reference_run_hash(words: list[int]) -> int:
    rolling = 0
    for word in words:
        rolling = (rolling * 0xD6E8FEB86659FD93 + word) & MASK
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        rolling = (rolling ^ rolling >> 33) * multiplier & MASK
    return rolling ^ rolling >> 33


def hashed(*texts: str | bytes) -> list[list[int]]:
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return by_document(hash_words(*text_buffers(pa.array(encoded, pa.large_binary()))))


def by_document(hashes: Hashes) -> list[list[int]]:
    return [part.tolist() for part in np.split(hashes.values, hashes.offsets[1:-1])]


@given(any_text)
def test_words_are_those_of_the_reference(text: str) -> None:
    assert hashed(text) == [[reference_hash(word) for word in reference_words(text)]]


def test_characters_of_all_planes_between_letters() -> None:
    codes = [*range(0x3400), *range(0x3400, TABLE_SIZE + 100, 11)]
    texts = [f"x{chr(code)}y {chr(code)}" for code in codes if not 0xD800 <= code < 0xE000]
    expected = [reference_words(text) for text in texts]
    assert hashed(*texts) == [[reference_hash(word) for word in words] for words in expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The quick, BROWN fox_2!", ["the", "quick", "brown", "fox_2"]),
        ("don't e-mail", ["don", "t", "e", "mail"]),
        ("漢字かな abc漢def", ["漢", "字", "か", "な", "abc", "漢", "def"]),
        ("ที่นี่", ["ท\u0e35\u0e48", "น\u0e35\u0e48"]),
        ("cafe\u0301 café", ["cafe\u0301", "café"]),
        ("İSTANBUL DIŞ", ["istanbul", "diş"]),
        ("STRASSE Straße STRAẞE", ["strasse", "straße", "straße"]),
        ("❤\ufe0f 1\ufe0f\u20e3 \u0301", ["1\ufe0f\u20e3"]),
        ("abcdefgh abcdefghi abcdefgé", ["abcdefgh", "abcdefghi", "abcdefgé"]),
        ("...", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert reference_words(text) == words
    assert hashed(text) == [[reference_hash(word) for word in words]]


@given(st.lists(st.one_of(st.binary(max_size=12), any_text.map(str.encode)), max_size=8))
def test_bytes_that_are_no_text_separate_and_never_reach_into_a_neighbour(documents: list[bytes]) -> None:
    readable = [document.decode("utf-8", "replace") for document in documents]
    expected = [[reference_hash(word) for word in reference_words(text)] for text in readable]
    assert hashed(*documents, b"") == [*expected, []]


@pytest.mark.parametrize("cut", [b"\xc3", b"\xe6", b"\xe6\xbc", b"\xf0\x9f\x98", b"\xe0\x81\xa1", b"\xf4\x90\x80\x80", b"\xff"])
def test_a_character_that_is_cut_off_or_overlong_separates(cut: bytes) -> None:
    assert hashed(b"ab" + cut, b"\xa2cd" + cut + b"ef") == hashed("ab", "cd ef")


@given(st.lists(any_text, max_size=5), st.integers(1, 6))
def test_runs(texts: list[str], length: int) -> None:
    words = hash_words(*text_buffers(pa.array(texts, pa.large_string())))
    expected = []
    for document in by_document(words)[: len(texts)]:
        last = max(1, len(document) - length + 1) if document else 0
        expected.append([reference_run_hash(document[start : start + length]) for start in range(last)])
    assert by_document(hash_runs(words, length))[: len(texts)] == expected


def test_a_slice_of_an_array_has_its_own_words() -> None:
    texts = pa.array(["one two", "", "three", "four five six"], pa.large_string())
    assert by_document(hash_words(*text_buffers(texts[1:3]))) == hashed("", "three")
    assert text_buffers(texts[2:2])[1].tolist() == [0]


def test_blocks_cover_all_documents_in_order() -> None:
    sizes = [0, BLOCK_BYTES - 1, 1, 1, 3 * BLOCK_BYTES, 0, 0, BLOCK_BYTES, 5]
    offsets = np.cumsum([7, *sizes])
    found = list(blocks(offsets))
    assert found == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 8), slice(8, 9)]
    assert list(blocks(np.zeros(1, np.int64))) == []


def test_word_hashes_never_change() -> None:
    assert hashed("Fledge Привет 漢 abcdefghij") == [[16845633359266769449, 15912915216253208681, 133177214217549901, 11673945352770354697]]
