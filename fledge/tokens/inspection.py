"""Token ids as a person reads them: one piece of text per id, with what training makes of it.

Between `shards.py`, which reads the ids, and `fledge inspect`, which draws the pieces. Pieces keep to the borders of ids, so bytes
that are no whole character (an id may end inside one) are escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from fledge.core.errors import ConfigError, DataError
from fledge.tokens.shards import TokenShard
from fledge.tokens.tokenizer import Tokenizer

STREAM_ROW_TOKENS = 256
"""A continuous stream has no rows of its own; it is looked at in stretches of this length."""


@dataclass(frozen=True)
class Piece:
    """One id of a row."""

    text: str
    """What it stands for; bytes that are no whole character as `\\xe2`."""
    id: int
    supervised: bool
    """Whether it is a target of the loss."""
    starts_document: bool
    is_control: bool
    """Whether it is a control token, whose text is its name."""


@dataclass(frozen=True)
class Stretch:
    """Ids of a shard that lie one after another: a row, or a document."""

    shard: TokenShard
    start: int
    end: int

    @property
    def documents(self) -> NDArray[np.int64]:
        """Numbers in the shard's index of the documents that have tokens here."""
        ends = self.shard.starts + self.shard.lengths
        return np.flatnonzero((self.shard.starts < self.end) & (ends > self.start))

    def pieces(self, tokenizer: Tokenizer) -> list[Piece]:
        """Its ids as pieces. Raises DataError if the shard is damaged here."""
        span = slice(self.start, self.end)
        supervised = None if self.shard.supervised is None else self.shard.supervised[span]
        starts = self.shard.starts[(self.shard.starts >= self.start) & (self.shard.starts < self.end)] - self.start
        return row_pieces(self.shard.tokens[span], supervised, starts, tokenizer)


def row_pieces(
    tokens: NDArray[np.unsignedinteger], supervised: NDArray[np.uint8] | None, starts: NDArray[np.int64], tokenizer: Tokenizer
) -> list[Piece]:
    """A piece for each of the (N,) ids; `supervised` (N,) or None for all; `starts`: where in them documents begin.

    Raises DataError for an id that the tokenizer does not have.
    """
    controls = frozenset(tokenizer.specials.values())
    beginnings = frozenset(starts.tolist())
    learned = np.ones(len(tokens), np.uint8) if supervised is None else supervised
    ids = [int(token) for token in tokens]
    require_known(ids, tokenizer)
    return [
        Piece(
            tokenizer.token_bytes(token).decode("utf-8", "backslashreplace"),
            token,
            bool(learned[place]),
            place in beginnings,
            token in controls,
        )
        for place, token in enumerate(ids)
    ]


def require_known(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Raises DataError for an id outside the vocabulary."""
    strange = next((token for token in ids if not 0 <= token < tokenizer.vocabulary_size), None)
    if strange is not None:
        problem = f"{strange} is no id of the tokenizer {tokenizer.folder}, whose vocabulary has {tokenizer.vocabulary_size:,}"
        raise DataError(problem, f"give ids from 0 to {tokenizer.vocabulary_size - 1}, or the tokenizer they were made with")


def find_row(shards: Sequence[TokenShard], row_tokens: int | None, row: int) -> Stretch:
    """Row number `row` of a split, counted through its shards. Raises ConfigError if there are not that many."""
    length = row_tokens or STREAM_ROW_TOKENS
    left = row
    for shard in shards:
        rows = -(-len(shard.tokens) // length)
        if left < rows:
            return Stretch(shard, left * length, min((left + 1) * length, len(shard.tokens)))
        left -= rows
    raise ConfigError(f"there is no row {row:,}, the last one is {row - left - 1:,}", "give a smaller --row")


def find_document(shards: Sequence[TokenShard], document_id: str) -> list[Stretch]:
    """Where a document of the corpus lies: one stretch, or one for each part or answer. Raises ConfigError if it is nowhere."""
    found = [
        Stretch(shard, int(shard.starts[number]), int(shard.starts[number] + shard.lengths[number]))
        for shard in shards
        for number in np.flatnonzero(pc.equal(shard.document_ids, document_id))
    ]
    if not found:
        raise ConfigError(f"no document {document_id!r} lies in this split", "look at the other --split, or at a --row for the names")
    return found
