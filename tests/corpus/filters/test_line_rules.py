# ruff: noqa: RUF001
from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fledge.corpus.filters.line_rules import COUNTS, LINE_RULES, apply_line_rules
from fledge.corpus.filters.scanning import TERMINALS, as_bytes

from .plain_words import words_of

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
ALL: dict[str, float | None] = {
    "c4_long_words": 12, "c4_citations": None, "c4_terminal_punctuation": None, "c4_words_per_line": 3, "c4_javascript": None,
    "c4_policy": None,
}  # fmt: skip
DEFAULT = {name: threshold for name, threshold in ALL.items() if name != "c4_terminal_punctuation"}


def rewritten(text: str, rules: dict[str, float | None]) -> tuple[str, dict[str, int]]:
    """The text that is left, and the counts."""
    left, counts = apply_line_rules(as_bytes(pa.array([text], pa.large_string())), rules, np.ones(1, bool))
    return bytes(left.data[: left.offsets[1]]).decode(), dict(zip(COUNTS, counts[0].tolist(), strict=True))


def small(text: str) -> str:
    return "".join(character.lower() if character.isascii() else character for character in text)


def reference(text: str, rules: dict[str, float | None]) -> tuple[str, dict[str, int]]:
    """The rules in plain Python, but for sentences, which are the business of another test."""
    counts = dict.fromkeys(COUNTS, 0)
    kept = []
    for given_line in text.splitlines():
        line = given_line.strip()
        words = words_of(line)
        if "c4_long_words" in rules and any(len(word) > (rules["c4_long_words"] or 0) for word in words):
            counts["c4_long_words"] += 1
            continue
        if "c4_citations" in rules:
            mended = re.sub(r"\[[^\W\D]*\]|\[edit\]|\[citation needed\]", "", line)
            counts["c4_citations"] += mended != line
            line = mended
        ends = line != "" and (ord(line[-1]) in TERMINALS or line[-1] in "\"'”’»」』") and not line.endswith("...")
        if "c4_terminal_punctuation" in rules and not ends:
            counts["c4_terminal_punctuation"] += words != []
            continue
        if "c4_words_per_line" in rules and len(words) < (rules["c4_words_per_line"] or 0):
            counts["c4_words_per_line"] += words != []
            continue
        counts["lorem_ipsum_lines"] += "lorem ipsum" in small(line)
        if "c4_javascript" in rules and "javascript" in small(line):
            counts["c4_javascript"] += 1
            continue
        counts["curly_bracket_lines"] += "{" in line
        if "c4_policy" in rules and any(phrase in small(line) for phrase in POLICY):
            counts["c4_policy"] += 1
            continue
        kept.append(line)
    return "\n".join(kept).strip(), counts


PIECES = st.sampled_from(
    [
        *"ab .,!?[]{1", "\n", "\n", "\r\n", "\x85", "\u2028", "\xa0", "...", "[1]", "[]", "[edit]", "[citation needed]", "[٣]",
        "java[2]script", "JavaScript", "javascrip", "Lorem Ipsum", "terms of use", "terms of us", "Privacy Policy", "cookie policy",
        "uses cookies", "use of Cookies", "use cookies", "cookies", "é", "ж", "不", "が", "।", "。", "”", "」", "😀", "\u0301",
        "three little words ", "a word of twelve-or-more characters ",
    ]
)  # fmt: skip
PATCHWORK = st.lists(PIECES, max_size=40).map("".join)
RULES = st.sets(st.sampled_from(LINE_RULES)).map(lambda names: {name: ALL[name] for name in LINE_RULES if name in names})


@settings(max_examples=300)
@given(st.one_of(PATCHWORK, st.text(max_size=60)), RULES)
@example("", DEFAULT)
@example("\n\n", DEFAULT)
@example("[1]\n [2] first words left\n[3]", {"c4_citations": None})
def test_the_compiled_rules_are_those_of_plain_python(text: str, rules: dict[str, float | None]) -> None:
    left, counts = rewritten(text, rules)
    expected, expected_counts = reference(text, rules)
    assert (left, {**counts, "sentences": 0}) == (expected, expected_counts)


def sentences_in(text: str) -> int:
    return rewritten(text, {})[1]["sentences"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One and only", 1),
        ("One. Two! Three? Four", 4),
        ("The end.", 1),
        ('He said "Yes." And left.', 2),
        ("(Really?) Yes.", 2),
        ("Wait... what", 1),
        ("Wait.. what", 1),
        ("Pi is 3.14 or so", 1),
        ("See example.com for more", 1),
        ("the end.Next begins", 2),
        ("J. R. Smith came", 1),
        ("by NASA. Then", 2),
        ("see e.g. that, i.e. this", 1),
        ("at 5 p.m. sharp", 1),
        ("a. first b. second", 1),
        ("in 1999. Then", 2),
        ("What?! No!! Yes", 3),
        ("foo!bar", 1),
        ("!important", 2),
        ("One. ... Two", 2),
        ("One. -- (.) ", 1),
        ("你好。再见！谁？", 3),
        ("यह है। वह है।", 2),
        ("Конец. Начало", 2),
        ("The “end.” Then", 2),
        ("One. Two\nThree. Four", 4),
        ("\n\n", 0),
    ],
)
def test_sentences(text: str, sentences: int) -> None:
    assert sentences_in(text) == sentences


def test_documents_with_more_lines_than_are_looked_at_together() -> None:
    text = " [1] \r\n" + "".join(f"line number {number} [{number}] of it\r\n" for number in range(9_000)) + "too few\n"
    left, counts = rewritten(text, DEFAULT)
    assert left == "\n".join(f"line number {number}  of it" for number in range(9_000))
    assert (counts["c4_citations"], counts["c4_words_per_line"], counts["sentences"]) == (9_001, 2, 9_000)


def test_documents_that_are_not_wanted_stay_as_they_are() -> None:
    texts = as_bytes(pa.array([" a \n", " b c d \n", "", "use cookies now\n"], pa.large_string()))
    left, counts = apply_line_rules(texts, DEFAULT, np.array([False, True, True, False]))
    assert bytes(left.data[: left.offsets[-1]]).decode() == " a \nb c duse cookies now\n"
    assert left.offsets.tolist() == [0, 4, 9, 9, 25]
    assert counts[[0, 3]].sum() == 0


def test_without_rules_only_white_space_changes() -> None:
    assert rewritten("  a\t\r\n\n b{ \n", {})[0] == "a\n\nb{"


def test_thresholds_need_not_be_whole() -> None:
    assert rewritten("a\na b\na b c", {"c4_words_per_line": 2.5})[0] == "a b c"
    assert rewritten("12345\n123456", {"c4_long_words": 5.5})[0] == "12345"
