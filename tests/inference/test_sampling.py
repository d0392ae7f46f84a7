"""Sampling: the distribution that is promised, masked padding, and draws that do not depend on the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fledge.inference.sampling import (
    BROKEN,
    candidate_probabilities,
    next_tokens,
    penalise_repetition,
    row_generators,
    token_logprobs,
    uniform_number,
)
from fledge.inference.settings import GenerationSettings

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 1.5]])
DRAWS = 20_000


def numbers_of(seed: int, rows: int) -> Tensor:
    """The first number of each row."""
    return torch.cat([uniform_number(GenerationSettings(), generator) for generator in row_generators(seed, rows)])


def draw_many(settings: GenerationSettings, logits: Tensor = LOGITS, draws: int = DRAWS) -> Tensor:
    """Counts (V,) over many rows of one batch."""
    rows = logits.expand(draws, -1)
    drawn = next_tokens(rows, settings, numbers_of(7, draws), logits.shape[-1])
    return torch.bincount(drawn, minlength=logits.shape[-1])


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Pearson's statistic over the ids that can occur; the others must not occur at all."""
    possible = expected > 0
    assert int(counts[~possible].sum()) == 0
    expected_counts = expected[possible] * counts.sum()
    return float(((counts[possible] - expected_counts) ** 2 / expected_counts).sum())


def chi_square_limit(cells: int) -> float:
    """About the 99.9 % quantile (Wilson and Hilferty); the draws are seeded, so this passes always or never."""
    freedom = cells - 1
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_gives_the_softmax(temperature: float) -> None:
    counts = draw_many(GenerationSettings(temperature=temperature, top_k=0, top_p=1.0))
    expected = torch.softmax(LOGITS[0].double() / temperature, dim=-1)
    assert chi_square(counts, expected) < chi_square_limit(8)


def test_top_k_keeps_the_k_most_likely() -> None:
    counts = draw_many(GenerationSettings(temperature=1.0, top_k=3, top_p=1.0))
    expected = torch.zeros(8, dtype=torch.float64)
    kept = torch.tensor([0, 7, 1])
    expected[kept] = torch.softmax(LOGITS[0, kept].double(), dim=-1)
    assert chi_square(counts, expected) < chi_square_limit(3)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    counts = draw_many(GenerationSettings(temperature=1.0, top_k=0, top_p=0.7), probabilities.log())
    assert chi_square(counts, torch.tensor([0.5, 0.25, 0.0, 0.0], dtype=torch.float64) / 0.75) < chi_square_limit(2)


def test_top_p_is_taken_of_what_top_k_left() -> None:
    """With top_k = 2 the first of 0.5 and 0.25 holds two thirds of what is left, so top_p = 0.6 leaves it alone."""
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    probabilities, candidates = candidate_probabilities(logits, GenerationSettings(temperature=1.0, top_k=2, top_p=0.6))
    assert candidates.tolist() == [[0, 1]]
    assert probabilities[0, 0] > 0
    assert probabilities[0, 1] == 0


def test_min_p_keeps_what_is_that_likely() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    counts = draw_many(GenerationSettings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.3), probabilities.log())
    assert chi_square(counts, torch.tensor([0.5, 0.25, 0.15, 0.0], dtype=torch.float64) / 0.9) < chi_square_limit(3)


