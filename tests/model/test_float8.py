from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fledge.model.float8 import has_float8, leave_float8, shares, use_float8
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

needs_torchao = pytest.mark.skipif(not has_float8(), reason="needs torchao")


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_layers_round_and_head_and_parameters_stay(make_model: Callable[..., Llama], tokens: Tensor) -> None:
    exact, rounded = make_model(initializer_range=0.05), make_model(initializer_range=0.05)
    assert len(use_float8(rounded, emulate=True)) == 14
    assert type(rounded.lm_head) is torch.nn.Linear
    assert [name for name, _ in rounded.named_parameters()] == [name for name, _ in exact.named_parameters()]
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())
    losses = [model(tokens, None, tokens, torch.ones(tokens.shape)).loss_sum for model in (exact, rounded)]
    assert 0 < abs(float(losses[0] - losses[1])) < 0.01 * float(losses[0])
    losses[1].backward()
    assert all(parameter.grad is not None for parameter in rounded.parameters())


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_maps_that_the_units_cannot_divide_stay(make_model: Callable[..., Llama]) -> None:
    assert len(use_float8(make_model(intermediate_size=40), emulate=True)) == 8  # 4 of attention in each of 2 layers


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_leaving_it_is_as_if_it_had_not_been(make_model: Callable[..., Llama], tokens: Tensor) -> None:
    model = make_model(initializer_range=0.05)
    parameters, logits = dict(model.named_parameters()), model(tokens)
    before = use_float8(model, emulate=True)
    assert not torch.equal(model(tokens), logits)
    leave_float8(model, before)
    assert torch.equal(model(tokens), logits)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_shares_of_a_large_vocabulary() -> None:
    """28 layers with 200,000 entries: about 60 % in FP8."""
    settings = ModelSettings(hidden_size=512, num_hidden_layers=28, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1_536)
    share = shares(ModelConfig(settings, 200_064), 1_024)
    assert 0.35 < share.fp8 < 0.65
    assert share.fp8 + share.bf16 == pytest.approx(1)


def test_the_library_is_looked_for_and_not_loaded() -> None:
    assert has_float8() is (importlib.util.find_spec("torchao") is not None)
