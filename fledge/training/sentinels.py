"""What is wrong before a run is, as a rule: token shards and a first loss -> [sentinels] -> an error before step 0, or a warning after 1.

A batch in which nothing is to be learned, answers whose end is never learned, and weights that are not those one meant to start from: none
of them stops a run by itself, and each makes it worthless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fledge.core import console
from fledge.core.artifact import Artifact
from fledge.core.errors import DataError
from fledge.tokens.blocks import BLOCK_BYTES
from fledge.tokens.shards import TokenShard
from fledge.training.objectives import pair_losses
from fledge.training.plan import Plan
from fledge.training.settings import PreferenceSettings
from fledge.training.trainer import StepReport

FRESH_TOLERANCE = 0.5
"""Nats that the first loss of random weights may be from ln(vocabulary)."""
PARENT_TOLERANCE = 1.0
"""Nats that it may be from the loss that the same stage ended with, on other text."""
REFERENCE_TOLERANCE = 0.05
"""Nats that the first loss of preference training may be from that of a model which is its reference."""


@dataclass(frozen=True)
class Expected:
    """Of the first loss."""

    least: float
    most: float
    reason: str


def expected_loss(stage: str, preference: PreferenceSettings | None, vocabulary_size: int, parent: Artifact | None) -> Expected | None:
    """What a stage's first loss should be; None where nobody can say: after weights of others."""
    chance = math.log(vocabulary_size)
    if preference is not None:
        start = float(pair_losses(torch.zeros(1), preference))
        return Expected(start - REFERENCE_TOLERANCE, start + REFERENCE_TOLERANCE, f"{start:.3f}, where the model is its reference")
    if parent is None:
        reason = f"ln(vocabulary) = {chance:.3f}, which random weights give"
        return Expected(chance - FRESH_TOLERANCE, chance + FRESH_TOLERANCE, reason)
    if parent.manifest.kind != "checkpoint" or parent.stats.get("loss") is None:
        return None
    loss = float(parent.stats.get("validation_loss") or parent.stats["loss"])
    if parent.manifest.settings.get("settings", {}).get("stage") == stage:
        return Expected(loss - PARENT_TOLERANCE, loss + PARENT_TOLERANCE, f"{loss:.3f}, the loss of the checkpoint it starts from")
    return Expected(0.0, chance, f"the loss of the checkpoint it starts from, {loss:.3f}, and below ln(vocabulary) = {chance:.3f}")


class FirstLoss:
    """An observer of the first step: warns if its loss is not what it should be."""

    def __init__(self, expected: Expected | None, plan: Plan, is_main: bool) -> None:
        self._expected, self._plan, self._is_main = expected, plan, is_main

    def due(self, step: int) -> bool:
        return self._is_main and self._expected is not None and step == self._plan.start.step + 1

    def observe(self, report: StepReport) -> dict[str, float]:
        loss, expected = float(report.measures["loss"]), self._expected
        if expected is not None and not expected.least <= loss <= expected.most:
            console.warn(
                f"the first loss is {loss:.3f}, and should be near {expected.reason}: "
                "look whether the weights, the tokenizer and the texts belong together"
            )
        return {}


def require_targets(plan: Plan, shards: Sequence[TokenShard]) -> None:
    """Raises DataError if a step of the plan has no token to learn. In a stream of documents every token is learned."""
    empty = [frozenset(_rows_without_targets(shard, plan.longest_row_tokens).tolist()) for shard in shards]
    if not any(empty):
        return
    for step in range(plan.start.step, plan.steps):
        if all(row.index in empty[row.source] for row in plan.rows(step)):
            raise DataError(
                f"step {step + 1:,} would have nothing to learn: no token of its rows is a target",
                "check what the loss mask leaves out (fledge inspect), or raise batch_rows",
            )


def require_stop_token(shards: Sequence[TokenShard], stop_id: int, name: str) -> None:
    """Raises DataError if no answer of some conversations trains the token that ends it: a model trained on them would never stop."""
    if not any(_trains(shard, stop_id) for shard in shards):
        raise DataError(
            f"no answer trains its end: {name} is never a target of the loss, so the model would not learn to stop",
            "check the chat template and the loss mask: fledge inspect shows both; then pack again",
        )


def _rows_without_targets(shard: TokenShard, row_tokens: int) -> NDArray[np.int64]:
    """Numbers of the rows without a target; a row's first token is none, because nothing comes before it."""
    if shard.supervised is None:
        return np.empty(0, np.int64)
    at_once = max(1, BLOCK_BYTES // row_tokens) * row_tokens
    rows = len(shard.supervised) // row_tokens
    targets = np.zeros(rows, dtype=bool)
    for start in range(0, rows * row_tokens, at_once):
        flags = shard.supervised[start : min(start + at_once, rows * row_tokens)].reshape(-1, row_tokens)
        targets[start // row_tokens : start // row_tokens + len(flags)] = flags[:, 1:].any(axis=1)
    return np.flatnonzero(~targets)


def _trains(shard: TokenShard, stop_id: int) -> bool:
    """Whether an id is ever a target; reads no further than to the first time."""
    if shard.supervised is None:
        return True
    for start in range(0, len(shard.tokens), BLOCK_BYTES):
        span = slice(start, start + BLOCK_BYTES)
        if bool(((shard.tokens[span] == stop_id) & (shard.supervised[span] == 1)).any()):
            return True
    return False
