from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fledge.model.cost import flops_per_token, parameter_count
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

SHAPES = [
    {},
    {"tie_word_embeddings": False, "num_key_value_heads": 2},
    {"query_key_norm": True, "head_dim": 16, "num_key_value_heads": 1},
    {"normalization": "layer"},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_parameters_are_counted_exactly(changes: dict[str, object], make_model: Callable[..., Llama]) -> None:
    model = make_model(**changes)
    assert parameter_count(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changes", SHAPES)
def test_flops_are_those_that_torch_counts(changes: dict[str, object], make_model: Callable[..., Llama]) -> None:
    # On no device at all, where attention is torch's own: it does not see into operators of ours.
    model = make_model(**changes).to("meta")
    tokens = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    causal_half = flops_per_token(model.config, 16)
    full_square = causal_half + flops_per_token(model.config, 16) - flops_per_token(model.config, 0)
    assert counter.get_total_flops() == 32 * full_square


def test_a_known_model() -> None:
    """The 23M model of the measurements: 97.5 MFLOP per token at 1,024 tokens, 52 % of it the head."""
    settings = ModelSettings(hidden_size=256, num_hidden_layers=6, intermediate_size=1024, tie_word_embeddings=False)
    config = ModelConfig(settings, 32_768)
    assert parameter_count(config) == pytest.approx(23.07e6, rel=1e-3)
    assert flops_per_token(config, 1024) == pytest.approx(97.5e6, rel=1e-3)