def test_filters_equal_transformers() -> None:
    """Which tokens can be drawn, and how likely each is, by its classes in its order."""
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(3)) * 3
    settings = GenerationSettings(temperature=0.7, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.4)
    ids = torch.randint(100, (20, 15), generator=torch.Generator().manual_seed(4))
    expected = processors.RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone())
    penalised = torch.stack([penalise_repetition(row, seen.tolist(), 1.4) for row, seen in zip(logits, ids, strict=True)])
    torch.testing.assert_close(penalised, expected)
    for warper in (
        processors.TemperatureLogitsWarper(0.7),
        processors.TopKLogitsWarper(30),
        processors.TopPLogitsWarper(0.9),
        processors.MinPLogitsWarper(0.05),
    ):
        expected = warper(ids, expected)
    probabilities, candidates = candidate_probabilities(penalised, settings)
    found = torch.zeros(20, 100).scatter(1, candidates, probabilities / probabilities.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(found, expected.softmax(dim=-1))
    assert 20 < int((found > 0).sum()) < 20 * 30


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_a_penalty_beyond_what_fp32_holds_leaves_numbers(penalty: float) -> None:
    seen = [0, 3, 6]
    penalised = penalise_repetition(LOGITS[0], seen, penalty)
    assert penalised.isfinite().all() and penalised.softmax(dim=-1).isfinite().all()
    favoured = penalty < 1
    assert (int(penalised.argmax()) in seen) == favoured and penalised[3] == 0 and (penalised[6] < LOGITS[0, 6]) != favoured
    for broken in (math.nan, math.inf):
        row = LOGITS[0].clone()
        row[0] = broken
        assert not penalise_repetition(row, seen, penalty)[0].isfinite()


def test_log_probabilities_are_the_models_own_without_padding() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 90.0], [0.0, 0.0, 0.0, 90.0]])
    first, second = token_logprobs(logits, [0, 2], 2, vocabulary_size=3)
    expected = logits[0, :3].log_softmax(dim=-1).tolist()
    assert (first.logprob, [token for token, _ in first.top]) == (pytest.approx(expected[0]), [1, 2])
    assert [value for _, value in first.top] == pytest.approx([expected[1], expected[2]])
    assert second.logprob == pytest.approx(-math.log(3))
    assert token_logprobs(logits, [0, 2], 0, 3)[0].top == ()


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(temperature=0),
        GenerationSettings(top_k=1),
        GenerationSettings(temperature=1e-9),
        GenerationSettings(temperature=5e-324),
    ],
)
def test_greedy_three_ways(settings: GenerationSettings) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    assert next_tokens(logits, settings, numbers_of(0, 50), 300).equal(logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_padded_ids_are_never_drawn(temperature: float) -> None:
    """The three padded ids have by far the largest logits."""
    logits = torch.cat([torch.zeros(500, 5), torch.full((500, 3), 30.0)], dim=-1)
    drawn = next_tokens(logits, GenerationSettings(temperature=temperature, top_k=0, top_p=1.0), numbers_of(3, 500), 5)
    assert int(drawn.max()) < 5


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    settings = GenerationSettings(temperature=1.0)
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(2))
    numbers = [[uniform_number(settings, generator) for _ in range(3)] for generator in row_generators(5, 8)]
    together = [next_tokens(logits, settings, torch.cat([row[draw] for row in numbers]), 100).tolist() for draw in range(3)]
    for row, generator in enumerate(row_generators(5, 8)):
        alone = [int(next_tokens(logits[row : row + 1], settings, uniform_number(settings, generator), 100)) for _ in range(3)]
        assert alone == [step[row] for step in together]


def test_rows_and_seeds_differ() -> None:
    first, second = ([torch.rand(1, generator=generator).item() for generator in row_generators(seed, 50)] for seed in (1, 2))
    assert len({*first, *second}) == 100


def test_without_a_seed_every_call_differs() -> None:
    draws = {torch.rand(1, dtype=torch.float64, generator=row_generators(None, 1)[0]).item() for _ in range(5)}
    assert len(draws) == 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_broken_logits_gets_no_token_and_the_others_theirs(temperature: float) -> None:
    rows = torch.tensor([[0.0, math.nan], [9.0, -99.0], [math.nan, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
    drawn = next_tokens(rows, GenerationSettings(temperature=temperature), numbers_of(0, 5), 2)
    assert drawn.tolist() == [BROKEN, 0, BROKEN, BROKEN, BROKEN]
