from __future__ import annotations

import pickle
import random
import unicodedata
from typing import get_args

import ftfy
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.corpus.filters import cleaning
from fledge.corpus.filters.cleaning import Cleaner
from fledge.corpus.filters.settings import CleaningStep

CLEANING_STEPS: tuple[CleaningStep, ...] = get_args(CleaningStep)

DEFAULT: tuple[CleaningStep, ...] = ("unicode", "control_characters", "whitespace")

# What the steps look for, in pieces that can meet in any way.
PIECES = (
    "a", "e", "word", "m", ">", "?", "1", "30", "555", "\t", " ", "  ", "\n", "\n\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\x00",
    "\x1b[31m", "\x1b", "\b", "\x7f", "\x80", "\x99", "\x9d", "\x1a", "\xa0", "\u2009", "\u202f", "\u3000", "\u1820", "\xad", "\ufeff",
    "\u200b", "\u200c", "\u200d", "\u206a", "\ufffd", "\u0301", "\u0338", "\u0323", "\u1100", "\u1161", "\u11a8", "\u0915", "\u093c",
    "\u212b", "\u00c3", "\u00a9", "\u00e2", "\u20ac", "\u2122", "\u00c2", "\u0420", "\u00bb", "\u65e5", "\ud55c", "\U0001f600",
    "a@b.de", "@", ".", ".com", "x.y", "8.8.120.8", "93.184.", "216.34", ":", "2001:4860::8888", "+49 30 901820", "-", "/", "(", ")", "+",
    "212-555-0199", "Tel.: ", "Fax 0", "901 820", "All rights reserved.", "Skip to content", "[Page 3]", "We use cookies", "\u00a9 2020",
)  # fmt: skip
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb"  # joiners in a word and in a picture
messy = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def clean(text: str, *steps: CleaningStep) -> str:
    return str(Cleaner(steps)(pa.array([text], pa.large_string()))[0][0].as_py())


# ---- one step at a time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301tude", "\u00e9tude"),
        ("\u212b", "\u00c5"),
        ("a\u0323\u0307", "\u1ea1\u0307"),
        ("a\u0307\u0323", "\u1ea1\u0307"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("\u0915\u093c", "\u0915\u093c"),
        ("\ufb01 \u00b2 \uff21", "\ufb01 \u00b2 \uff21"),
    ],
)
def test_unicode_is_composed_and_nothing_more(text: str, expected: str) -> None:
    assert clean(text, "unicode") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\x85d\u2028e\u2029f\vg\fh", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("\r\r\n\n", "\n\n\n"),
        ("a\x00b\x07c\x7fd\x90e", "abcde"),
        ("\ufeffcol\u00adour", "colour"),
        ("tab\tstays", "tab\tstays"),
        (PERSIAN, PERSIAN),
        ("\u200fright-to-left\u200e \u200b", "\u200fright-to-left\u200e \u200b"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("N\bNA\bAM\bME\bE _\bx", "NAME x"),
        ("\b\n\bx", "\nx"),
        ("\U000e0067 tag \U0010ffff", "\U000e0067 tag \U0010ffff"),
    ],
)  # fmt: skip
def test_controls_go_and_line_ends_are_newlines(text: str, expected: str) -> None:
    assert clean(text, "control_characters") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  \nb\t\n\n\n\n\nc \n", "a\nb\n\n\nc"),
        ("a\n\n\nb", "a\n\n\nb"),
        ("a\n \n\t\n \nb", "a\n\n\nb"),
        ("\n \n  one line", "one line"),
        ("    if x:\n        y()\n    z()", "    if x:\n        y()\n    z()"),
        ("\n    if x:\n\n        y()", "    if x:\n\n        y()"),
        ("  Shall I compare thee\nto a summer's day?", "Shall I compare thee\nto a summer's day?"),
        ("a\xa0b\u2003c\u202f!", "a b c !"),
        ("\u1820\u202f\u1824", "\u1820\u202f\u1824"),
        ("\u3000\u7b2c\u4e00\u6bb5\u3000\n\u3000\u7b2c\u4e8c\u6bb5", "\u3000\u7b2c\u4e00\u6bb5\n\u3000\u7b2c\u4e8c\u6bb5"),
        ("| a  |  b |\n|----|----|", "| a  |  b |\n|----|----|"),
        ("- item\n\n  - nested\n\n    code  here", "- item\n\n  - nested\n\n    code  here"),
        ("crlf \r\nline\x1c", "crlf\nline"),
        (" \n\t\u3000\xa0\n", ""),
        ("", ""),
    ],
)
def test_white_space_is_tidied_and_indentation_stays(text: str, expected: str) -> None:
    assert clean(text, "whitespace") == expected


