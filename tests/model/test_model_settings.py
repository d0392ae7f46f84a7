from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, parse
from fledge.core.errors import ConfigError
from fledge.model.settings import ModelConfig, ModelSettings, padded_vocabulary_size


def test_defaults_are_filled_in() -> None:
    settings = ModelSettings()
    assert (settings.key_value_heads, settings.head_size) == (4, 64)
    grouped = ModelSettings(num_key_value_heads=2, head_dim=32)
    assert (grouped.key_value_heads, grouped.head_size) == (2, 32)
    assert settings != ModelSettings(head_dim=64, num_key_value_heads=4) == settings.resolved


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 250}, ("250", "num_attention_heads 4")),
        ({"num_key_value_heads": 3}, ("num_attention_heads 4", "num_key_value_heads 3")),
        ({"num_key_value_heads": 0}, ("num_key_value_heads 0",)),
        ({"head_dim": 33}, ("33",)),
        ({"hidden_size": 12}, ("head size is 3",)),
        ({"num_hidden_layers": 0}, ("num_hidden_layers is 0",)),
        ({"rope_theta": 1.0}, ("rope_theta",)),
        ({"attention_dropout": 1.0}, ("attention_dropout is 1.0",)),
        ({"attention_dropout": -0.1}, ("attention_dropout is -0.1",)),
        ({"normalization": "layer", "query_key_norm": True}, ("query_key_norm",)),
        ({"normalization": "layer", "head_dim": 32}, ("head_dim 32", "hidden_size 256")),
    ],
)
def test_shapes_that_cannot_be_are_refused_with_their_values(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        ModelSettings(**changes)
    assert all(part in str(caught.value) for part in named)
    with pytest.raises(ConfigError):
        parse(ModelSettings, Tree(changes, {}))


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 1}, {"normalization": "layer"}, {"query_key_norm": True, "head_dim": 16}])
def test_shapes_at_the_border_are_accepted(changes: dict[str, Any]) -> None:
    assert parse(ModelSettings, Tree(changes, {})) == ModelSettings(**changes)


def test_special_tokens_lie_in_the_vocabulary() -> None:
    ModelConfig(ModelSettings(), 128, begin_token_id=127)
    with pytest.raises(ValueError, match="128 lies outside the vocabulary of 128"):
        ModelConfig(ModelSettings(), 128, end_token_ids=(1, 128))


@pytest.mark.parametrize(("size", "padded"), [(1, 128), (128, 128), (129, 256), (4096, 4096), (4100, 4224)])
def test_vocabulary_is_padded_to_full_tiles(size: int, padded: int) -> None:
    assert padded_vocabulary_size(size) == padded
