"""The order of rows: exact epochs, exact shares, independent of everything but its identity."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.core.errors import ConfigError
from fledge.training.plan import BLOCK_SLOTS, Plan, Source, counts_before, make_plan, permute, rows_per_rank, slice_for_rank


def plan_of(rows: list[int], batch_rows: int = 7, seed: int = 0, mixture: dict[str, float] | None = None) -> Plan:
    sources = [Source(f"source-{number}", count, f"content-{number}") for number, count in enumerate(rows)]
    return make_plan(sources, mixture, batch_rows, 16, seed)


@given(size=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_hits_every_row_once(size: int, key: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, np.full(size, key, dtype=np.uint64))
    assert sorted(images.tolist()) == list(range(size))


def test_a_permutation_shuffles() -> None:
    size = 1_000
    images = permute(np.arange(size, dtype=np.uint64), size, np.full(size, 5, dtype=np.uint64)).astype(np.int64)
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.1
    assert np.count_nonzero(np.diff(images) == 1) < 10


@given(rows=st.integers(1, 50), batch_rows=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_per_epoch(rows: int, batch_rows: int, seed: int) -> None:
    plan = plan_of([rows], batch_rows, seed)
    seen = [row for step in range(3 * rows // batch_rows + 1) for row in plan.rows(step)]
    for epoch in range(3):
        part = seen[epoch * rows : (epoch + 1) * rows]
        if len(part) == rows:
            assert {row.epoch for row in part} == {epoch}
            assert sorted(row.index for row in part) == list(range(rows))


def test_epochs_differ_in_order_and_so_do_seeds_and_sources() -> None:
    first, second = (plan_of([64], 64).rows(step) for step in (0, 1))
    other_seed = plan_of([64], 64, seed=1).rows(0)
    both = plan_of([64, 64], 128).rows(0)
    orders = [[row.index for row in rows] for rows in (first, second, other_seed)]
    orders += [[row.index for row in both if row.source == number] for number in (0, 1)]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 4


def test_a_batch_does_not_depend_on_where_the_batches_before_ended() -> None:
    wide, narrow = plan_of([100, 900], 12), plan_of([100, 900], 4)
    steps = 2 * BLOCK_SLOTS // 12
    assert [row for step in range(steps) for row in wide.rows(step)] == [row for step in range(3 * steps) for row in narrow.rows(step)]


@given(batch_rows=st.integers(1, 40), world_size=st.integers(1, 9))
@settings(deadline=None)
def test_processes_share_a_batch_without_loss_or_repetition(batch_rows: int, world_size: int) -> None:
    rows = plan_of([500], batch_rows).rows(3)
    shares = [slice_for_rank(rows, rank, world_size) for rank in range(world_size)]
    assert [row for share in shares for row in share] == rows
    assert max(len(share) for share in shares) <= rows_per_rank(batch_rows, world_size)


@pytest.mark.parametrize(("share", "largest_deviation"), [(0.1, 1.3), (0.01, 1.5), (0.5, 1.5), (0.37, 1.5)])
def test_a_source_is_never_far_from_its_share(share: float, largest_deviation: float) -> None:
    plan = plan_of([700, 90_000], 4_000, mixture={"source-0": share, "source-1": 1 - share})
    numbers = np.array([row.source for step in range(25) for row in plan.rows(step)])
    counted = np.cumsum(numbers == 0)
    expected = share * np.arange(1, len(numbers) + 1)
    assert len(numbers) == 100_000
    assert np.abs(counted - expected).max() <= largest_deviation


def test_without_a_mixture_shares_follow_sizes() -> None:
    plan = plan_of([1_000, 3_000], BLOCK_SLOTS)
    assert Counter(row.source for row in plan.rows(0)) == {0: BLOCK_SLOTS // 4, 1: 3 * BLOCK_SLOTS // 4}


@given(
    weights=st.lists(st.integers(0, 1_000), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0),
    slots=st.integers(0, 100_000),
    more=st.integers(0, 5_000),
)
@settings(deadline=None)
def test_counts_are_exact_and_never_fall(weights: list[int], slots: int, more: int) -> None:
    shares = [Fraction(weight) for weight in weights]
    before, after = counts_before(slots, shares), counts_before(slots + more, shares)
    assert sum(before) == slots
    assert all(first <= second for first, second in zip(before, after, strict=True))
    assert all(count == 0 for count, weight in zip(before, weights, strict=True) if weight == 0)
    assert all(abs(count - slots * weight / sum(weights)) <= 3 for count, weight in zip(before, weights, strict=True))


def test_the_fingerprint_changes_with_each_part_of_the_identity_and_with_nothing_else() -> None:
    plan = plan_of([10, 20])
    first, second = plan.sources
    others = [
        replace(plan, seed=1),
        replace(plan, batch_rows=8),
        replace(plan, row_tokens=32),
        replace(plan, weights=(Fraction(1), Fraction(3))),
        replace(plan, sources=(replace(first, rows=11), second)),
        replace(plan, sources=(replace(first, content="other"), second)),
        replace(plan, sources=(replace(first, name="other"), second)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 8
    plan.rows(5)
    assert plan.fingerprint == plan_of([10, 20]).fingerprint


def test_a_mixture_must_name_the_sources() -> None:
    assert plan_of([10, 20], mixture={"source-0": 1.0, "source-1": 0.0}).rows(0)[0].source == 0
    with pytest.raises(ConfigError, match="names no source 'wiki'"):
        plan_of([10], mixture={"source-0": 1.0, "wiki": 1.0})
    with pytest.raises(ConfigError, match="has no weight for the source 'source-1'"):
        plan_of([10, 20], mixture={"source-0": 1.0})


def test_epochs_count_all_sources_together() -> None:
    assert plan_of([10, 25], batch_rows=7).epochs(10) == 2.0
