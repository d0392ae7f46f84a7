"""Which rows a step trains on, as a pure function: `plan.rows(step)`. No loader state, so resuming needs a step number and no more.

    step -> slots [step * batch_rows, ...) -> (source, ordinal) by the mixture -> (epoch, position) -> row, by a permutation

The mixture is settled per block of 4,096 slots. How many slots a source has in all blocks before a given one is its share,
rounded, so rounding never adds up; within a block, slot j of a source with n slots stands at (j + u) / n, u a hash in [0, 1).
Each source walks through its own epochs: ordinal k is position k mod rows of epoch k div rows, and a Feistel network keyed by
(seed, source, epoch) turns positions into rows, each exactly once per epoch, without a table. After levanter's block-deterministic
mixtures and Feistel permutations; cycle walking is Black and Rogaway's (2002).

A plan knows rows and not what is in them. A run with several sequence lengths would be several plans, each with its own row
length, whose sources count the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.core.errors import ConfigError

BLOCK_SLOTS = 4_096
"""Slots in which every source has its share, to a slot. At 64, rounding would turn a share of 10 % into 9.4 %."""

_FEISTEL_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch."""

    source: int
    index: int
    """Row number within the source."""
    epoch: int
    """How often the source had been read through before."""


@dataclass(frozen=True)
class Source:
    """What a plan knows of a source of rows."""

    name: str
    rows: int
    content: str
    """A digest of what the rows hold: a plan over other data is another plan."""


@dataclass(frozen=True)
class Plan:
    """The order of all rows of a run, for every number of processes."""

    sources: tuple[Source, ...]
    weights: tuple[Fraction, ...]
    """Share of rows per source, up to a common factor."""
    batch_rows: int
    row_tokens: int
    seed: int

    def __post_init__(self) -> None:
        assert self.sources, "a plan needs a source"
        assert len(self.sources) == len(self.weights)
        assert sum(self.weights) > 0
        assert all(source.rows > 0 for source in self.sources)

    def rows(self, step: int) -> list[Row]:
        """The rows of the batch after `step` steps, in order; every process sees the same list and takes its slice of it."""
        first = step * self.batch_rows
        rows: list[Row] = []
        while len(rows) < self.batch_rows:
            block, offset = divmod(first + len(rows), BLOCK_SLOTS)
            rows += islice(_block_rows(self, block), offset, offset + self.batch_rows - len(rows))
        return rows

    def epochs(self, step: int) -> float:
        """How many times the data has been read after `step` steps; with a mixture, counted over all sources together."""
        return step * self.batch_rows / sum(source.rows for source in self.sources)

    @property
    def batch_tokens(self) -> int:
        """Positions per step, padding included."""
        return self.batch_rows * self.row_tokens

    def identity(self) -> dict[str, Any]:
        """Everything that decides the order, as plain JSON."""
        sources = {
            source.name: {"rows": source.rows, "content": source.content, "weight": str(weight)}
            for source, weight in zip(self.sources, self.weights, strict=True)
        }
        return {"seed": self.seed, "batch_rows": self.batch_rows, "row_tokens": self.row_tokens, "sources": sources}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def make_plan(sources: Sequence[Source], mixture: Mapping[str, float] | None, batch_rows: int, row_tokens: int, seed: int) -> Plan:
    """The plan of a run; without a mixture every source has the share that its rows are of all rows.

    Raises ConfigError if the mixture names a source that is not there or leaves one out.
    """
    names = [source.name for source in sources]
    if mixture is None:
        weights = tuple(Fraction(source.rows) for source in sources)
    elif set(mixture) == set(names):
        weights = tuple(Fraction(mixture[name]) for name in names)
    else:
        odd = sorted(set(mixture) ^ set(names))[0]
        problem = "names no source" if odd in mixture else "has no weight for the source"
        raise ConfigError(f"mixture {problem} {odd!r}", f"give each of {', '.join(names)} a weight; 0 leaves a source out")
    return Plan(tuple(sources), weights, batch_rows, row_tokens, seed)


def slice_for_rank(rows: Sequence[Row], rank: int, world_size: int) -> Sequence[Row]:
    """A process's contiguous share; shares are equal but for the last ones, which may be short or empty."""
    share = rows_per_rank(len(rows), world_size)
    return rows[rank * share : (rank + 1) * share]


def rows_per_rank(rows: int, world_size: int) -> int:
    """Rows that every process computes, missing ones as rows without targets, so that all do the same number of steps."""
    return -(-rows // world_size)


def counts_before(slots: int, weights: Sequence[Fraction]) -> list[int]:
    """How many of the first `slots` slots each source has; never falls as `slots` grows, and sums to `slots`.

    Each source in turn takes its share of what the ones before left over, rounded.
    """
    counts, rest, rest_weight = [], slots, sum(weights, Fraction(0))
    for weight in weights:
        count = int(rest * weight / rest_weight + Fraction(1, 2)) if rest_weight else 0
        counts.append(count)
        rest, rest_weight = rest - count, rest_weight - weight
    return counts


def permute(positions: Words, size: int, keys: Words) -> Words:
    """(N,) positions in [0, size) and a key for each -> (N,) images; for each key a bijection of [0, size).

    A Feistel network permutes [0, 4^b), the smallest such range that holds `size`; an image beyond `size` goes through it again.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    images, outside = positions.copy(), np.arange(len(positions))
    while outside.size:
        images[outside] = _feistel(images[outside], half_bits, keys[outside])
        outside = outside[images[outside] >= size]
    return images


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in an order that only the seed decides."""
    keys = np.full(count, _hash(seed, "shuffled"), dtype=np.uint64)
    order: list[int] = permute(np.arange(count, dtype=np.uint64), count, keys).tolist()
    return order


@lru_cache(maxsize=4)
def _block_rows(plan: Plan, block: int) -> tuple[Row, ...]:
    """The rows of slots [block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)."""
    before = counts_before(block * BLOCK_SLOTS, plan.weights)
    after = counts_before((block + 1) * BLOCK_SLOTS, plan.weights)
    places, sources, ordinals = [], [], []
    for number, (first, end) in enumerate(zip(before, after, strict=True)):
        shift = _hash(plan.seed, "shift", plan.sources[number].name, block) / 2**64
        places.append((np.arange(end - first) + shift) / max(1, end - first))
        sources.append(np.full(end - first, number))
        ordinals.append(np.arange(first, end))
    order = np.lexsort((np.concatenate(sources), np.concatenate(places)))
    indices, epochs = zip(*(_indices(plan, number, of_source) for number, of_source in enumerate(ordinals)), strict=True)
    columns = (np.concatenate(sources)[order], np.concatenate(indices)[order], np.concatenate(epochs)[order])
    return tuple(map(Row, *(column.tolist() for column in columns)))


def _indices(plan: Plan, number: int, ordinals: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N,) ordinals of a source -> (N,) row numbers and (N,) epochs."""
    source = plan.sources[number]
    epochs, positions = np.divmod(ordinals.astype(np.uint64), np.uint64(source.rows))
    keys = _mix(epochs * np.uint64(_GOLDEN) + np.uint64(_hash(plan.seed, "order", source.name)))
    return permute(positions, source.rows, keys), epochs


def _feistel(values: Words, half_bits: np.uint64, keys: Words) -> Words:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for turn in range(1, _FEISTEL_ROUNDS + 1):
        round_keys = keys + np.uint64(turn * _GOLDEN % 2**64)
        left, right = right, left ^ (_mix(right ^ _mix(round_keys)) & mask)
    return (left << half_bits) | right


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit given."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _hash(*parts: int | str) -> int:
    """64 bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")
