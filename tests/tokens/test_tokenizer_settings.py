from __future__ import annotations

from typing import Any

import pytest

from fledge.core import config
from fledge.core.errors import ConfigError
from fledge.tokens.settings import MINIMUM_VOCABULARY_SIZE, PackSettings, TokenizerSettings, transition_tokens


def test_the_smallest_vocabulary_is_accepted_and_one_less_refused_with_the_minimum() -> None:
    assert TokenizerSettings(vocabulary_size=MINIMUM_VOCABULARY_SIZE).vocabulary_size == 260
    with pytest.raises(ConfigError, match="at least 260") as caught:
        config.parse(TokenizerSettings, config.Tree({"vocabulary_size": 259}, {}))
    assert caught.value.exit_code == 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "unigram", "vocabulary_size": 260}, "at least 261 .*256 bytes, 4 special tokens and <unk>"),
    ({"vocabulary_size": 269, "reserved_tokens": 10}, "at least 270 .*10 reserved tokens"),
    ({"reserved_tokens": -1}, "reserved_tokens"),
    ({"maximum_bytes": 0}, "maximum_bytes"),
    ({"sources": {"web": 0.0}}, "share of source 'web'"),
    ({"transition": 0.5}, "transition belongs to kind superbpe, and kind is byte_bpe"),
    ({"kind": "superbpe", "transition": 1.0}, "merges on both sides"),
    ({"kind": "superbpe", "transition": 40_000}, "between 256 and 32764 tokens"),
    ({"kind": "superbpe", "transition": 256}, "not at 256"),
    ({"kind": "superbpe", "transition": 0.001}, "not at 33"),
    ({"preset": "gpt2"}, "preset belongs to kind import"),
    ({"path": "x.json"}, "path belongs to kind import"),
    ({"turn_tokens": True}, "turn_tokens belongs to kind import"),
    ({"kind": "import"}, "one of path and preset"),
    ({"kind": "import", "path": "x", "preset": "gpt2"}, "one of path and preset"),
    ({"kind": "wordpiece"}, "kind"),
]


@pytest.mark.parametrize(("values", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        config.parse(TokenizerSettings, config.Tree(values, {}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "unigram", "vocabulary_size": 261},
        {"vocabulary_size": 270, "reserved_tokens": 10},
        {"kind": "superbpe", "transition": 0.4},
        {"kind": "superbpe", "vocabulary_size": 200_000, "transition": 180_000},
        {"kind": "import", "preset": "codellama", "vocabulary_size": 3},
        {"kind": "import", "path": "hub:owner/name", "revision": "v2", "turn_tokens": True},
        {"sources": {"web": 3, "code": 0.5}, "maximum_bytes": 1},
    ],
)
def test_what_can_be_is_accepted(values: dict[str, Any]) -> None:
    assert isinstance(config.parse(TokenizerSettings, config.Tree(values, {})), TokenizerSettings)


def test_a_row_must_hold_a_conversation() -> None:
    assert PackSettings(sequence_length=8).sequence_length == 8
    with pytest.raises(ConfigError, match="at least 8"):
        config.parse(PackSettings, config.Tree({"sequence_length": 7}, {}))


def test_where_inputs_lie_does_not_decide_what_comes_out() -> None:
    assert config.identity(TokenizerSettings(corpus=("elsewhere",))) == config.identity(TokenizerSettings())
    assert config.identity(PackSettings(tokenizer="elsewhere", corpus=("there",))) == config.identity(PackSettings())
    assert config.identity(TokenizerSettings(vocabulary_size=512)) != config.identity(TokenizerSettings())


@pytest.mark.parametrize(("transition", "tokens"), [(0.4, 80_000), (0.9, 180_000), (80_000, 80_000), (257, 257), (199_999, 199_999)])
def test_a_transition_is_a_share_or_a_count(transition: float, tokens: int) -> None:
    assert transition_tokens(transition, 200_000) == tokens


@pytest.mark.parametrize("transition", [0.0, 0.001, 1.0, 1, 256, 200_000])
def test_a_transition_leaves_room_on_both_sides(transition: float) -> None:
    with pytest.raises(ValueError, match="transition"):
        transition_tokens(transition, 200_000)
