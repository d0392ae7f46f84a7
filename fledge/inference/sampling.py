"""Logits become the next token ids: penalty, temperature, top_k, top_p, min_p, then one draw per row from that row's own generator.

Each row draws one uniform number and looks it up in its own cumulative distribution, so a request gets the same tokens alone
and in a batch; the numbers come from the CPU, so a seed means the same everywhere. To draw, no GPU is waited for. The order of the
filters is transformers' (top_p is taken of what top_k left, renormalised); nucleus sampling is Holtzman et al., "The Curious Case of
Neural Text Degeneration", 2020, min_p Nguyen et al., arXiv:2407.01082, the penalty for repetition Keskar et al., arXiv:1909.05858.

B rows, V vocabulary including padding, K candidates left by top_k.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fledge.inference.requests import TokenLogprobs
from fledge.inference.seeds import hashed
from fledge.inference.settings import GenerationSettings
from fledge.model.devices import without_waiting

BROKEN = -1
"""In place of a token, where logits are not numbers: the weights are broken."""
SMALLEST_TEMPERATURE = 1e-6
"""Below it only the most likely token is drawn: fp32 logits do not lie closer together, and 0 divided by less is not a number."""

SMALLEST_PENALTY, LARGEST_LOGIT = 1e-30, 1e30
"""Beyond them fp32 ends: a penalty becomes 0, a logit infinite, and the difference of two such is not a number."""


def next_tokens(logits: Tensor, settings: GenerationSettings, numbers: Tensor, vocabulary_size: int) -> Tensor:
    """Logits (B, V) to token ids (B,), on the device of the logits; the penalty has been applied, see `penalise_repetition`.

    Ids from `vocabulary_size` on are padding of the embedding matrix and are never drawn. `numbers` (B,) holds
    the `uniform_number` of each row. A row whose largest logit is not a finite number gets BROKEN.
    """
    logits = logits[:, :vocabulary_size].float()
    largest, likeliest = logits.max(dim=-1)  # not a number if one of the row is none
    tokens = likeliest if _is_greedy(settings) else _draws(logits, settings, numbers)
    return tokens.masked_fill(~largest.isfinite(), BROKEN)


def uniform_number(settings: GenerationSettings, generator: torch.Generator) -> Tensor:
    """The next number of a row's stream (1,), on the CPU; 0 where nothing is drawn."""
    return torch.zeros(1, dtype=torch.float64) if _is_greedy(settings) else torch.rand(1, dtype=torch.float64, generator=generator)


def _is_greedy(settings: GenerationSettings) -> bool:
    return settings.temperature < SMALLEST_TEMPERATURE or settings.top_k == 1


def _draws(logits: Tensor, settings: GenerationSettings, numbers: Tensor) -> Tensor:
    probabilities, candidates = candidate_probabilities(logits, settings)
    cumulative = probabilities.double().cumsum(dim=-1)
    threshold = without_waiting(numbers, logits.device)[:, None] * cumulative[:, -1:]
    # right=True skips candidates of probability 0, whose cumulative value equals that of their predecessor
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[-1] - 1)
    return candidates.gather(-1, chosen)[:, 0]


def candidate_probabilities(logits: Tensor, settings: GenerationSettings) -> tuple[Tensor, Tensor]:
    """Logits (B, V) to (probabilities (B, K), token ids (B, K)), most likely first; what top_p and min_p cut off has probability 0."""
    kept = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    values, candidates = torch.topk(logits, kept, dim=-1)
    # the largest logit is subtracted before the division, so that a small temperature overflows to probabilities of 0 only
    probabilities = torch.softmax((values - values[:, :1]) / settings.temperature, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    cut_off = (before >= settings.top_p) | (probabilities < settings.min_p * probabilities[:, :1])
    return probabilities.masked_fill(cut_off, 0.0), candidates


def penalise_repetition(logits: Tensor, ids: Collection[int], penalty: float) -> Tensor:
    """Logits (V) -> the same with those of `ids`, prompt and answer so far, divided by the penalty if positive, else multiplied."""
    seen = without_waiting(torch.tensor(sorted(set(ids))), logits.device)
    values, factor = logits[seen], max(penalty, SMALLEST_PENALTY)
    penalised = torch.where(values < 0, values * factor, values / factor).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    # What was no number before stays none, and is told of.
    return logits.scatter(0, seen, torch.where(values.isfinite(), penalised, values))


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int, vocabulary_size: int) -> list[TokenLogprobs]:
    """How likely each of `tokens` was after its row of logits (B, V), and the `top` most likely ones."""
    logprobs = logits[:, :vocabulary_size].float().log_softmax(dim=-1)
    own = logprobs.gather(-1, without_waiting(torch.tensor(tokens), logits.device)[:, None])
    values, ids = torch.topk(logprobs, min(top, vocabulary_size), dim=-1)
    # Brought back in one copy; fp32 holds every id below 2^24.
    rows = torch.cat([own, values, ids.float()], dim=-1).tolist()
    found = []
    for own_value, *rest in rows:
        ids_of_row = [int(token) for token in rest[len(rest) // 2 :]]
        found.append(TokenLogprobs(own_value, tuple(zip(ids_of_row, rest[: len(rest) // 2], strict=True))))
    return found


def row_generators(seed: int | None, rows: int) -> list[torch.Generator]:
    """One CPU generator per row: row i depends on (seed, i) only, never on the size of the batch; without a seed they differ each time."""
    generators = [torch.Generator() for _ in range(rows)]
    for row, generator in enumerate(generators):
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(hashed(f"{seed}:{row}"))
    return generators
