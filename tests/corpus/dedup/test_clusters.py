from __future__ import annotations

import tracemalloc
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fledge.corpus.dedup.clusters import EDGE_BYTES_PER_ROW, components, edges, parts_needed, survivors

PARTS = (1, 2, 7)
MEGABYTE = 1 << 20


def by_hand(rows: int, pairs: list[tuple[int, int]]) -> list[int]:
    first = list(range(rows))
    for _ in range(rows):
        for one, two in pairs:
            first[one] = first[two] = min(first[one], first[two])
    return first


def spread(numbers: list[int]) -> NDArray[np.uint64]:
    """Small numbers as keys that differ in all their bits, as hashes do."""
    return np.array(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@given(st.lists(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=8), max_size=4))
def test_clusters_do_not_depend_on_the_number_of_parts(units: list[list[list[int]]]) -> None:
    """Each unit holds rows, each row its keys of three bands."""
    rows = [row for unit in units for row in unit]
    pairs = [(one, two) for one in range(len(rows)) for two in range(one) if any(a == b for a, b in zip(rows[one], rows[two], strict=True))]
    for parts in PARTS:
        found = []
        for band in range(3):
            keys = [spread([row[band] for row in unit]) for unit in units]
            found += [edges(keys, part, parts) for part in range(parts)]
        assert components(len(rows), found).tolist() == by_hand(len(rows), pairs)
        assert components(len(rows), reversed(found)).tolist() == by_hand(len(rows), pairs)


def test_each_row_is_paired_with_the_next_of_its_key() -> None:
    keys = [spread([5, 6, 5]), spread([]), spread([5, 7, 6])]
    assert sorted(map(tuple, edges(keys, 0, 1).T.tolist())) == [(0, 2), (1, 5), (2, 3)]
    assert edges([], 0, 1).shape == (2, 0)
    assert edges([spread([1, 2])], 0, 1).shape == (2, 0)


def test_parts_share_all_keys_between_them_about_equally() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 64, 10_000, np.uint64)
    found = [edges([keys, keys], part, 7) for part in range(7)]
    assert np.array_equal(np.sort(np.concatenate(found, axis=1)[0]), np.arange(10_000))
    assert all(10_000 / 7 * 0.9 < pairs.shape[1] < 10_000 / 7 * 1.1 for pairs in found)
    extremes = np.array([0, (1 << 64) - 1], np.uint64)
    assert [edges([extremes, extremes], part, 7).shape[1] for part in (0, 3, 6)] == [1, 0, 1]


def test_memory_mapped_rows_and_columns(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    units = [generator.integers(0, 50, (2, count), np.uint64) << np.uint64(58) for count in (30, 0, 20)]
    for index, unit in enumerate(units):
        np.save(tmp_path / f"rows{index}.npy", unit)
        np.save(tmp_path / f"columns{index}.npy", np.ascontiguousarray(unit.T))
    rows = [np.load(tmp_path / f"rows{index}.npy", mmap_mode="r")[1] for index in range(3)]
    columns = [np.load(tmp_path / f"columns{index}.npy", mmap_mode="r")[:, 1] for index in range(3)]
    expected = edges([unit[1] for unit in units], 0, 1)
    assert expected.shape[1] > 0
    assert np.array_equal(edges(rows, 0, 1), expected)
    assert np.array_equal(edges(columns, 0, 1), expected)


def test_parts_needed_on_both_sides_of_the_memory() -> None:
    assert EDGE_BYTES_PER_ROW == 40
    assert parts_needed(0, MEGABYTE) == 1
    assert parts_needed(MEGABYTE // 44, MEGABYTE) == 1
    assert parts_needed(MEGABYTE // 44 + 1, MEGABYTE) == 2
    assert parts_needed(1_000_000_000, 500_000_000) == 88


@pytest.mark.parametrize("distinct", [1, 10**9])
def test_edges_stay_within_their_memory(distinct: int) -> None:
    keys = spread(np.random.default_rng(2).integers(0, distinct, 200_000).tolist())
    edges([keys[:2]], 0, 1)
    tracemalloc.start()
    edges([keys], 0, 1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 200_000 * EDGE_BYTES_PER_ROW * 1.1


def test_parts_bound_the_memory() -> None:
    keys = spread(list(range(200_000)))
    parts = parts_needed(keys.size, 2 * MEGABYTE)
    assert parts == 5
    for part in range(parts):
        tracemalloc.start()
        edges([keys], part, parts)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes <= 2 * MEGABYTE


def test_a_long_chain_in_any_order() -> None:
    rows = 20_000
    links = np.array([range(rows - 1), range(1, rows)], np.int64)
    order = list(range(rows - 1))
    Random(0).shuffle(order)
    for pairs in (links, links[:, ::-1], links[::-1], links[:, order]):
        assert not components(rows, [pairs]).any()
    assert np.array_equal(components(rows, []), np.arange(rows))
    assert components(0, [np.empty((2, 0), np.int64)]).shape == (0,)


@pytest.mark.parametrize("pair", [(0, 3), (-1, 2)])
def test_a_pair_outside_the_rows_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="but there are 3"):
        components(3, [np.array(pair, np.int64).reshape(2, 1)])
    assert components(3, [np.array([[0], [2]], np.int64)]).tolist() == [0, 1, 0]


def test_survivors() -> None:
    first = np.array([0, 1, 0, 1, 0, 5])
    characters = np.array([3, 9, 7, 9, 7, 0])
    assert survivors(first, characters, "first").tolist() == [True, True, False, False, False, True]
    assert survivors(first, characters, "longest").tolist() == [False, True, True, False, False, True]
    assert survivors(first[:0], characters[:0], "longest").shape == (0,)
