from __future__ import annotations

import pytest

from fledge.corpus.filters import line_rules, statistics
from fledge.corpus.filters.rules import PRESETS, RULES, Preset, chosen, unknown

NAMES = [one.name for one in RULES]

# Table A1 and section A.1.1 of Gopher, section 2.2 of C4, section 3 of FineWeb.
PUBLISHED = {
    "gopher_repetition_duplicate_lines": 0.3, "gopher_repetition_duplicate_paragraphs": 0.3,
    "gopher_repetition_duplicate_line_characters": 0.2, "gopher_repetition_duplicate_paragraph_characters": 0.2,
    "gopher_repetition_top_2_gram": 0.2, "gopher_repetition_top_3_gram": 0.18, "gopher_repetition_top_4_gram": 0.16,
    "gopher_repetition_duplicate_5_grams": 0.15, "gopher_repetition_duplicate_6_grams": 0.14, "gopher_repetition_duplicate_7_grams": 0.13,
    "gopher_repetition_duplicate_8_grams": 0.12, "gopher_repetition_duplicate_9_grams": 0.11, "gopher_repetition_duplicate_10_grams": 0.1,
    "gopher_minimum_words": 50, "gopher_maximum_words": 100_000, "gopher_minimum_word_length": 3, "gopher_maximum_word_length": 10,
    "gopher_hash_symbols": 0.1, "gopher_ellipsis_symbols": 0.1, "gopher_bullet_lines": 0.9, "gopher_ellipsis_lines": 0.3,
    "gopher_letter_words": 0.8, "gopher_stop_words": 2,
    "c4_long_words": 1_000, "c4_citations": None, "c4_terminal_punctuation": None, "c4_words_per_line": 3, "c4_javascript": None,
    "c4_policy": None, "c4_lorem_ipsum": None, "c4_curly_bracket": None, "c4_sentences": 5,
    "fineweb_line_punctuation": 0.12, "fineweb_short_lines": 0.67, "fineweb_duplicate_line_characters": 0.01, "fineweb_newlines": 0.3,
}  # fmt: skip


def test_every_published_rule_is_there_with_its_threshold() -> None:
    assert {one.name: one.threshold for one in RULES} == PUBLISHED
    assert len(NAMES) == len(set(NAMES))


def test_what_a_rule_compares_is_counted() -> None:
    for one in RULES:
        counted = line_rules.COUNTS if one.count in line_rules.COUNTS else statistics.COUNTS
        assert one.drops == "lines" or (one.count in counted and one.per in ("", *counted)), one.name
        assert one.drops == "documents" or one.name in line_rules.LINE_RULES
        assert one.maximum is None or one.minimum is None
        assert "\n" not in one.description


def test_order_is_that_of_fineweb() -> None:
    families = [name.split("_")[0] if "repetition" not in name else "repetition" for name in NAMES]
    assert list(dict.fromkeys(families)) == ["repetition", "gopher", "c4", "fineweb"]
    assert [one.name for one in RULES if one.remaining] == NAMES[NAMES.index("c4_lorem_ipsum") :]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_only_what_there_is(preset: Preset) -> None:
    held = [one.name for one in chosen(preset, (), ())]
    assert held == [name for name in NAMES if name in held]
    assert (held == []) == (preset == "none")


def test_presets() -> None:
    held = {preset: {one.name for one in chosen(preset, (), ())} for preset in PRESETS}
    assert set(NAMES) - held["web"] == {"c4_terminal_punctuation"}
    assert all(name.startswith("gopher_") or name == "c4_lorem_ipsum" for preset in ("books", "docs", "code") for name in held[preset])
    assert "gopher_maximum_words" not in held["books"]
    assert not held["docs"] & {"gopher_letter_words", "gopher_hash_symbols", "gopher_bullet_lines", "gopher_repetition_duplicate_lines"}
    assert held["code"] == {
        "gopher_minimum_words", "gopher_maximum_words", "gopher_minimum_word_length", "gopher_repetition_duplicate_10_grams"
    }  # fmt: skip


def test_rules_are_added_and_left_out() -> None:
    names = [one.name for one in chosen("code", ("c4_javascript",), ("gopher_minimum_words",))]
    assert "c4_javascript" in names
    assert "gopher_minimum_words" not in names
    assert names == [name for name in NAMES if name in names]


def test_a_misspelt_name_is_told_the_closest() -> None:
    assert unknown("gopher_minimun_words", NAMES).startswith("'gopher_minimun_words', which is no rule; did you mean gopher_minimum_words")
    assert "known: gopher_repetition" in unknown("zzzzzz", NAMES)
