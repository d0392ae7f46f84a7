"""Packed weights hold what they should, and products of them are the products of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fledge.core.errors import ConfigError
from fledge.inference import kernels
from fledge.inference.engine import Engine
from fledge.inference.kernel_forward import _product
from fledge.inference.quantize import WeightFormat, pack, quantized
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.model.adapters import add_adapter
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings


def test_int8_is_within_half_a_scale() -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 50)[:, None]
    weight[7] = 0
    values, scales = quantized(weight)
    assert values.dtype == torch.int8
    assert bool(((values * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all())
    assert int(values[7].abs().max()) == 0
    assert bool((values.abs().amax(dim=1)[scales > 0] == 127).all())


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", [(300, 64), (128, 16), (1, 80)])
def test_products(form: WeightFormat, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(shape, generator=generator), torch.randn(70, shape[1], generator=generator)
    exact = weight.double()
    if form == "bf16":
        exact = weight.bfloat16().double()
    if form == "int8":
        values, scales = quantized(weight)
        exact = values.double() * scales.double()[:, None]
    packed = pack(weight, form)
    found = np.ascontiguousarray(_product(rows.numpy(), packed))
    torch.testing.assert_close(torch.from_numpy(found), (rows.double() @ exact.T).float(), rtol=1e-5, atol=1e-5)
    alone = np.concatenate([_product(row[None], packed) for row in rows.numpy()])
    assert np.array_equal(found, alone), "a row is the same to the bit in any company"


def test_exponentials() -> None:
    values = np.linspace(-90, 88, 100_001, dtype=np.float32)
    expected = np.exp(np.maximum(values, -87).astype(np.float64))
    kernels.exponentiate(values)
    assert float(np.abs(values / expected - 1).max()) < 3e-7


@pytest.mark.parametrize(("weights", "kind"), [("auto", np.float32), ("bf16", np.uint16), ("int8", np.int8)])
def test_the_engine_computes_in_the_weights_that_are_asked_for(tiny_model: Llama, weights: str, kind: type) -> None:
    engine = Engine(tiny_model, 500, (), settings=EngineSettings(weights=weights))  # type: ignore[arg-type]
    [completion] = engine.generate([[5]], GenerationSettings(temperature=0, maximum_new_tokens=5))
    assert len(completion.ids) == 5
    assert engine._packed.head.values.dtype == kind


def test_what_a_model_becomes_after_it_was_packed_is_not_seen(tiny_model: Llama) -> None:
    """Every weight and every table, so that no pass computes with a mixture of two models."""
    model = copy.deepcopy(tiny_model)
    engine, greedy = Engine(model, 500, ()), GenerationSettings(temperature=0, maximum_new_tokens=10)
    before = engine.generate([[5, 6]], greedy)
    for name in ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight", "lm_head.weight"):
        model.get_parameter(name).data.neg_()
        assert engine.generate([[5, 6]], greedy) == before, name
    model.model.cosine.zero_()
    assert engine.generate([[5, 6]], greedy) == before
    assert Engine(model, 500, ()).generate([[5, 6]], greedy) != before


def odd_widths(settings: ModelSettings) -> Llama:
    shape = replace(settings, hidden_size=200, intermediate_size=500)
    return Llama(ModelConfig(shape, 512), seed=1)


def with_adapter(settings: ModelSettings) -> Llama:
    model = Llama(ModelConfig(settings, 512), seed=1)
    add_adapter(model, Adapter(LoraSettings(rank=2), Path("base")), seed=1)
    return model


@pytest.mark.parametrize(
    ("make", "problem", "remedy"),
    [
        (odd_widths, "in widths that are multiples of 16, and hidden_size is 200", "choose bf16 or fp32"),
        (with_adapter, "of whole models, and this one has an adapter apart", "merge it (fledge merge), or choose bf16"),
        (lambda settings: Llama(ModelConfig(settings, 512)).bfloat16(), "from weights in fp32, and the model's are torch.bfloat16", "fp32"),
        (lambda settings: Llama(ModelConfig(settings, 512)).to("meta"), "on a CPU only, and the model is on meta", "--device cpu"),
    ],
)
def test_int8_is_for_the_kernels(tiny_settings: ModelSettings, make: Callable[[ModelSettings], Llama], problem: str, remedy: str) -> None:
    engine = Engine(make(tiny_settings), 500, (), settings=EngineSettings(weights="int8"))
    with pytest.raises(ConfigError) as caught:
        engine.generate([[5]], GenerationSettings())
    assert problem in caught.value.problem and remedy in caught.value.remedy
