from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.tokens.superwords import Merge, SuperwordMerger

WORDS = 6


def _by_the_book(ids: list[int], merges: list[Merge]) -> list[int]:
    """Byte-pair encoding as it is defined: the earliest merge that applies anywhere, at its leftmost place, until none does."""
    ranks = {(merge.left, merge.right): rank for rank, merge in reversed(list(enumerate(merges)))}
    while True:
        found = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
        if not found:
            return ids
        rank, place = min(found)
        ids = [*ids[:place], merges[rank].merged, *ids[place + 2 :]]


def _random_merges(chance: random.Random, count: int) -> list[Merge]:
    merges: list[Merge] = []
    for merged in range(WORDS, WORDS + count):
        pairs = {(merge.left, merge.right) for merge in merges}
        pair = chance.randrange(merged), chance.randrange(merged)
        while pair in pairs:
            pair = chance.randrange(merged), chance.randrange(merged)
        merges.append(Merge(*pair, merged))
    return merges


def _merged(merger: SuperwordMerger, rows: list[list[int]], threads: int = 1) -> list[list[int]]:
    offsets = np.cumsum([0, *map(len, rows)])
    ids, ends = merger.merge(np.array([number for row in rows for number in row], np.uint32), offsets, threads)
    return [ids[start:stop].tolist() for start, stop in itertools.pairwise(ends)]


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.lists(st.lists(st.integers(0, WORDS - 1), max_size=60), max_size=6))
def test_the_ids_are_those_of_the_definition(seed: int, rows: list[list[int]]) -> None:
    merges = _random_merges(random.Random(seed), 12)
    assert _merged(SuperwordMerger(merges, WORDS), rows) == [_by_the_book(row, merges) for row in rows]


def test_ties_are_broken_from_the_left() -> None:
    merger = SuperwordMerger([Merge(0, 0, 1)], 1)
    assert _merged(merger, [[0, 0, 0], [0] * 61]) == [[1, 0], [1] * 30 + [0]]


def test_two_merges_may_make_one_superword() -> None:
    merges = [Merge(0, 1, 3), Merge(1, 2, 4), Merge(3, 2, 5), Merge(0, 4, 5)]
    merger = SuperwordMerger(merges, 3)
    assert _merged(merger, [[0, 1, 2], [1, 2], [2, 0, 1]]) == [[5], [4], [2, 3]]


def test_nothing_is_merged_across_texts() -> None:
    assert _merged(SuperwordMerger([Merge(0, 1, 2)], 2), [[0], [1], [], [0, 1]]) == [[0], [1], [], [2]]


def test_threads_change_nothing() -> None:
    chance = random.Random(1)
    merges = _random_merges(chance, 20)
    rows = [[chance.randrange(WORDS) for _ in range(chance.randrange(3_000))] for _ in range(700)]
    assert sum(map(len, rows)) > 1 << 19
    merger = SuperwordMerger(merges, WORDS)
    assert _merged(merger, rows, threads=3) == _merged(merger, rows)


@pytest.mark.parametrize("row", [[0], [0, 1], [0, 1, 2, 3, 4, 5]])
def test_a_chain_that_never_ends_takes_linear_time(row: list[int]) -> None:
    """Half a million words that all may join, as in 1 MB of text of one letter and a space."""
    merges = [Merge(left, right, WORDS + 6 * left + right) for left in range(6) for right in range(6)]
    merges += [Merge(merge.merged, merge.merged, 50 + merge.merged) for merge in merges[:20]]
    merger = SuperwordMerger(merges, WORDS)
    _merged(merger, [[0, 1]])
    seconds = []
    for count in (250_000, 500_000):
        ids, offsets = np.resize(np.array(row, np.uint32), count), np.array([0, count])
        best = []
        for _ in range(3):
            started = time.process_time()
            merger.merge(ids, offsets)
            best.append(time.process_time() - started)
        seconds.append(min(best))
    assert seconds[1] < 4 * seconds[0]
