from __future__ import annotations

import pytest

from fledge.core import config
from fledge.core.errors import ConfigError
from fledge.tokens.settings import MINIMUM_VOCABULARY_SIZE, PackSettings, TokenizerSettings


def test_the_smallest_vocabulary_is_accepted_and_one_less_refused_with_the_minimum() -> None:
    assert TokenizerSettings(vocabulary_size=MINIMUM_VOCABULARY_SIZE).vocabulary_size == 260
    with pytest.raises(ConfigError, match="at least 260") as caught:
        config.parse(TokenizerSettings, config.Tree({"vocabulary_size": 259}, {}))
    assert caught.value.exit_code == 2


def test_a_row_must_hold_a_conversation() -> None:
    assert PackSettings(sequence_length=8).sequence_length == 8
    with pytest.raises(ConfigError, match="at least 8"):
        config.parse(PackSettings, config.Tree({"sequence_length": 7}, {}))


def test_where_inputs_lie_does_not_decide_what_comes_out() -> None:
    assert config.identity(TokenizerSettings(corpus=("elsewhere",))) == config.identity(TokenizerSettings())
    assert config.identity(PackSettings(tokenizer="elsewhere", corpus=("there",))) == config.identity(PackSettings())
    assert config.identity(TokenizerSettings(vocabulary_size=512)) != config.identity(TokenizerSettings())
