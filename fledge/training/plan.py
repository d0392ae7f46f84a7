"""Which rows a step trains on, as a pure function: `plan.rows(step)`. No loader state, so resuming needs a step number and no more.

    step -> phase -> slots [step in phase * batch_rows, ...) -> (source, ordinal) by the mixture -> (epoch, position) -> row

The mixture is settled per block of 4,096 slots. How many slots a source has in all blocks before a given one is its share,
rounded, so rounding never adds up; within a block, slot j of a source with n slots stands at (j + u) / n, u a hash in [0, 1).

Each source walks through its own epochs, phase after phase: a phase goes on where the one before has ended. What is permuted, by a
Feistel network keyed by (seed, source, epoch), are chunks as long as the least common multiple of the phases' rows, each exactly once
per epoch, without a table. Rows of a chunk are neighbours, so where chunks hold several the rows that a phase takes from an epoch are
permuted once more. A row of another length starts at a multiple of it: at a border of phases less than one row per source is skipped,
and nothing comes again before the epoch is over. A run without phases is one phase, whose chunks are its rows.

After levanter's block-deterministic mixtures and Feistel permutations; cycle walking is Black and Rogaway's (2002).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import islice
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.training.permutation import hash64, permute_by_epoch

BLOCK_SLOTS = 4_096
"""Slots in which every source has its share, to a slot. At 64, rounding would turn a share of 10 % into 9.4 %."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch."""

    source: int
    index: int
    """Row number within the source, counted in rows of the phase's length."""
    epoch: int
    """How often the source had been read through before."""


