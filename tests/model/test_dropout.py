"""Dropout of attention: none unless asked for, the same for the same random numbers, and none outside training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fledge.model.attention import attention, causal_mask
from fledge.model.checkpointing import ActivationCheckpointing
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama

MakeModel = Callable[..., Llama]
DOCUMENTS = torch.where(torch.arange(24) < 10, 0, 10).expand(3, 24).contiguous()


def trained_on(model: Llama, tokens: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients, with random numbers from a seed."""
    torch.manual_seed(seed)
    loss = model(tokens, DOCUMENTS, tokens.roll(-1, 1), torch.ones(tokens.shape)).loss_sum
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def test_without_dropout_no_random_number_is_drawn(make_model: MakeModel, tokens: Tensor) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make_model(attention_dropout=0.0).train()(tokens, DOCUMENTS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}])
def test_the_random_numbers_decide_alone(changes: dict[str, int], make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(attention_dropout=0.3, **changes)
    (first, gradients), (again, same), (other, _) = (trained_on(model, tokens, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert first != other


def test_evaluation_has_none(make_model: MakeModel, tokens: Tensor) -> None:
    dropping, plain = make_model(attention_dropout=0.3).eval(), make_model().eval()
    with torch.no_grad():
        assert torch.equal(dropping(tokens, DOCUMENTS), plain(tokens, DOCUMENTS))
        assert torch.equal(dropping(tokens), plain(tokens))
        assert not torch.equal(dropping.train()(tokens), plain(tokens))


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_computed_again_drops_the_same(how: ActivationCheckpointing, make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(attention_dropout=0.3)
    loss, gradients = trained_on(model, tokens, 1)
    model.model.activation_checkpointing = how
    again, recomputed = trained_on(model, tokens, 1)
    assert torch.equal(loss, again)
    for kept, computed in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(computed, kept, rtol=1e-5, atol=1e-5)


def test_a_share_of_the_probabilities_is_dropped_and_the_others_make_up_for_it() -> None:
    """With queries of zero each of 64 keys has probability 1 / 64; values of one then show how many are left."""
    torch.manual_seed(0)
    query, value = torch.zeros(8, 2, 64, 8), torch.ones(8, 2, 64, 8)
    left = attention(query, query, value, torch.ones(64, 64, dtype=torch.bool), dropout=0.25)
    assert float(left.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(left.std()) > 0.05
    kept = left * 64 * 0.75
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)


def test_what_is_dropped_stays_inside_what_may_be_seen() -> None:
    torch.manual_seed(0)
    query, value = torch.randn(2, 4, 6, 8), torch.zeros(2, 2, 6, 8)
    value[:, :, 3:] = 1.0
    for mask in (None, causal_mask(6, query.device)):
        assert not attention(query, torch.randn(2, 2, 6, 8), value, mask, dropout=0.5)[:, :, :3].any()


def test_a_checkpoint_says_its_dropout_as_transformers_does(make_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoConfig

    save_model(make_model(attention_dropout=0.1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.1
    assert AutoConfig.from_pretrained(tmp_path).attention_dropout == 0.1
    assert load_model(tmp_path).config.settings.attention_dropout == 0.1


@pytest.mark.parametrize(("scaled", "ratio"), [(True, 2 * 2**0.5), (False, 1.0)])
def test_projections_into_the_residual_stream_are_scaled_by_depth_if_wanted(scaled: bool, ratio: float, make_model: MakeModel) -> None:
    model = make_model(num_hidden_layers=4, hidden_size=64, scale_residual_initialization=scaled)
    deviations = {name: float(parameter.detach().std()) for name, parameter in model.named_parameters()}
    query, output = (deviations[f"model.layers.0.self_attn.{name}.weight"] for name in ("q_proj", "o_proj"))
    assert query / output == pytest.approx(ratio, rel=0.05)