SENTENCES = (
    "Ein sch\u00f6ner Tag \u00fcber den D\u00e4chern, \u201eganz\u201c gro\u00dfes Kino \u2013 jawohl\u2026",
    "L\u2019\u00e9t\u00e9 \u00e0 N\u00eemes, \u00e7a co\u00fbte 5 \u20ac, voil\u00e0 o\u00f9 j\u2019\u00e9tais",
    "\u041f\u0440\u0438\u0432\u0435\u0442! "
    "\u00ab\u0425\u043e\u0440\u043e\u0448\u043e\u00bb \u2014 "
    "\u0441\u043a\u0430\u0437\u0430\u043b \u043e\u043d. \u042f \u0432 \u041c\u043e\u0441\u043a\u0432\u0435.",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03ba\u03b5\u03af\u03bc\u03b5\u03bd\u03b1",
    "\u3053\u308c\u306f\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144, \u010ce\u0161tina je kr\u00e1sn\u00e1",
    "S\u00e3o Jo\u00e3o \u00e0 noite, cora\u00e7\u00e3o; Vi\u1ec7t Nam \u0111\u1eb9p l\u1eafm \U0001f600",
)  # fmt: skip


@pytest.mark.parametrize("encoding", ["latin-1", "cp1250", "cp1251", "cp1252", "cp1254", "cp1257", "iso-8859-2", "mac-roman", "cp437"])
def test_mojibake_is_repaired_wherever_ftfy_would(encoding: str) -> None:
    repaired = 0
    for sentence in SENTENCES:
        broken = sentence.encode().decode(encoding, errors="replace")
        for text in (sentence, broken, broken.replace("\xa0", " "), f"{sentence} {broken}"):
            expected = text
            while (better := ftfy.fix_encoding(expected)) != expected:
                expected = better
            assert clean(text, "mojibake") == expected
            repaired += expected != text
    assert repaired >= 8


def test_ordinary_text_of_any_language_is_hardly_ever_given_to_ftfy() -> None:
    suspected = cleaning._suspects(pa.array(SENTENCES, pa.large_string()), ["mojibake"])["mojibake"]
    assert suspected.sum() <= 1


def test_mojibake_is_repaired_before_its_bytes_are_dropped_as_controls() -> None:
    assert clean("it\u00e2\x80\x99s na\u00c3\xadve, caf\u00c3\u00a9", *CLEANING_STEPS) == "it\u2019s na\u00edve, caf\u00e9"
    assert clean("half a pair: \u00ed\xa0\xbd", "mojibake").encode()


# ---- all of them together


def test_batches_keep_their_order_and_count_what_each_step_changed() -> None:
    texts = ["fine", "e\u0301 \x00", "x \n", "\x07", "a@b.de  "]
    cleaned, changed = Cleaner((*DEFAULT, "email"))(pa.array(texts, pa.large_string()))
    assert cleaned.to_pylist() == ["fine", "\u00e9", "x", "", "email@example.com"]
    assert changed == {"control_characters": 2, "unicode": 1, "email": 1, "whitespace": 3}
    assert cleaned.type == pa.large_string()


