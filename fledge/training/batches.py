"""Rows of token shards become tensors: plan -> rows -> [batches] -> objective.

Continuous documents are read as a ring: row r at length T holds tokens [rT, rT + T), its targets lie one token further, and the
last token's target is the first token, which is the end-of-text that closes the last document. So every token is a target once
per epoch at any T. Rows of conversations and preferences are read as they were packed, their targets shifted within the row.
What is no target is IGNORE with weight 0; a row that is missing in a micro-batch is a whole row of these, so shapes never change.

No byte of a shard becomes a batch unchecked: a row is read, not mapped, and each block it touches is compared with its checksum the
first time a process reads from it (tokens/blocks.py). A damaged block, or a shard that was cut short meanwhile, ends the run before
the step that would use it is applied, and the error names the step.

Shapes: B rows, T tokens per row, P preference pairs.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.core.errors import ConfigError, DataError
from fledge.corpus.document import Content, Split
from fledge.model.head import IGNORE
from fledge.tokens.blocks import BLOCK_BYTES
from fledge.tokens.shards import TokenSet, TokenShard, join_token_sets, open_token_set
from fledge.training.ledger import described, parts_of_step
from fledge.training.permutation import shuffled
from fledge.training.plan import Phase, Plan, Row, Source, rows_per_rank

CANONICAL_MICRO_BATCHES = 8
"""Of a batch, at least, where nothing may depend on the number of processes: a power of two, which that number must divide."""

Scores = Mapping[str, NDArray[np.float32]]
"""By source: (pairs, 2) log-probabilities in nats of the chosen and the rejected answers under the reference model."""


@dataclass(frozen=True)
class Pairs:
    """Which targets of a batch belong to which answer."""

    answers: Tensor
    """(B, T) int64: 1 + 2p where the target is in pair p's chosen answer, 2 + 2p in its rejected one, 0 in none."""
    count: int
    """P."""
    reference: Tensor | None
    """(P, 2) float32 log-probabilities of chosen and rejected under the reference model; None while they are being made."""


@dataclass(frozen=True)
class Batch:
    """Rows of token ids and what is to be learned from them."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64: the next token, or IGNORE."""
    token_weight: Tensor
    """(B, T) float32: 1 where there is a target, else 0."""
    documents: Tensor | None
    """(B, T) int32: where in the row the token's document starts; None: each row counts as one document."""
    pairs: Pairs | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to a GPU runs beside the computation."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        pairs = self.pairs
        if pairs is not None:
            pairs = Pairs(change(pairs.answers), pairs.count, None if pairs.reference is None else change(pairs.reference))
        documents = None if self.documents is None else change(self.documents)
        return Batch(change(self.tokens), change(self.targets), change(self.token_weight), documents, pairs)


