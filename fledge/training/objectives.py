"""What is minimised: a batch and a model become a sum, and the trainer divides once by the weight of the whole batch.

An objective says what a batch counts for (`weight`: supervised tokens, or pairs) and gives sums over just that, so the mean does
not depend on how rows are split over micro-batches and processes. Dividing each micro-batch by its own weight, as is common, would
make a token count more the fewer others share its micro-batch. After torchtitan's loss, summed and divided by the global count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model.head import TokenLoss, TokenNll
from fledge.model.precision import sum_dtype
from fledge.training.batches import Batch, Pairs
from fledge.training.settings import NextTokenSettings, PreferenceSettings

Forward = Callable[..., Any]
"""A `Llama`, or what wraps it: `forward(tokens, documents, targets, token_weight, z_weight)`."""


@dataclass(frozen=True)
class Sums:
    """Over what `Objective.weight` counts."""

    loss: Tensor
    """() differentiable."""
    measures: dict[str, Tensor]
    """() each, detached; `loss` is always among them."""


class Objective(Protocol):
    """What a run minimises."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what a call measures, in order."""
        ...

    def weight(self, batch: Batch) -> Tensor:
        """() on the batch's device: how much it counts for; known before the forward pass."""
        ...

    def __call__(self, model: Forward, batch: Batch) -> Sums: ...


@dataclass(frozen=True)
class NextToken:
    """Mean negative log-likelihood of the supervised tokens, in nats; `loss` in the measures leaves the z-loss out."""

    z_weight: float = 0.0
    measures: ClassVar[tuple[str, ...]] = ("loss",)

    def weight(self, batch: Batch) -> Tensor:
        """Supervised tokens."""
        return batch.token_weight.sum(dtype=sum_dtype(batch.tokens.device))

    def __call__(self, model: Forward, batch: Batch) -> Sums:
        result: TokenLoss = model(batch.tokens, batch.documents, batch.targets, batch.token_weight, self.z_weight)
        return Sums(result.loss_sum, {"loss": (result.nll.detach() * batch.token_weight).sum()})


@dataclass(frozen=True)
class Preference:
    """Direct preference optimisation: the mean over pairs of a loss of the difference d of two log-ratios, of the chosen and the rejected.

        sigmoid    -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)    Rafailov et al. 2023, equation 7; e: label smoothing
        ipo        (d - 1 / (2 beta))^2                                     Azar et al. 2023, equation 17

    The log-ratio of an answer is log p(answer) - log p_reference(answer), divided by its tokens if `length_normalized`; its reward is beta
    times that of the whole answer, whatever the loss. The measures have TRL's names and definitions.
    """

    settings: PreferenceSettings
    measures: ClassVar[tuple[str, ...]] = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    )

    def weight(self, batch: Batch) -> Tensor:
        """Pairs."""
        assert batch.pairs is not None, "preference training reads preferences"
        return torch.full((), batch.pairs.count, dtype=sum_dtype(batch.tokens.device), device=batch.tokens.device)

    def __call__(self, model: Forward, batch: Batch) -> Sums:
        assert batch.pairs is not None and batch.pairs.reference is not None, "preference training needs the reference's scores"
        log_probabilities = answer_log_probabilities(model, batch)
        ratios = log_probabilities - batch.pairs.reference
        rewards = self.settings.beta * ratios.detach()
        compared = ratios / answer_tokens(batch).clamp(min=1) if self.settings.length_normalized else ratios
        losses = pair_losses(compared[:, 0] - compared[:, 1], self.settings)
        margins = rewards[:, 0] - rewards[:, 1]
        values = (losses, *rewards.T, margins, (margins > 0).float(), *log_probabilities.T)
        return Sums(losses.sum(), {name: value.detach().sum() for name, value in zip(self.measures, values, strict=True)})


def pair_losses(differences: Tensor, settings: PreferenceSettings) -> Tensor:
    """(P,) differences of log-ratios -> (P,) losses."""
    if settings.loss == "ipo":
        return (differences - 1 / (2 * settings.beta)).square()
    margins, smoothing = settings.beta * differences, settings.label_smoothing
    # softplus(-m) = -log sigmoid(m), without overflow; -log sigmoid(-m) is m more.
    return F.softplus(-margins) + smoothing * margins


def answer_log_probabilities(model: Forward, batch: Batch) -> Tensor:
    """(P, 2) log-probabilities in nats of each pair's chosen and rejected answer after its prompt."""
    assert batch.pairs is not None
    result: TokenNll = model(batch.tokens, batch.documents, batch.targets)
    return _summed_by_answer(batch.pairs, -result.nll.float())


def answer_tokens(batch: Batch) -> Tensor:
    """(P, 2) tokens of each pair's chosen and rejected answer."""
    assert batch.pairs is not None
    return _summed_by_answer(batch.pairs, batch.token_weight)


def _summed_by_answer(pairs: Pairs, values: Tensor) -> Tensor:
    """(B, T) -> (P, 2)."""
    totals = torch.zeros(1 + 2 * pairs.count, device=values.device)
    return totals.index_add(0, pairs.answers.flatten(), values.flatten())[1:].view(-1, 2)


def make_objective(settings: NextTokenSettings | PreferenceSettings) -> Objective:
    """The objective that the settings name."""
    if isinstance(settings, PreferenceSettings):
        return Preference(settings)
    return NextToken(settings.z_weight)