def test_nothing_to_do_returns_the_batch_itself() -> None:
    texts = pa.array(["plain", "na\u00efve \u65e5\u672c"], pa.large_string())
    cleaned, changed = Cleaner(CLEANING_STEPS)(texts)
    assert cleaned is texts
    assert set(changed) == set(CLEANING_STEPS)
    assert not any(changed.values())
    assert Cleaner(())(texts) == (texts, {})


def test_the_identity_names_what_decides() -> None:
    assert (
        Cleaner(("whitespace", "unicode")).identity == Cleaner(("unicode", "whitespace")).identity == {"steps": ["unicode", "whitespace"]}
    )
    assert Cleaner(("mojibake",)).identity == {"steps": ["mojibake"], "ftfy": ftfy.__version__}


def test_any_batch_any_slice_the_same_text() -> None:
    numbers = random.Random(0)
    texts = ["".join(numbers.choices(PIECES, k=numbers.randint(0, 20))) for _ in range(60)]
    alone = [clean(text, *CLEANING_STEPS) for text in texts]
    array = pa.array(["front\r\n", *texts, "behind \n"], pa.large_string())
    cleaner = pickle.loads(pickle.dumps(Cleaner(CLEANING_STEPS)))
    assert cleaner(array.slice(1, 60))[0].to_pylist() == alone
    assert cleaner(array)[0].to_pylist()[1:-1] == alone


@pytest.mark.parametrize("texts", [[], [""], ["", "a ", ""], ["a\r"] * 3])
def test_empty_batches_and_texts(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    assert Cleaner(CLEANING_STEPS)(array)[0].to_pylist() == [text.strip() for text in texts]
    assert Cleaner(CLEANING_STEPS)(array.slice(len(texts)))[0].to_pylist() == []


@given(st.lists(messy | st.text(max_size=30), max_size=10), st.sets(st.sampled_from(CLEANING_STEPS)))
@settings(max_examples=150)
def test_cleaning_twice_is_cleaning_once_and_every_promise_holds(texts: list[str], steps: set[CleaningStep]) -> None:
    cleaner = Cleaner(tuple(steps))
    texts = [text.encode("utf-8", errors="replace").decode() for text in texts]
    once, _ = cleaner(pa.array(texts, pa.large_string()))
    twice, changed = cleaner(once)
    assert twice.to_pylist() == once.to_pylist()
    assert not any(changed.values())
    for text in once.to_pylist():
        if "unicode" in steps:
            assert unicodedata.is_normalized("NFC", text)
        if "control_characters" in steps:
            assert not any(unicodedata.category(character) == "Cc" and character not in "\t\n" for character in text)
        if "whitespace" in steps:
            assert "\n\n\n\n" not in text
            assert all(line == line.rstrip() for line in text.split("\n"))


@given(messy | st.text(max_size=30), st.sampled_from(CLEANING_STEPS))
@settings(max_examples=400)
def test_who_is_not_suspected_would_not_be_changed(text: str, step: CleaningStep) -> None:
    texts = pa.array([text.encode("utf-8", errors="replace").decode()], pa.large_string())
    if not cleaning._suspects(texts, [step])[step][0] and step != "mojibake":
        assert cleaning._MENDS[step](texts).to_pylist() == texts.to_pylist()


@pytest.mark.parametrize(
    "text", [" " * 2_000_000 + "x", "a" * 2_000_000, "1 " * 1_000_000, "@" * 500_000, "\n" * 2_000_000, "a." * 700_000]
)
def test_a_monstrous_line_takes_no_monstrous_time(text: str) -> None:
    cleaner = Cleaner(tuple(step for step in CLEANING_STEPS if step != "mojibake"))
    cleaned, _ = cleaner(pa.array([text], pa.large_string()))
    assert len(cleaned[0].as_py()) <= len(text)


def test_what_is_not_utf8_is_never_read_past_its_end() -> None:
    offsets, data = np.array([0, 3, 5], np.int64), np.frombuffer(b"ab\xe2\x82\xf0", np.uint8)
    texts = pa.LargeStringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(data))
    cleaned, _ = Cleaner(DEFAULT)(texts)
    assert len(cleaned) == 2