class RowReader:
    """The rows of one split of some token sets, by number."""

    def __init__(
        self,
        shards: tuple[TokenShard, ...],
        content: Content,
        row_tokens: int,
        isolate_documents: bool,
        tokenizer_sha256: str,
        scores: Scores | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self.content = content
        self.row_tokens = row_tokens
        # An answer that saw the pair's other one would be judged by another text than the one it is generated after.
        self.isolate_documents = isolate_documents or content == "preferences"
        self.scores = scores
        # Only a stream of documents has no row length of its own, and no mask of targets.
        self.sources = tuple(
            Source(shard.source, len(shard.tokens), _digest(shard, tokenizer_sha256), None if shard.supervised is None else row_tokens)
            for shard in shards
        )
        for shard in shards:
            if scores is not None and scores.get(shard.source, np.empty((0, 2))).shape != (len(shard.starts) // 2, 2):
                raise DataError(
                    f"the reference scores do not fit the {len(shard.starts) // 2:,} pairs of the source {shard.source!r}",
                    "score these pairs anew: fledge score RECIPE --force",
                )

    def with_row_tokens(self, row_tokens: int) -> RowReader:
        """The same shards in rows of another length, which packed rows do not have."""
        assert all(source.row_tokens in (None, row_tokens) for source in self.sources)
        reader = copy.copy(self)
        reader.row_tokens = row_tokens
        return reader

    def all_rows(self) -> list[Row]:
        """Every row once, source by source."""
        return [Row(number, index, 0) for number, source in enumerate(self.sources) for index in range(source.rows(self.row_tokens))]

    def batch(self, rows: Sequence[Row], batch_rows: int) -> Batch:
        """The given rows, then rows without targets up to `batch_rows`."""
        assert len(rows) <= batch_rows
        shape = (batch_rows, self.row_tokens)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        documents = np.zeros(shape, np.int32)
        starts = np.array([row.index * self.row_tokens for row in rows], dtype=np.int64)
        for line, row in enumerate(rows):
            self._read_row(self.shards[row.source], int(starts[line]), tokens[line], targets[line])
        if self.isolate_documents:
            sources = np.array([row.source for row in rows])
            for source in np.unique(sources):
                lines = np.flatnonzero(sources == source)
                documents[lines] = _document_starts(self.shards[source].starts, starts[lines], self.row_tokens)
        pairs = self._pairs(rows, targets) if self.content == "preferences" else None
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy((targets != IGNORE).astype(np.float32)),
            torch.from_numpy(documents) if self.isolate_documents else None,
            pairs,
        )

    def _read_row(self, shard: TokenShard, start: int, tokens: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        if shard.supervised is None:
            # One token more is the last target, and behind the last token comes the first.
            ids = shard.tokens[start : start + self.row_tokens + 1]
            tokens[: len(ids)] = ids[: self.row_tokens]
            targets[: len(ids) - 1] = ids[1:]
            if len(ids) <= self.row_tokens:
                targets[len(ids) - 1] = shard.tokens[0]
        else:
            ids = shard.tokens[start : start + self.row_tokens]
            tokens[:] = ids
            supervised = shard.supervised[start + 1 : start + self.row_tokens] == 1
            targets[: self.row_tokens - 1][supervised] = ids[1:][supervised]

    def _pairs(self, rows: Sequence[Row], targets: NDArray[np.int64]) -> Pairs:
        answers, count = np.zeros(targets.shape, np.int64), 0
        references = [np.empty((0, 2), np.float32)]
        for line, row in enumerate(rows):
            shard, start = self.shards[row.source], row.index * self.row_tokens
            first, end = np.searchsorted(shard.starts, [start, start + self.row_tokens])
            assert first % 2 == 0 and end % 2 == 0, "a preference pair lies in one row"
            segments = np.searchsorted(shard.starts[first:end], start + np.arange(self.row_tokens), side="right")
            answers[line] = np.where(targets[line] == IGNORE, 0, 2 * count + segments)
            count += (end - first) // 2
            if self.scores is not None:
                references.append(self.scores[shard.source][first // 2 : end // 2])
        reference = None if self.scores is None else torch.from_numpy(np.concatenate(references))
        return Pairs(torch.from_numpy(answers), int(count), reference)


class Rows(Protocol):
    """Makes batches of rows: a `RowReader`, or tokens that are on the device already."""

    row_tokens: int
    shards: tuple[TokenShard, ...]

    def with_row_tokens(self, row_tokens: int) -> Rows:
        """The same tokens in rows of another length."""
        ...

    def batch(self, rows: Sequence[Row], batch_rows: int) -> Batch:
        """The given rows, then rows without targets up to `batch_rows`."""
        ...


class BatchLoader:
    """What one process computes in a step: its share of the plan's rows, in micro-batches of one shape per phase."""

    def __init__(
        self,
        plan: Plan,
        reader: Rows,
        micro_batch_rows: int | None,
        rank: int,
        world_size: int,
        ahead: bool,
        elastic: bool = False,
    ) -> None:
        """`micro_batch_rows` counts the longest rows; of shorter ones as many more are read at once as have as many tokens.

        `elastic`: cut into micro-batches that do not depend on the number of processes.
        """
        self._elastic = elastic
        self.plan = plan
        self.reader = reader
        self.readers = {phase.row_tokens: reader.with_row_tokens(phase.row_tokens) for phase in plan.phases}
        self.rank = rank
        self.world_size = world_size
        self._asked_rows = micro_batch_rows
        self.micro_batch_rows = max(self.rows_at_once(phase) for phase in plan.phases if phase.row_tokens == plan.longest_row_tokens)
        self._executor = ThreadPoolExecutor(max_workers=1) if ahead else None
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def rows_at_once(self, phase: Phase) -> int:
        """Rows of a micro-batch of a phase."""
        asked = self._asked_rows and self._asked_rows * self.plan.longest_row_tokens // phase.row_tokens
        return rows_at_once(phase.batch_rows, asked, self.world_size, self._elastic)

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of the step after `step` steps; with `ahead` pinned, and the next step's are read meanwhile."""
        if self._executor is None:
            return self._read(step)
        ready = self._next[1].result() if self._next is not None and self._next[0] == step else self._read(step)
        self._next = (step + 1, self._executor.submit(self._read, step + 1)) if step + 1 < self.plan.steps else None
        return [batch.pin() for batch in ready]

    def described(self, step: int) -> str:
        """The documents of the step after `step` steps, of all processes."""
        return described(parts_of_step(self.plan, self.reader.shards, step))

    def _read(self, step: int) -> list[Batch]:
        phase = self.plan.phase(step)
        reader, at_once = self.readers[phase.row_tokens], self.rows_at_once(phase)
        share = rows_per_rank(phase.batch_rows, self.world_size)
        if self._elastic:
            share = at_once * max(1, canonical_micro_batches(phase.batch_rows, at_once) // self.world_size)
        rows = self.plan.rows(step)[self.rank * share : (self.rank + 1) * share]
        starts = range(0, share, at_once)
        try:
            return [reader.batch(rows[start : start + at_once], at_once) for start in starts]
        except DataError as error:
            problem = f"step {step + 1:,} cannot be read and was not applied: {error.problem}"
            raise DataError(problem, f"{error.remedy}; training then continues from its last checkpoint") from error


def canonical_micro_batches(batch_rows: int, rows: int) -> int:
    """How many micro-batches of at most so many rows a batch is cut into, whoever computes them: a power of two."""
    needed = -(-batch_rows // rows)
    return max(CANONICAL_MICRO_BATCHES, 1 << (needed - 1).bit_length())


def rows_at_once(batch_rows: int, micro_batch_rows: int | None, world_size: int, elastic: bool = False) -> int:
    """Rows of a micro-batch: as many as asked for, at most a process's share of the batch; `elastic`: at most those of a canonical one."""
    if elastic:
        return -(-batch_rows // canonical_micro_batches(batch_rows, micro_batch_rows or batch_rows))
    share = rows_per_rank(batch_rows, world_size)
    return min(micro_batch_rows or share, share)


def open_rows(
    token_sets: Sequence[TokenSet],
    split: Split,
    sequence_length: int | None,
    isolate_documents: bool = True,
    scores: Scores | None = None,
) -> RowReader:
    """Join the same split of some token sets; `sequence_length` is for continuous documents, other rows have their own.

    Raises DataError if the sets do not go together or nothing in the training split is a target, ConfigError if the length of
    rows is missing or contradicts the sets.
    """
    token_set = join_token_sets(token_sets)
    row_tokens = _row_tokens(token_set, sequence_length)
    shards = token_set.shards(split)
    if split == "train" and not any(_has_target(shard) for shard in shards):
        raise DataError(
            f"{token_set.folder} has nothing to learn: no token of its training split is a target", "check the corpus it was packed from"
        )
    return RowReader(shards, token_set.content, row_tokens, isolate_documents, token_set.tokenizer_sha256, scores)


@dataclass(frozen=True)
class TokensInfo:
    """What `open_tokens` found."""

    vocabulary_size: int
    tokenizer_sha256: str
    sequence_length: int
    train_rows: int
    validation_rows: int


class TokenBatches:
    """The batches of one epoch, shuffled by the seed; can be iterated again and again."""

    def __init__(self, reader: RowReader, rows: Sequence[Row], batch_rows: int) -> None:
        self._reader, self._rows, self._batch_rows = reader, rows, batch_rows

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_rows):
            yield self._reader.batch(self._rows[start : start + self._batch_rows], self._batch_rows)


def open_tokens(
    folder: str | Path, batch_rows: int = 64, validation_fraction: float = 0.1, seed: int = 42, sequence_length: int = 256
) -> tuple[TokenBatches, TokenBatches, TokensInfo]:
    """Training batches, validation batches and figures of a token set, for a training loop of one's own.

    The rows of its training split are shuffled by `seed` and the last `validation_fraction` of them is held out; the last batch
    is filled with rows without targets. Raises DataError if the set is unsound or its only row cannot be divided.
    """
    token_set = open_token_set(Path(folder))
    reader = open_rows([token_set], "train", None if token_set.row_tokens else sequence_length)
    in_order = reader.all_rows()
    rows = [in_order[place] for place in shuffled(len(in_order), seed)]
    held_out = max(round(len(rows) * validation_fraction), 1 if validation_fraction > 0 else 0)
    if held_out >= len(rows):
        raise DataError(
            f"{folder} has {len(rows)} rows, too few to hold {validation_fraction} of them out", "pack more text or shorten the rows"
        )
    train, validation = rows[: len(rows) - held_out], rows[len(rows) - held_out :]
    info = TokensInfo(token_set.vocabulary_size, token_set.tokenizer_sha256, reader.row_tokens, len(train), len(validation))
    return TokenBatches(reader, train, batch_rows), TokenBatches(reader, validation, batch_rows), info


def _row_tokens(token_set: TokenSet, sequence_length: int | None) -> int:
    if token_set.row_tokens is None:
        if sequence_length is None:
            raise ConfigError("sequence_length is not set, and documents have no row length of their own", "set it, for example to 256")
        return sequence_length
    if sequence_length not in (None, token_set.row_tokens):
        raise ConfigError(
            f"sequence_length is {sequence_length}, but {token_set.folder} is packed in rows of {token_set.row_tokens} tokens",
            "leave sequence_length out; pack.sequence_length decides",
        )
    return token_set.row_tokens


def _document_starts(starts: NDArray[np.int64], row_starts: NDArray[np.int64], row_tokens: int) -> NDArray[np.int32]:
    """Document starts of a shard, ascending, and (N,) starts of rows -> (N, T) for each token, where in its row its document starts."""
    first, end = np.searchsorted(starts, row_starts), np.searchsorted(starts, row_starts + row_tokens)
    counts = end - first
    lines = np.repeat(np.arange(len(row_starts)), counts)
    places = np.arange(counts.sum()) + np.repeat(first - counts.cumsum() + counts, counts)
    inside = starts[places] - row_starts[lines]
    result = np.zeros((len(row_starts), row_tokens), np.int32)
    result[lines, inside] = inside
    return np.maximum.accumulate(result, axis=1)


def _has_target(shard: TokenShard) -> bool:
    """Whether any token is to be learned; reads no further than to the first that is."""
    if shard.supervised is None:
        return True
    return any(shard.supervised[start : start + BLOCK_BYTES].any() for start in range(0, len(shard.supervised), BLOCK_BYTES))


def _digest(shard: TokenShard, tokenizer_sha256: str) -> str:
    """Names the content of a shard by tokenizer and by place and size of every document, without reading the tokens."""
    digest = hashlib.sha256(tokenizer_sha256.encode())
    for part in (shard.starts, shard.lengths, shard.text_bytes):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
