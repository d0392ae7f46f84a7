"""Objectives against plain formulas on full logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_assembly import MODEL

from fledge.core.config import Tree, parse
from fledge.core.errors import ConfigError
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


PLAIN_LOSSES: dict[str, tuple[PreferenceSettings, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    # Equation 7 of Rafailov et al.; equation 3 of Mitchell's note; equation 17 of Azar et al.; TRL's ipo and sigmoid_norm.
    "sigmoid": (PreferenceSettings(beta=0.3), lambda ratios, _, __: -torch.log(torch.sigmoid(0.3 * (ratios[0] - ratios[1])))),
    "smoothed": (
        PreferenceSettings(beta=0.3, label_smoothing=0.1),
        lambda ratios, _, __: (
            -0.9 * torch.log(torch.sigmoid(0.3 * (ratios[0] - ratios[1]))) - 0.1 * torch.log(torch.sigmoid(0.3 * (ratios[1] - ratios[0])))
        ),
    ),
    "ipo": (PreferenceSettings(beta=0.2, loss="ipo"), lambda ratios, _, __: (ratios[0] - ratios[1] - 1 / 0.4) ** 2),
    "ipo, per token": (
        PreferenceSettings(beta=0.2, loss="ipo", length_normalized=True),
        lambda ratios, chosen, rejected: (ratios[0] / chosen - ratios[1] / rejected - 1 / 0.4) ** 2,
    ),
    "sigmoid, per token": (
        PreferenceSettings(beta=2.0, length_normalized=True),
        lambda ratios, chosen, rejected: -torch.log(torch.sigmoid(2.0 * (ratios[0] / chosen - ratios[1] / rejected))),
    ),
}


def plain_preference(
    model: Llama, batch: Batch, reference: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The sum of losses, pair by pair and token by token, and the log-probabilities of all answers."""
    assert batch.pairs is not None
    chances = logits_of(model, batch).log_softmax(-1)
    losses, all_totals = [], []
    for pair in range(batch.pairs.count):
        totals, counts = [], []
        for side in (0, 1):
            places = (batch.pairs.answers == 1 + 2 * pair + side).nonzero().tolist()
            totals.append(torch.stack([chances[row, column, batch.targets[row, column]] for row, column in places]).sum())
            counts.append(torch.tensor(float(len(places))))
        all_totals.append(torch.stack(totals))
        losses.append(loss(all_totals[-1] - reference[pair], *counts))
    return torch.stack(losses).sum(), torch.stack(all_totals).detach()


@pytest.mark.parametrize(("settings", "loss"), PLAIN_LOSSES.values(), ids=PLAIN_LOSSES.keys())
def test_preference_is_the_formula_of_the_paper(
    settings: PreferenceSettings, loss: Callable[[Tensor, Tensor, Tensor], Tensor], model: Llama, preferences: TokenSet
) -> None:
    reader = open_rows([preferences], "train", None)
    batch = reader.batch(reader.all_rows()[:5], 6)
    assert batch.pairs is not None
    reference = answer_log_probabilities(Llama(MODEL, seed=2), batch).detach()
    batch = replace(batch, pairs=replace(batch.pairs, reference=reference))
    result = Preference(settings)(model, batch)
    expected, totals = plain_preference(model, batch, reference, loss)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients_of(result.loss, model), gradients_of(expected, model))

    rewards = settings.beta * (answer_log_probabilities(model, batch).detach() - reference)
    measures = {name: float(value) for name, value in result.measures.items()}
    assert measures["rewards/chosen"] == pytest.approx(float(rewards[:, 0].sum()))
    assert measures["rewards/rejected"] == pytest.approx(float(rewards[:, 1].sum()))
    assert measures["rewards/margins"] == pytest.approx(measures["rewards/chosen"] - measures["rewards/rejected"], abs=1e-5)
    assert measures["rewards/accuracies"] == int((rewards[:, 0] > rewards[:, 1]).sum())
    assert measures["logps/chosen"] == pytest.approx(float(totals[:, 0].sum()), rel=1e-5)
    assert measures["logps/rejected"] == pytest.approx(float(totals[:, 1].sum()), rel=1e-5)
    assert Preference(settings).weight(batch) == 5


def test_a_policy_that_is_its_reference_has_a_loss_of_ln_2(model: Llama, preferences: TokenSet) -> None:
    reader = open_rows([preferences], "train", None)
    batch = reader.batch(reader.all_rows()[:8], 8)
    assert batch.pairs is not None
    reference = answer_log_probabilities(model, batch).detach()
    result = Preference(PreferenceSettings())(model, replace(batch, pairs=replace(batch.pairs, reference=reference)))
    assert result.loss.item() / 8 == float(torch.tensor(2.0).log())
    assert result.loss.item() / 8 == pytest.approx(math.log(2), abs=1e-7)


def test_a_micro_batch_without_pairs_still_has_a_backward_pass(model: Llama, preferences: TokenSet, scores: object) -> None:
    batch = open_rows([preferences], "train", None).batch([], 2)
    assert batch.pairs is not None
    batch = replace(batch, pairs=replace(batch.pairs, reference=torch.empty(0, 2)))
    result = Preference(PreferenceSettings())(model, batch)
    assert Preference(PreferenceSettings()).weight(batch) == 0
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradients_of(result.loss, model))


def test_settings_name_objectives() -> None:
    assert make_objective(NextTokenSettings(z_weight=1e-4)) == NextToken(1e-4)
    assert make_objective(PreferenceSettings(beta=0.5)) == Preference(PreferenceSettings(beta=0.5))


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.5}, {"loss": "ipo", "label_smoothing": 0.1}, {"loss": "hinge"}])
def test_losses_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse(PreferenceSettings, Tree(changes, {}))