@dataclass(frozen=True)
class Source:
    """What a plan knows of a source of rows."""

    name: str
    tokens: int
    content: str
    """A digest of what the rows hold: a plan over other data is another plan."""
    row_tokens: int | None = None
    """Length of its rows where they were packed as rows; None: a stream that can be read in rows of any length."""

    def rows(self, row_tokens: int) -> int:
        """Rows of one epoch; the last of a stream may be filled up."""
        return -(-self.tokens // row_tokens)


@dataclass(frozen=True)
class Phase:
    """Steps with one shape of batch and one mixture."""

    steps: int
    batch_rows: int
    row_tokens: int
    weights: tuple[Fraction, ...]
    """Share of tokens per source, up to a common factor; rows of a phase are equally long, so it is that of rows too."""

    @property
    def batch_tokens(self) -> int:
        """Positions per step, padding included."""
        return self.batch_rows * self.row_tokens

    @property
    def slots(self) -> int:
        """Rows of the whole phase."""
        return self.steps * self.batch_rows


@dataclass(frozen=True)
class Start:
    """What a checkpoint had trained before, where a run takes over its step."""

    step: int = 0
    tokens: int = 0


FROM_THE_BEGINNING = Start()


@dataclass(frozen=True)
class SourceUse:
    """What a run has taken from one source."""

    tokens: int
    """Positions, padding included."""
    share: float
    """Of the tokens of all sources."""
    epochs: float
    """How often it was read through: rows over the rows of one epoch."""


@dataclass(frozen=True)
class Plan:
    """The order of all rows of a run, for every number of processes, and the one home of how long it is."""

    sources: tuple[Source, ...]
    phases: tuple[Phase, ...]
    seed: int
    start: Start = FROM_THE_BEGINNING

    def __post_init__(self) -> None:
        assert self.sources, "a plan needs a source"
        assert self.phases, "a plan needs a phase"
        assert all(source.tokens > 0 for source in self.sources)
        assert all(len(phase.weights) == len(self.sources) and sum(phase.weights) > 0 and phase.steps > 0 for phase in self.phases)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps at the end of the run, those before its start included."""
        return self.start.step + sum(phase.steps for phase in self.phases)

    @cached_property
    def longest_row_tokens(self) -> int:
        return max(phase.row_tokens for phase in self.phases)

    @cached_property
    def chunk_tokens(self) -> int:
        """What is permuted as one piece, so that rows of every length fit into it."""
        return lcm(*(phase.row_tokens for phase in self.phases))

    def phase(self, step: int) -> Phase:
        """The phase of the step after `step` steps."""
        return self.phases[self.phase_number(step)]

    def phase_number(self, step: int) -> int:
        """Its place among the phases, counted from 0."""
        return self._place(step)[0]

    def rows(self, step: int) -> list[Row]:
        """The rows of the batch after `step` steps, in order; every process sees the same list and takes its slice of it."""
        number, done = self._place(step)
        batch_rows = self.phases[number].batch_rows
        rows: list[Row] = []
        while len(rows) < batch_rows:
            block, offset = divmod(done * batch_rows + len(rows), BLOCK_SLOTS)
            rows += islice(_block_rows(self, number, block), offset, offset + batch_rows - len(rows))
        return rows

    def visits(self, source: int, rows: Callable[[int], Numbers]) -> Iterator[tuple[int, Row]]:
        """(steps before it, row) of each time one of some rows of a source is read, ascending; `rows(row_tokens)`: their numbers."""
        before = self.start.step
        for number, phase in enumerate(self.phases):
            wanted = rows(phase.row_tokens)
            for block in range(-(-phase.slots // BLOCK_SLOTS)):
                sources, (indices, epochs) = _block_sources(self, number, block), _block_indices(self, number, block)
                for slot in np.flatnonzero((sources == source) & np.isin(indices, wanted)).tolist():
                    step = before + (block * BLOCK_SLOTS + slot) // phase.batch_rows
                    yield step, Row(source, int(indices[slot]), int(epochs[slot]))
            before += phase.steps

    def tokens(self, step: int) -> int:
        """Positions trained on in the first `step` steps, padding and those before the start included."""
        return self.start.tokens + sum(done * phase.batch_tokens for phase, done in self.done(step))

    def epochs(self, step: int) -> float:
        """How many times the data has been read after `step` steps; with a mixture, counted over all sources together."""
        return float(self._epochs(step))

    def ends_epochs(self, step: int, every: float | None) -> bool:
        """Whether the `step`-th step is the one with which so many more epochs, or parts of one, are complete; never for None."""
        if every is None:
            return False
        exact = Fraction(str(every))  # 0.1 as it is written: three of it are 0.3
        return self._epochs(step) // exact > self._epochs(step - 1) // exact

    def use(self, step: int) -> dict[str, SourceUse]:
        """What every source, by name, has given after `step` steps; exact, of this plan alone."""
        tokens, epochs = [0] * len(self.sources), [0.0] * len(self.sources)
        for number, (phase, done) in enumerate(self.done(step)):
            for place, rows in enumerate(_rows_by_source(self, number, done * phase.batch_rows)):
                tokens[place] += rows * phase.row_tokens
                epochs[place] += rows / self.sources[place].rows(phase.row_tokens)
        whole = max(1, sum(tokens))
        return {source.name: SourceUse(tokens[place], tokens[place] / whole, epochs[place]) for place, source in enumerate(self.sources)}

    def identity(self) -> dict[str, Any]:
        """Everything that decides the order, as plain JSON."""
        names = [source.name for source in self.sources]
        return {
            "seed": self.seed,
            "start": {"step": self.start.step, "tokens": self.start.tokens},
            "sources": {source.name: {"tokens": source.tokens, "content": source.content} for source in self.sources},
            "phases": [
                {
                    "steps": phase.steps,
                    "batch_rows": phase.batch_rows,
                    "row_tokens": phase.row_tokens,
                    "weights": dict(zip(names, map(str, phase.weights), strict=True)),
                }
                for phase in self.phases
            ],
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def done(self, step: int) -> Iterator[tuple[Phase, int]]:
        """Every phase, and how many of its steps are among the first `step` of the run."""
        left = max(0, step - self.start.step)
        for phase in self.phases:
            done = min(left, phase.steps)
            yield phase, done
            left -= done

    def _epochs(self, step: int) -> Fraction:
        return sum(
            (
                Fraction(done * phase.batch_rows, sum(source.rows(phase.row_tokens) for source in self.sources))
                for phase, done in self.done(step)
            ),
            Fraction(0),
        )

    def _place(self, step: int) -> tuple[int, int]:
        """The number of the phase of the step after `step` steps, and how many of the phase's steps come before it."""
        assert self.start.step <= step < self.steps, f"step {step} is not between {self.start.step} and {self.steps}"
        number, done = 0, step - self.start.step
        while done >= self.phases[number].steps:
            number, done = number + 1, done - self.phases[number].steps
        return number, done


def read_plan(identity: Mapping[str, Any], sources: Sequence[Source]) -> Plan | None:
    """The plan that `identity` tells of, over these sources; None if they are not its sources."""
    known = {source.name: {"tokens": source.tokens, "content": source.content} for source in sources}
    if known != identity["sources"]:
        return None
    phases = tuple(
        Phase(phase["steps"], phase["batch_rows"], phase["row_tokens"], tuple(Fraction(phase["weights"][name]) for name in known))
        for phase in identity["phases"]
    )
    return Plan(tuple(sources), phases, identity["seed"], Start(**identity["start"]))


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


@dataclass(frozen=True)
class _Reach:
    """What a phase takes from a source: rows of its length, from a place in the source's epochs on."""

    epoch: int
    first_row: int
    """In the order in which the epoch is read."""
    rows: int


@lru_cache(maxsize=4)
def _reaches(plan: Plan) -> tuple[tuple[_Reach, ...], ...]:
    """By phase and source."""
    ends = [(0, 0)] * len(plan.sources)
    reaches = []
    for number, phase in enumerate(plan.phases):
        of_phase = []
        for place, rows in enumerate(_rows_by_source(plan, number, phase.slots)):
            epoch, tokens = ends[place]
            epoch_rows, first_row = plan.sources[place].rows(phase.row_tokens), -(-tokens // phase.row_tokens)
            if first_row >= epoch_rows:
                epoch, first_row = epoch + 1, 0
            of_phase.append(_Reach(epoch, first_row, rows))
            if rows:
                passed, row = divmod(first_row + rows, epoch_rows)
                ends[place] = (epoch + passed, row * phase.row_tokens)
        reaches.append(tuple(of_phase))
    return tuple(reaches)


def _rows_by_source(plan: Plan, number: int, slots: int) -> list[int]:
    """How many of the first `slots` slots of a phase each source has."""
    block, offset = divmod(slots, BLOCK_SLOTS)
    before = counts_before(block * BLOCK_SLOTS, plan.phases[number].weights)
    if not offset:
        return before
    inside = np.bincount(_block_sources(plan, number, block)[:offset], minlength=len(before)).tolist()
    return [first + more for first, more in zip(before, inside, strict=True)]


@lru_cache(maxsize=4)
def _block_sources(plan: Plan, number: int, block: int) -> Numbers:
    """(BLOCK_SLOTS,) the source of each slot of a block of a phase; the last block ends with the phase."""
    weights = plan.phases[number].weights
    before, after = (counts_before(end * BLOCK_SLOTS, weights) for end in (block, block + 1))
    places, sources = [], []
    for place, (first, end) in enumerate(zip(before, after, strict=True)):
        shift = hash64(plan.seed, "shift", plan.sources[place].name, block, *_of_later_phase(number)) / 2**64
        places.append((np.arange(end - first) + shift) / max(1, end - first))
        sources.append(np.full(end - first, place))
    in_block = np.concatenate(sources)
    order = np.lexsort((in_block, np.concatenate(places)))
    return in_block[order][: plan.phases[number].slots - block * BLOCK_SLOTS]


@lru_cache(maxsize=4)
def _block_rows(plan: Plan, number: int, block: int) -> tuple[Row, ...]:
    """The rows of a block of a phase."""
    columns = (_block_sources(plan, number, block), *_block_indices(plan, number, block))
    return tuple(map(Row, *(column.tolist() for column in columns)))


def _block_indices(plan: Plan, number: int, block: int) -> tuple[Numbers, Numbers]:
    """(N,) row numbers within their sources and (N,) epochs of a block of a phase."""
    sources = _block_sources(plan, number, block)
    indices, epochs = np.empty_like(sources), np.empty_like(sources)
    for place, first in enumerate(counts_before(block * BLOCK_SLOTS, plan.phases[number].weights)):
        slots = np.flatnonzero(sources == place)
        indices[slots], epochs[slots] = _indices(plan, number, place, first + np.arange(len(slots)))
    return indices, epochs


def _indices(plan: Plan, number: int, place: int, ordinals: Numbers) -> tuple[Numbers, Numbers]:
    """(N,) ordinals of a source in a phase -> (N,) row numbers and (N,) epochs."""
    source, row_tokens, reach = plan.sources[place], plan.phases[number].row_tokens, _reaches(plan)[number][place]
    passed, positions = np.divmod(reach.first_row + ordinals, source.rows(row_tokens))
    epochs = reach.epoch + passed
    chunk_rows = plan.chunk_tokens // row_tokens
    if chunk_rows > 1:
        positions = _shuffled_in_phase(plan, number, place, passed, positions)
    chunks, places_in_chunk = np.divmod(positions, chunk_rows)
    # With rows of several lengths, a last chunk that is not full has fewer of them, so it comes last in every epoch.
    one_length = all(phase.row_tokens == row_tokens for phase in plan.phases)
    permuted = source.rows(row_tokens) if one_length else source.tokens // plan.chunk_tokens
    inside = np.flatnonzero(chunks < permuted)
    chunks[inside] = permute_by_epoch(chunks[inside], permuted, epochs[inside], hash64(plan.seed, "order", source.name))
    return chunks * chunk_rows + places_in_chunk, epochs


def _shuffled_in_phase(plan: Plan, number: int, place: int, passed: Numbers, positions: Numbers) -> Numbers:
    """(N,) how many epochs end in the phase before, (N,) positions in an epoch -> (N,) positions among those that the phase takes of it."""
    source, reach = plan.sources[place], _reaches(plan)[number][place]
    epoch_rows, key = source.rows(plan.phases[number].row_tokens), hash64(plan.seed, "phase", number, source.name)
    firsts = np.where(passed == 0, reach.first_row, 0)
    sizes = np.minimum(epoch_rows, reach.first_row + reach.rows - passed * epoch_rows) - firsts
    shuffled = positions.copy()
    for size in np.unique(sizes).tolist():
        mine = np.flatnonzero(sizes == size)
        shuffled[mine] = firsts[mine] + permute_by_epoch(positions[mine] - firsts[mine], size, reach.epoch + passed[mine], key)
    return shuffled


def _of_later_phase(number: int) -> tuple[int, ...]:
    """What a hash of a phase depends on besides; a first phase has the order of a run without phases."""
    return (number,) if number else ()
