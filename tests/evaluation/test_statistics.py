"""Intervals against known values, coverage by simulation, and verdicts on both sides of the baseline."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest

from fledge.evaluation.statistics import (
    bootstrap_score,
    mean_score,
    perplexity_score,
    ratio_score,
    score_from_plain,
    share_score,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(15, 50, 0.191032, 0.437490), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (50, 100, 0.403832, 0.596168)],
)
def test_wilson_interval_matches_published_values(successes: int, n: int, low: float, high: float) -> None:
    """Values of R's `prop.test(..., correct = FALSE)`."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    successes = np.random.default_rng(0).binomial(50, 0.3, size=4000)
    covered = [low <= 0.3 <= high for low, high in (wilson_interval(int(count), 50) for count in successes)]
    assert 0.93 < np.mean(covered) < 0.97


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(successes, n)


def test_near_chance_is_said_in_plain_words() -> None:
    score = share_score("yes_no", 104, 200, chance=0.5, majority=0.5)
    assert score.distinguishable is False
    assert score.verdict == "not distinguishable from guessing (50 %) at n = 200"


@pytest.mark.parametrize(("successes", "word"), [(150, "better"), (50, "worse")])
def test_far_from_chance_is_said_too(successes: int, word: str) -> None:
    score = share_score("yes_no", successes, 200, chance=0.5)
    assert score.distinguishable is True
    assert score.verdict.startswith(word)


def test_the_better_baseline_counts() -> None:
    score = share_score("yes_no", 120, 200, chance=0.5, majority=0.62)
    assert score.baseline == 0.62
    assert score.distinguishable is False


def test_without_a_baseline_there_is_no_verdict() -> None:
    score = share_score("stop_rate", 97, 100)
    assert (score.baseline, score.distinguishable, score.verdict) == (None, None, "")


def test_ratio_weighs_by_denominator() -> None:
    score = ratio_score("bits_per_byte", [10.0, 30.0], [10.0, 10.0], "bits_per_byte")
    assert score.value == 2.0
    assert score.low is not None and score.high is not None
    assert score.low < 2.0 < score.high
    assert ratio_score("bits_per_byte", [4.0, 8.0], [2.0, 4.0], "bits_per_byte").low == pytest.approx(2.0)


def test_ratio_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        sizes = generator.integers(50, 500, size=60).astype(float)
        score = ratio_score("bits_per_byte", list(sizes * generator.normal(2.0, 0.4, size=60)), list(sizes), "bits_per_byte")
        assert score.low is not None and score.high is not None
        hits += score.low <= 2.0 <= score.high
    assert 920 < hits < 970


def test_one_document_has_a_value_and_no_interval() -> None:
    score = ratio_score("bits_per_byte", [8.0], [4.0], "bits_per_byte")
    assert (score.value, score.low, score.high) == (2.0, None, None)


def test_mean_interval_is_the_normal_one() -> None:
    score = mean_score("margin", [1.0, 2.0, 3.0], "nats")
    assert score.value == 2.0
    assert score.high == pytest.approx(2.0 + 1.959964 * 1.0 / 3**0.5)


def test_a_score_survives_json() -> None:
    score = share_score("last_word", 3, 40, chance=0.02)
    assert score_from_plain(json.loads(json.dumps(asdict(score), allow_nan=False))) == score


def test_the_bootstrap_holds_what_the_normal_interval_holds() -> None:
    """Both are right for many samples of a kind; the figure is the same to the last bit, and the draws are always alike."""
    chosen = random.Random(0)
    weights = [float(chosen.randint(20, 60)) for _ in range(400)]
    nats = [weight * chosen.gauss(3.0, 0.4) for weight in weights]
    found, expected = bootstrap_score("x", nats, weights, "perplexity"), perplexity_score("x", nats, weights)
    assert found.value == expected.value and found == bootstrap_score("x", nats, weights, "perplexity")
    assert found.low == pytest.approx(expected.low, rel=0.01) and found.high == pytest.approx(expected.high, rel=0.01)
    bits = bootstrap_score("x", nats, weights, "bits_per_byte")
    assert bits.value == pytest.approx(math.log2(found.value)) and bits.low is not None and bits.low < bits.value


def test_the_bootstrap_of_one_sample_has_no_interval_and_of_a_hopeless_one_a_number() -> None:
    assert (bootstrap_score("x", [2.0], [1.0], "perplexity").low, bootstrap_score("x", [2.0], [1.0], "perplexity").value) == (
        None,
        math.exp(2),
    )
    assert math.isfinite(bootstrap_score("x", [9e9, 1.0], [1.0, 1.0], "perplexity").value)
