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
from fledge.training.batches import Batch
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
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): mean of -log sigmoid(reward margin) over pairs.

    The reward of an answer is beta (log p(answer) - log p_reference(answer)). The measures have TRL's names.
    """

    beta: float = 0.1
    measures: ClassVar[tuple[str, ...]] = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")

    def weight(self, batch: Batch) -> Tensor:
        """Pairs."""
        assert batch.pairs is not None, "preference training reads preferences"
        return torch.full((), batch.pairs.count, dtype=sum_dtype(batch.tokens.device), device=batch.tokens.device)

    def __call__(self, model: Forward, batch: Batch) -> Sums:
        assert batch.pairs is not None and batch.pairs.reference is not None, "preference training needs the reference's scores"
        rewards = self.beta * (answer_log_probabilities(model, batch) - batch.pairs.reference)
        margins = rewards[:, 0] - rewards[:, 1]
        losses = F.softplus(-margins)
        values = (losses, rewards[:, 0], rewards[:, 1], margins, (margins > 0).float())
        return Sums(losses.sum(), {name: value.detach().sum() for name, value in zip(self.measures, values, strict=True)})


def answer_log_probabilities(model: Forward, batch: Batch) -> Tensor:
    """(P, 2) log-probabilities in nats of each pair's chosen and rejected answer after its prompt."""
    assert batch.pairs is not None
    result: TokenNll = model(batch.tokens, batch.documents, batch.targets)
    totals = torch.zeros(1 + 2 * batch.pairs.count, device=result.nll.device)
    totals = totals.index_add(0, batch.pairs.answers.flatten(), -result.nll.flatten().float())
    return totals[1:].view(-1, 2)


def make_objective(settings: NextTokenSettings | PreferenceSettings) -> Objective:
    """The objective that the settings name."""
    if isinstance(settings, PreferenceSettings):
        return Preference(settings.beta)
    return NextToken(settings.z_weight)
