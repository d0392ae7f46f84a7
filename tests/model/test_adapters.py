"""Adapters against peft's, both ways round; what is frozen stays; what is folded in computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.core import artifact
from fledge.core.errors import CheckpointError, ConfigError
from fledge.model.adapter_config import find_base, is_adapter, read_adapter_settings, to_adapter_json
from fledge.model.adapters import adapter_weights, add_adapter, merge_adapter
from fledge.model.cost import parameter_count, projection_sizes, trained_parameter_count
from fledge.model.folder import load_adapted, load_model, read_config, save_model, stored_weights
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings
from fledge.training.optimizer import make_optimizer
from fledge.training.settings import TrainingSettings

# peft asks transformers by a name that will go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MakeModel = Callable[..., Llama]

KINDS = {
    "lora": LoraSettings(rank=4, alpha=8),
    "rslora, some targets": LoraSettings(rank=9, alpha=8, rank_stabilized=True, targets=("q_proj", "v_proj", "down_proj")),
    "dora": LoraSettings(rank=4, alpha=8, weight_decomposed=True),
}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


def logits_of(model: Llama, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.eval()(tokens)
    assert isinstance(logits, Tensor)
    return logits


@pytest.fixture
def trained(make_model: MakeModel, tmp_path: Path) -> Callable[[LoraSettings], Llama]:
    """A model over a saved base, whose adapter is far from its beginning."""

    def make(settings: LoraSettings) -> Llama:
        base = make_model(**GROUPED)
        save_model(base, tmp_path / "base")
        add_adapter(base, Adapter(settings, tmp_path / "base"), seed=3)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapter_weights(base).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        base.config = replace(base.config, end_token_ids=(121,))
        return base

    return make


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_a_fresh_adapter_changes_no_bit(settings: LoraSettings, make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(**GROUPED)
    before = logits_of(model, tokens)
    add_adapter(model, Adapter(settings, Path("base")), seed=0)
    assert torch.equal(logits_of(model, tokens), before)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_peft_computes_the_same_logits(
    settings: LoraSettings, trained: Callable[[LoraSettings], Llama], tokens: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = trained(settings)
    save_model(model, tmp_path / "adapter")
    ours = logits_of(model, tokens)
    # transformers finds the adapter's config and its base by itself.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (theirs(tokens).logits - ours).abs().max() <= 1e-5
    assert (logits_of(load_model(tmp_path / "base"), tokens) - ours).abs().max() > 1e-2
    assert load_model(tmp_path / "adapter").config.end_token_ids == (121,) == read_config(tmp_path / "adapter").end_token_ids


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_an_adapter_of_peft_is_read(settings: LoraSettings, make_model: MakeModel, tokens: Tensor, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_model(make_model(**GROUPED), tmp_path / "base")
    options = {key: value for key, value in to_adapter_json(settings, tmp_path / "base").items() if key != "base_model_name_or_path"}
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(**{**options, "inference_mode": False}))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    assert read_adapter_settings(tmp_path / "adapter") == settings
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
    assert (logits_of(load_adapted(tmp_path / "adapter"), tokens) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_gradients_are_those_of_peft(
    settings: LoraSettings, trained: Callable[[LoraSettings], Llama], tokens: Tensor, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = trained(settings)
    save_model(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", is_trainable=True)
    model(tokens).square().mean().backward()
    theirs(tokens).logits.square().mean().backward()
    expected = {name.replace(".default", "").removesuffix(".weight"): value.grad for name, value in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        found = expected[f"base_model.model.{name.removesuffix('.weight')}"] if "lora_" in name else None
        assert (parameter.grad is None) == (found is None)
        if found is not None:
            assert (parameter.grad - found).norm() <= 1e-4 * found.norm(), name


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_merged_weights_compute_the_same(settings: LoraSettings, trained: Callable[[LoraSettings], Llama], tokens: Tensor) -> None:
    model = trained(settings)
    expected = logits_of(model, tokens)
    merge_adapter(model)
    assert (logits_of(model, tokens) - expected).abs().max() <= 1e-5
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(list(model.parameters())) == len(stored_weights(model)) == 2 + 2 * 9


def test_dropout_is_drawn_in_training_and_again_where_layers_are_recomputed(make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model()
    add_adapter(model, Adapter(LoraSettings(rank=4, dropout=0.5), Path("base")), seed=0)
    with torch.no_grad():
        for name, parameter in adapter_weights(model).items():
            parameter.add_(0.1 if "lora_B" in name else 0.0)
    model.train()

    def gradient(how: Any, seed: int) -> Tensor:
        model.model.activation_checkpointing = how
        model.zero_grad()
        torch.manual_seed(seed)
        model(tokens).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in adapter_weights(model).values() if parameter.grad is not None])

    assert torch.equal(gradient("none", 1), gradient("full", 1))
    assert not torch.equal(gradient("none", 1), gradient("none", 2))
    assert torch.equal(logits_of(model, tokens), logits_of(model, tokens))


def test_rank_32_of_the_23m_model_is_small() -> None:
    """At most 5 % of the parameters, and at least 95 % less memory for gradients and optimizer: of a real model and its optimizer."""
    shape = ModelSettings(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, tie_word_embeddings=False)
    lora, config = LoraSettings(rank=32, alpha=64), ModelConfig(shape, 32_768)
    model = Llama(config, seed=None)
    add_adapter(model, Adapter(lora, Path("base")), seed=0)
    trained = adapter_weights(model)
    count = sum(parameter.numel() for parameter in trained.values())
    assert count == trained_parameter_count(config, lora) == 1_130_496
    assert count <= 0.05 * parameter_count(config)
    optimizer = make_optimizer(model, TrainingSettings(steps=1, lora=lora))
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    states = sum(state.nbytes for name, state in optimizer.state().items() if not name.endswith("/step"))
    assert gradients <= 0.05 * 4 * parameter_count(config)
    assert states <= 0.05 * 8 * parameter_count(config)


def test_every_projection_is_counted(make_model: MakeModel) -> None:
    model = make_model(num_attention_heads=4, num_key_value_heads=2)
    for name, (inputs, outputs) in projection_sizes(model.config.settings).items():
        assert dict(model.named_modules())[
            f"model.layers.1.{'mlp' if 'gate up down'.find(name[:2]) >= 0 else 'self_attn'}.{name}"
        ].weight.shape == (
            outputs,
            inputs,
        )
    settings = KINDS["dora"]
    add_adapter(model, Adapter(settings, Path("base")), seed=0)
    assert sum(value.numel() for value in adapter_weights(model).values()) == trained_parameter_count(model.config, settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ".*proj"}, "targets"),
        ({"r": 0}, "rank"),
        ({"r": 5}, "do not fit"),
        ({"base_model_name_or_path": "nowhere"}, "nowhere"),
        ({"base_model_name_or_path": None}, "base"),
    ],
)
def test_what_is_no_adapter_of_ours_is_refused(
    changes: dict[str, Any], words: str, trained: Callable[[LoraSettings], Llama], tmp_path: Path
) -> None:
    save_model(trained(KINDS["lora"]), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "adapter")


def test_a_rank_above_a_matrix_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank is 1,000, and q_proj has rank \d+ at most"):
        add_adapter(make_model(), Adapter(LoraSettings(rank=1_000), Path("base")), seed=0)


def test_the_base_is_known_by_its_hash_and_moves_along(trained: Callable[[LoraSettings], Llama], tokens: Tensor, tmp_path: Path) -> None:
    model = trained(KINDS["lora"])
    wanted = artifact.request("checkpoint", {}, {"base": artifact.foreign(tmp_path / "base", "huggingface")})
    with artifact.build(tmp_path / "adapter", wanted) as (partial, _):
        save_model(model, partial)
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("base", "adapter"):
        (tmp_path / name).rename(moved / name)
    assert find_base(moved / "adapter") == moved / "base"
    assert (logits_of(load_model(moved / "adapter"), tokens) - logits_of(model, tokens)).abs().max() <= 1e-5
    save_model(Llama(model.config, seed=9), moved / "base")
    with pytest.raises(CheckpointError, match="is not the base"):
        load_model(moved / "adapter")
