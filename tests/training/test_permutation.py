"""Bijections without a table: every number once, in no order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.training.permutation import permute, permute_by_epoch, shuffled


@given(size=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_a_permutation_hits_every_number_once(size: int, key: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, np.full(size, key, dtype=np.uint64))
    assert sorted(images.tolist()) == list(range(size))


def test_a_position_outside_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a position outside"):
        permute(np.array([3, 9], dtype=np.uint64), 9, np.zeros(2, dtype=np.uint64))


def test_a_permutation_shuffles() -> None:
    size = 1_000
    images = permute(np.arange(size, dtype=np.uint64), size, np.full(size, 5, dtype=np.uint64)).astype(np.int64)
    assert abs(np.corrcoef(np.arange(size), images)[0, 1]) < 0.1
    assert np.count_nonzero(np.diff(images) == 1) < 10


def test_every_epoch_has_an_order_of_its_own() -> None:
    positions = np.arange(100)
    orders = [permute_by_epoch(positions, 100, np.full(100, epoch), key).tolist() for epoch in (0, 1) for key in (5, 6)]
    assert all(sorted(order) == positions.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert permute_by_epoch(np.arange(0), 0, np.arange(0), 5).tolist() == []


def test_only_the_seed_decides_what_is_shuffled() -> None:
    assert shuffled(50, 1) == shuffled(50, 1) != shuffled(50, 2)
    assert sorted(shuffled(50, 1)) == list(range(50))
