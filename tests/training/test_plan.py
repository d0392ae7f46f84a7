"""The order of rows: exact epochs, exact shares, independent of everything but its identity."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.training.plan import BLOCK_SLOTS, Phase, Plan, Row, Source, Start, counts_before, rows_per_rank, slice_for_rank

ROW_TOKENS = 16
Taken = dict[tuple[int, int], list[tuple[int, int]]]
"""By source and epoch: where in the source each row begins and ends, in tokens."""


def plan_of(rows: list[int], batch_rows: int = 7, seed: int = 0, mixture: dict[str, float] | None = None, steps: int = 100_000) -> Plan:
    """One phase of rows of 16 tokens."""
    weights = {f"source-{number}": count for number, count in enumerate(rows)} if mixture is None else mixture
    sources = [Source(name, count * ROW_TOKENS, f"content of {name}") for name, count in zip(weights, rows, strict=True)]
    return Plan(tuple(sources), (Phase(steps, batch_rows, ROW_TOKENS, tuple(map(Fraction, weights.values()))),), seed)


def phased(tokens: list[int], phases: list[tuple[int, int, int]], weights: list[list[int]] | None = None, seed: int = 0) -> Plan:
    """Sources of so many tokens; phases of (steps, rows, tokens per row) with weights, which are equal if none are given."""
    sources = tuple(Source(f"source-{number}", count, "") for number, count in enumerate(tokens))
    shares = weights or [[1] * len(tokens)] * len(phases)
    return Plan(sources, tuple(Phase(*shape, tuple(map(Fraction, of))) for shape, of in zip(phases, shares, strict=True)), seed)


def all_rows(plan: Plan) -> list[Row]:
    return [row for step in range(plan.start.step, plan.steps) for row in plan.rows(step)]


def taken(plan: Plan) -> Taken:
    found: Taken = {}
    for step in range(plan.steps):
        length = plan.phase(step).row_tokens
        for row in plan.rows(step):
            end = min((row.index + 1) * length, plan.sources[row.source].tokens)
            found.setdefault((row.source, row.epoch), []).append((row.index * length, end))
    return found


@given(rows=st.integers(1, 50), batch_rows=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=40)
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
def test_counts_are_exact_and_never_fall(weights: list[int], slots: int, more: int) -> None:
    shares = [Fraction(weight) for weight in weights]
    before, after = counts_before(slots, shares), counts_before(slots + more, shares)
    assert sum(before) == slots
    assert all(first <= second for first, second in zip(before, after, strict=True))
    assert all(count == 0 for count, weight in zip(before, weights, strict=True) if weight == 0)
    assert all(abs(count - slots * weight / sum(weights)) <= 3 for count, weight in zip(before, weights, strict=True))


def test_the_order_of_a_run_without_phases_never_changes() -> None:
    """Runs that were begun before continue with the rows they would have had."""
    plan = plan_of([100, 900], 500, seed=7, mixture={"source-0": 1, "source-1": 3}, steps=20)
    rows = [(row.source, row.index, row.epoch) for row in all_rows(plan)]
    assert hashlib.sha256(str(rows).encode()).hexdigest() == "647ae45dadd7987175380cd4516ea531572ef34b6eff4b6fcaa3a0d6076015f4"


def test_the_fingerprint_changes_with_each_part_of_the_identity_and_with_nothing_else() -> None:
    plan = plan_of([10, 20])
    (first, second), (phase,) = plan.sources, plan.phases
    others = [
        replace(plan, seed=1),
        replace(plan, start=Start(3, 100)),
        replace(plan, phases=(replace(phase, batch_rows=8),)),
        replace(plan, phases=(replace(phase, row_tokens=32),)),
        replace(plan, phases=(replace(phase, steps=9),)),
        replace(plan, phases=(replace(phase, weights=(Fraction(1), Fraction(3))),)),
        replace(plan, phases=(phase, phase)),
        replace(plan, sources=(replace(first, tokens=11), second)),
        replace(plan, sources=(replace(first, content="other"), second)),
        replace(plan, sources=(replace(first, name="other"), second)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 11
    plan.rows(5)
    assert plan.fingerprint == plan_of([10, 20]).fingerprint


def test_epochs_count_all_sources_together() -> None:
    assert plan_of([10, 25], batch_rows=7).epochs(10) == 2.0
    assert phased([160, 560], [(2, 5, 16), (5, 2, 32)]).epochs(7) == 10 / 45 + 10 / 23


def test_two_phases_of_equal_settings_are_one() -> None:
    """The rows of one source are the same in the same order; of several, the same within the rounding of their shares."""
    one, two = phased([16_000], [(30, 8, 16)]), phased([16_000], [(11, 8, 16), (19, 8, 16)])
    assert all_rows(one) == all_rows(two)
    one, two = phased([16_000, 4_800], [(300, 8, 16)], [[3, 1]]), phased([16_000, 4_800], [(110, 8, 16), (190, 8, 16)], [[3, 1]] * 2)
    first, second = Counter(all_rows(one)), Counter(all_rows(two))
    assert (first - second).total() <= 2


def test_growing_batches_read_on() -> None:
    """A batch-size ramp has the rows of a run of one size, in their order."""
    ramp = phased([8_000], [(4, 5, 16), (6, 10, 16), (3, 40, 16)])
    assert all_rows(ramp) == all_rows(phased([8_000], [(40, 5, 16)]))
    assert [len(ramp.rows(step)) for step in range(ramp.steps)] == [5] * 4 + [10] * 6 + [40] * 3


@given(
    tokens=st.lists(st.integers(5, 3_000), min_size=1, max_size=3),
    phases=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 20), st.sampled_from([8, 16, 24, 48])), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
@settings(max_examples=80)
def test_nothing_comes_again_before_an_epoch_is_over(tokens: list[int], phases: list[tuple[int, int, int]], seed: int) -> None:
    """Across lengths of rows too; what an epoch leaves out is less than a row of the next length per border of phases."""
    plan = phased(tokens, phases, seed=seed)
    parts = taken(plan)
    for (source, epoch), rows in parts.items():
        rows.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(rows)), "no token twice"
        assert all(0 <= start < end <= tokens[source] for start, end in rows)
        if (source, epoch + 1) in parts:
            assert tokens[source] - sum(end - start for start, end in rows) < 48 * len(phases)
    for source in range(len(tokens)):
        epochs = sorted(epoch for of_source, epoch in parts if of_source == source)
        assert epochs == list(range(len(epochs)))


def test_neighbours_are_parted_where_a_chunk_holds_many_rows() -> None:
    plan = phased([64_000], [(40, 100, 8), (5, 2, 2_048)])
    rows = [row.index for step in range(40) for row in plan.rows(step)]
    assert len(set(rows)) == 4_000
    assert np.count_nonzero(np.abs(np.diff(rows)) == 1) < 20
    assert abs(np.corrcoef(np.arange(4_000), rows)[0, 1]) < 0.1


@pytest.mark.parametrize("place", [0, 1])
def test_ten_percent_are_ten_percent_of_the_tokens(place: int) -> None:
    """Within 0.05 points over 100,000 rows, alone and over phases whose mixtures, rows and batches differ."""
    weights = [[9, 9], [9, 9]]
    weights[0][place] = weights[1][place] = 1
    one = phased([10**6, 10**8], [(1_000, 100, 64)], weights[:1])
    assert sum(row.source == place for row in all_rows(one)) / 100_000 == pytest.approx(0.1, abs=5e-4)
    two = phased([10**6, 10**8], [(500, 100, 64), (1_000, 50, 128)], weights)
    assert two.use(two.steps)[f"source-{place}"].share == pytest.approx(0.1, abs=5e-4)
    mixed = phased([10**6, 10**8], [(500, 100, 64), (500, 100, 64)], [weights[0], [1, 1]])
    sources = np.array([row.source for row in all_rows(mixed)]) == place
    assert sources[:50_000].mean() == pytest.approx(0.1, abs=5e-4)
    assert sources.mean() == pytest.approx(0.3, abs=5e-4)


@pytest.mark.parametrize("step", [0, 1, 7, 8, 9, 30, 57])
def test_what_a_plan_says_was_used_is_what_its_rows_are(step: int) -> None:
    plan = phased([3_000, 700], [(8, 33, 8), (22, 10, 24), (27, 100, 48)], [[1, 1], [3, 1], [0, 1]])
    tokens, epochs = Counter[int](), Counter[int]()
    for before in range(step):
        length = plan.phase(before).row_tokens
        for row in plan.rows(before):
            tokens[row.source] += length
            epochs[row.source] += Fraction(1, plan.sources[row.source].rows(length))  # type: ignore[assignment]
    used = plan.use(step)
    assert plan.tokens(step) == tokens.total()
    for place in (0, 1):
        assert used[f"source-{place}"].tokens == tokens[place]
        assert used[f"source-{place}"].epochs == pytest.approx(float(epochs[place]))
        assert used[f"source-{place}"].share == (tokens[place] / tokens.total() if step else 0.0)


def test_a_plan_that_takes_over_a_step_counts_on_from_it() -> None:
    plan = replace(phased([1_600], [(3, 4, 16), (2, 8, 16)]), start=Start(100, 5_000))
    assert (plan.steps, plan.tokens(100), plan.tokens(103), plan.tokens(105)) == (105, 5_000, 5_192, 5_448)
    assert plan.rows(100) == phased([1_600], [(3, 4, 16), (2, 8, 16)]).rows(0)
    assert plan.epochs(100) == 0
    with pytest.raises(AssertionError, match="step 105 is not between 100 and 105"):
        plan.rows(105)
