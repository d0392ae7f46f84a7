"""Equal keys become clusters of documents, and of each cluster one document stays.

Rows are numbered over all arrays of keys, one after another. `edges` looks at one part of the key space at a time, so only the keys
of that part are in memory, and pairs each row with the next one of the same key; `components` joins the pairs of all bands and parts
to clusters, and needs memory for every row. The result depends neither on the number of parts nor on the order of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

EDGE_BYTES_PER_ROW = 40
"""Working memory of `edges` per row in its part at most: key, row and order 8 bytes each, and a pair of rows 16."""

_SLACK = 1.1
"""Room for parts that get more keys than their share; the standard deviation of 10,000 keys is 1 %."""


def parts_needed(rows: int, memory_bytes: int) -> int:
    """Parts of the key space such that `edges` needs at most memory_bytes: rows * EDGE_BYTES_PER_ROW * 1.1 / memory_bytes, rounded up.

    A key that more rows share than fit into a part cannot be split: its part then needs EDGE_BYTES_PER_ROW for each of these.
    """
    return max(1, -(-int(rows * EDGE_BYTES_PER_ROW * _SLACK) // memory_bytes))


def edges(keys: Sequence[NDArray[np.uint64]], part: int, parts: int) -> NDArray[np.int64]:
    """(2, m): pairs of rows with equal keys, each row with the next one of its key, of the keys that fall in `part` of `parts`.

    The arrays of keys may be memory-mapped; each is read from its beginning to its end.
    """
    pieces, first_row = [(np.empty(0, np.uint64), np.empty(0, np.int64))], 0
    for array in keys:
        pieces.append(_select(array, part, parts, first_row))
        first_row += len(array)
    own_keys, rows = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    del pieces
    # Stable, so that rows of one key stay in their order on every machine.
    order = np.argsort(own_keys, kind="stable")
    pairs = np.empty((2, _count_equal_neighbours(own_keys, order)), np.int64)
    _pair_equal_neighbours(own_keys, order, rows, pairs)
    return pairs


def components(rows: int, edges: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The smallest row of each row's component, in 8 bytes of memory per row beside the pairs of one array."""
    parents = np.arange(rows, dtype=np.int64)
    for pairs in edges:
        if pairs.size and not 0 <= pairs.min() <= pairs.max() < rows:
            raise ValueError(f"pairs name rows from {pairs.min()} to {pairs.max()}, but there are {rows}")
        _join(parents, pairs)
    _flatten(parents)
    return parents


def survivors(first: NDArray[np.int64], characters: NDArray[np.int64], keep: Literal["first", "longest"]) -> NDArray[np.bool_]:
    """Which row of each component stays: its first, or its longest (of several, the first). `first` is what `components` gives."""
    chosen = first if keep == "first" else _longest(first, characters)
    stays = np.zeros(first.size, bool)
    stays[chosen] = True
    return stays


@njit(nogil=True, cache=True)
def _part_of(key: np.uint64, parts: int) -> int:
    """The high half of a key as a share of the parts (D. Lemire, 2019: multiply and shift)."""
    return int((key >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32))


@njit(nogil=True, cache=True)
def _select(keys: NDArray[np.uint64], part: int, parts: int, first_row: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The keys of a part and the rows they are in, of which the first is number first_row."""
    count = 0
    for row in range(keys.size):
        count += _part_of(keys[row], parts) == part
    selected, rows = np.empty(count, np.uint64), np.empty(count, np.int64)
    filled = 0
    for row in range(keys.size):
        if _part_of(keys[row], parts) == part:
            selected[filled] = keys[row]
            rows[filled] = first_row + row
            filled += 1
    return selected, rows


@njit(nogil=True, cache=True)
def _count_equal_neighbours(keys: NDArray[np.uint64], order: NDArray[np.int64]) -> int:
    count = 0
    for index in range(1, order.size):
        count += keys[order[index]] == keys[order[index - 1]]
    return count


@njit(nogil=True, cache=True)
def _pair_equal_neighbours(keys: NDArray[np.uint64], order: NDArray[np.int64], rows: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    count = 0
    for index in range(1, order.size):
        if keys[order[index]] == keys[order[index - 1]]:
            pairs[0, count] = rows[order[index - 1]]
            pairs[1, count] = rows[order[index]]
            count += 1


@njit(nogil=True, cache=True)
def _root(parents: NDArray[np.int64], row: int) -> int:
    """The root of a tree, whose path is halved on the way (Tarjan and van Leeuwen, 1984)."""
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@njit(nogil=True, cache=True)
def _join(parents: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    for index in range(pairs.shape[1]):
        one, two = _root(parents, pairs[0, index]), _root(parents, pairs[1, index])
        if one < two:
            parents[two] = one
        else:
            parents[one] = two


@njit(nogil=True, cache=True)
def _flatten(parents: NDArray[np.int64]) -> None:
    for row in range(parents.size):
        # A parent is never a larger row than its child, so it is flat already.
        parents[row] = parents[parents[row]]


@njit(nogil=True, cache=True)
def _longest(first: NDArray[np.int64], characters: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the longest of its component."""
    longest = np.arange(first.size)
    for row in range(first.size):
        root = first[row]
        if characters[row] > characters[longest[root]]:
            longest[root] = row
    return longest[first]
