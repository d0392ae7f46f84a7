from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, parse
from fledge.core.errors import ConfigError
from fledge.corpus.filters.settings import QualitySettings


def parsed(**values: Any) -> QualitySettings:
    return parse(QualitySettings, Tree(values, {}))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"preset": "web", "skip": ["gopher_stop_words"], "thresholds": {"gopher_minimum_words": 10}},
        {"add": ["c4_terminal_punctuation", "c4_sentences"], "thresholds": {"c4_sentences": 3}},
        {"languages": ["en", "zh"], "language_confidence": 1.0},
        {"own_rules": ["rules/mine.py:keep_long", "../other.py:überprüfe"]},
        {"stop_words": ["的", "und"]},
    ],
)
def test_usable(values: dict[str, Any]) -> None:
    assert parsed(**values) is not None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"preset": "web", "skip": ["gopher_stopwords"]},
            "skip names 'gopher_stopwords', which is no rule; did you mean gopher_stop_words",
        ),
        ({"add": ["c4_javascrip"]}, "did you mean c4_javascript"),
        ({"preset": "web", "thresholds": {"fineweb_new_lines": 0.2}}, "did you mean fineweb_newlines"),
        ({"preset": "web", "thresholds": {"c4_javascript": 1}}, "thresholds names c4_javascript, which has none"),
        ({"preset": "books", "thresholds": {"c4_sentences": 3}}, "not among the rules of preset books; `add` adds a rule"),
        ({"preset": "code", "skip": ["c4_sentences"]}, "not among the rules of preset code"),
        ({"preset": "webb"}, "preset"),
        ({"languages": ["English"]}, "languages names 'English'"),
        ({"language_confidence": 1.5}, "language_confidence must be between 0 and 1"),
        ({"language_confidence": -0.1}, "language_confidence must be between 0 and 1"),
        ({"own_rules": ["mine.py"]}, "own_rules must be FILE.py:FUNCTION, not 'mine.py'"),
        ({"own_rules": ["mine.txt:keep"]}, "own_rules must be FILE.py:FUNCTION"),
        ({"own_rules": ["mine.py:keep", "other.py:keep"]}, "own_rules names two functions keep"),
        ({"own_rules": ["mine.py:2keep"]}, "own_rules must be FILE.py:FUNCTION"),
        ({"stop_words": ["the", "of the"]}, "stop_words must be single words, not 'of the'"),
        ({"stop_words": [""]}, "stop_words must be single words"),
    ],
)
def test_unusable(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace(".", r"\.")):
        parsed(**values)
