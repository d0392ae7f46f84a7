"""Paired tests against values that can be computed by hand or are printed in textbooks, and against what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fledge.evaluation.paired import PairedDifference, compare_ratios, compare_shares, holm, sign_test


@pytest.mark.parametrize(
    ("higher", "lower", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (9, 1, 2 * 11 / 1024),
        (4, 4, 1.0),
        (121, 59, 2 * sum(math.comb(180, k) for k in range(60)) / 2**180),
        (1_500, 1_500, 1.0),
    ],
)
def test_the_sign_test_is_exact(higher: int, lower: int, p_value: float) -> None:
    assert sign_test(higher, lower) == pytest.approx(p_value, rel=1e-6)
    assert sign_test(lower, higher) == sign_test(higher, lower)


def test_the_sign_test_sums_the_binomial_of_many_items() -> None:
    n, fewer = 2_000, 940
    exact = 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert sign_test(n - fewer, fewer) == pytest.approx(exact, rel=1e-9)


def test_shares_are_compared_item_by_item() -> None:
    ours, theirs = [1.0] * 12 + [0.0] * 8, [1.0] * 4 + [0.0] * 8 + [1.0] + [0.0] * 7
    found = compare_shares(ours, theirs)
    assert (found.n, found.higher, found.lower) == (20, 8, 1)
    assert found.difference == pytest.approx(7 / 20)
    assert found.p_value == pytest.approx(2 * 10 / 512)
    # Agresti and Min: 8.5 and 1.5 discordant pairs of 22.
    centre, half_width = 7 / 22, 1.959964 * math.sqrt((10 / 22 - (7 / 22) ** 2) / 22)
    assert (found.low, found.high) == pytest.approx((centre - half_width, centre + half_width))
    back = compare_shares(theirs, ours)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_equal_outcomes_differ_in_nothing() -> None:
    same = compare_shares([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert (same.difference, same.p_value, same.is_significant) == (0.0, 1.0, False)
    assert same.low < 0 < same.high
    ratio = compare_ratios(([3.0, 4.0], [2.0, 2.0]), ([3.0, 4.0], [2.0, 2.0]))
    assert (ratio.difference, ratio.p_value) == (0.0, 1.0)


def test_ties_count_in_the_mean_and_by_their_sign() -> None:
    found = compare_shares([0.5, 1.0, 0.0], [0.0, 1.0, 0.5])
    assert (found.difference, found.higher, found.lower, found.p_value) == (0.0, 1, 1, 1.0)


def test_a_constant_gap_is_certain_though_single_intervals_would_overlap() -> None:
    """Texts differ much, the models by a constant little: pairs see what two intervals cannot."""
    random = np.random.default_rng(1)
    bottoms = random.uniform(50, 150, 80)
    hard = random.uniform(0.5, 3.0, 80)
    found = compare_ratios(((hard + 0.05) * bottoms, bottoms), (hard * bottoms, bottoms))
    assert found.difference == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05, 0.05), abs=1e-9)
    assert (found.higher, found.lower) == (80, 0)
    assert found.p_value == pytest.approx(2 / 10_001)


def test_few_items_prove_little() -> None:
    ones = [1.0] * 4
    found = compare_ratios(([2.0, 3.0, 4.0, 5.0], ones), ([1.0, 2.0, 3.0, 4.0], ones))
    assert (found.higher, found.lower, found.p_value, found.is_significant) == (4, 0, 2 / 16, False)


def test_too_few_items_have_no_interval() -> None:
    for n, has_interval in ((1, False), (5, False), (6, True)):
        ones, tops = [1.0] * n, [float(place) for place in range(1, n + 1)]
        for found in (compare_ratios(([2 * top for top in tops], ones), (tops, ones)), compare_ratios((tops, ones), (tops, ones))):
            assert (found.low is not None, found.high is not None) == (has_interval, has_interval)


def test_the_bootstrap_has_the_standard_error_of_the_mean() -> None:
    """With equal denominators the ratio is a mean, whose interval is known."""
    random = np.random.default_rng(5)
    differences = random.normal(0.02, 1.0, 400)
    ones, zeros = np.ones(400), np.zeros(400)
    found = compare_ratios((differences, ones), (zeros, ones))
    error = differences.std() / 20
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.difference == pytest.approx(differences.mean())
    z = abs(differences.mean()) / error
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.05)
    again = compare_ratios((differences, ones), (zeros, ones))
    assert again == found


def test_chunks_of_draws_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    ours, theirs = (random.uniform(1, 2, 30), np.ones(30)), (random.uniform(1, 2, 30), np.ones(30))
    whole = compare_ratios(ours, theirs, resamples=500)
    monkeypatch.setattr("fledge.evaluation.paired._CHUNK_CELLS", 1_000)
    assert compare_ratios(ours, theirs, resamples=500) == whole


def test_under_no_difference_few_tests_are_significant() -> None:
    """At 5 %, of 200 comparisons of models that are equally good: the exact test is conservative, the bootstrap near 5 %."""
    random = np.random.default_rng(3)
    shares = [compare_shares(*random.integers(0, 2, (2, 60)).astype(float).tolist()).is_significant for _ in range(200)]
    ratios = [
        compare_ratios((random.normal(2, 1, 40), np.ones(40)), (random.normal(2, 1, 40), np.ones(40)), resamples=400) for _ in range(200)
    ]
    assert sum(shares) <= 14
    assert 2 <= sum(one.is_significant for one in ratios) <= 22


def test_holm_adjusts_a_table_of_tests() -> None:
    given = [PairedDifference(0.1, 0.0, 0.2, p, 10, 1, 0, "exact sign test") for p in (0.01, 0.04, 0.03, 0.005)]
    adjusted = [one.adjusted_p_value for one in holm(given)]
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.is_significant for one in holm(given)] == [True, False, False, True]
    assert all(one.is_significant for one in given)
    assert holm([]) == []


def test_outcomes_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="the same items"):
        compare_shares([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="the same items"):
        compare_ratios(([], []), ([], []))
