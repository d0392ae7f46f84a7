"""Objectives against plain formulas on full logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_assembly import MODEL

from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.batches import Batch, open_rows
from fledge.training.objectives import NextToken, Preference, answer_log_probabilities, make_objective
from fledge.training.settings import NextTokenSettings, PreferenceSettings


def logits_of(model: Llama, batch: Batch) -> Tensor:
    logits = model(batch.tokens, batch.documents)
    assert isinstance(logits, Tensor)
    return logits


def gradients_of(loss: Tensor, model: Llama) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    difference = sum(float((one - other).square().sum()) for one, other in zip(found, expected, strict=True))
    assert difference <= 1e-10 * sum(float(other.square().sum()) for other in expected)


@pytest.fixture
def model() -> Llama:
    return Llama(MODEL, seed=1)


@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
def test_next_token_is_cross_entropy(model: Llama, conversations: TokenSet, z_weight: float) -> None:
    reader = open_rows([conversations], "train", None)
    batch = reader.batch(reader.all_rows()[:6], 7)
    result = NextToken(z_weight)(model, batch)
    flat = logits_of(model, batch).flatten(0, 1)
    nll = F.cross_entropy(flat, batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected = nll + z_weight * (flat.logsumexp(-1).square() * batch.token_weight.flatten()).sum()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(result.measures["loss"]) == pytest.approx(nll.item(), rel=1e-5)
    assert NextToken().weight(batch) == int((batch.targets != IGNORE).sum())
    assert_close(gradients_of(result.loss, model), gradients_of(expected, model))


def plain_preference(model: Llama, batch: Batch, reference: Tensor, beta: float) -> Tensor:
    """Equation 7 of the paper, pair by pair and token by token."""
    assert batch.pairs is not None
    chances = logits_of(model, batch).log_softmax(-1)
    losses = []
    for pair in range(batch.pairs.count):
        totals = []
        for side in (0, 1):
            places = (batch.pairs.answers == 1 + 2 * pair + side).nonzero().tolist()
            totals.append(torch.stack([chances[row, column, batch.targets[row, column]] for row, column in places]).sum())
        ratio = (totals[0] - reference[pair, 0]) - (totals[1] - reference[pair, 1])
        losses.append(-torch.log(torch.sigmoid(beta * ratio)))
    return torch.stack(losses).sum()


def test_preference_is_the_formula_of_the_paper(model: Llama, preferences: TokenSet) -> None:
    reader = open_rows([preferences], "train", None)
    batch = reader.batch(reader.all_rows()[:5], 6)
    assert batch.pairs is not None
    reference = answer_log_probabilities(Llama(MODEL, seed=2), batch).detach()
    batch = replace(batch, pairs=replace(batch.pairs, reference=reference))
    result = Preference(beta=0.3)(model, batch)
    expected = plain_preference(model, batch, reference, 0.3)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients_of(result.loss, model), gradients_of(expected, model))

    rewards = 0.3 * (answer_log_probabilities(model, batch).detach() - reference)
    measures = {name: float(value) for name, value in result.measures.items()}
    assert measures["rewards/chosen"] == pytest.approx(float(rewards[:, 0].sum()))
    assert measures["rewards/rejected"] == pytest.approx(float(rewards[:, 1].sum()))
    assert measures["rewards/margins"] == pytest.approx(measures["rewards/chosen"] - measures["rewards/rejected"], abs=1e-5)
    assert measures["rewards/accuracies"] == int((rewards[:, 0] > rewards[:, 1]).sum())
    assert Preference().weight(batch) == 5


def test_a_policy_that_is_its_reference_has_a_loss_of_ln_2(model: Llama, preferences: TokenSet) -> None:
    reader = open_rows([preferences], "train", None)
    batch = reader.batch(reader.all_rows()[:8], 8)
    assert batch.pairs is not None
    reference = answer_log_probabilities(model, batch).detach()
    result = Preference()(model, replace(batch, pairs=replace(batch.pairs, reference=reference)))
    assert result.loss.item() / 8 == float(torch.tensor(2.0).log())
    assert result.loss.item() / 8 == pytest.approx(math.log(2), abs=1e-7)


def test_a_micro_batch_without_pairs_still_has_a_backward_pass(model: Llama, preferences: TokenSet, scores: object) -> None:
    batch = open_rows([preferences], "train", None).batch([], 2)
    assert batch.pairs is not None
    batch = replace(batch, pairs=replace(batch.pairs, reference=torch.empty(0, 2)))
    result = Preference()(model, batch)
    assert Preference().weight(batch) == 0
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradients_of(result.loss, model))


def test_settings_name_objectives() -> None:
    assert make_objective(NextTokenSettings(z_weight=1e-4)) == NextToken(1e-4)
    assert make_objective(PreferenceSettings(beta=0.5)) == Preference(0.5)
