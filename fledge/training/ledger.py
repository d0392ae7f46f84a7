"""Which documents a step trains on, and at which steps a text is seen: plan + token shards -> answers, with no log kept.

The order of rows is a pure function of the step, and where documents lie in the shards is in their index, so both questions are
computed. The second runs the plan forward, block by block as training does: two seconds for a million rows, and no second
formula that would have to agree with the first.

Shapes: D documents of a shard, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fledge.tokens.shards import TokenShard
from fledge.tokens.tokenizer import Tokenizer
from fledge.training.plan import Plan, Row

_SEARCHED_TOKENS = 1 << 21
"""Read at once; their text is a few times as many bytes."""
_NO_TEXT = b"\xff"
"""What a control token is searched as: no UTF-8 has this byte, so no text reaches over a control token."""


@dataclass(frozen=True)
class Part:
    """Tokens of one document in one row of a batch."""

    line: int
    """Which row of the batch, from 0."""
    source: str
    document: str
    """As the corpus names it; the answers of a pair share one."""
    first: int
    """Where in the row its tokens begin."""
    end: int
    from_token: int
    """Which token of the document (or of this part, or answer) is the first here."""
    epoch: int


@dataclass(frozen=True)
class Visit:
    """A row with a document, in a step."""

    step: int
    """Steps done before it."""
    epoch: int


def parts_of_step(plan: Plan, shards: Sequence[TokenShard], step: int) -> list[Part]:
    """What the step after `step` steps trains on, row by row."""
    row_tokens = plan.phase(step).row_tokens
    return [part for line, row in enumerate(plan.rows(step)) for part in _parts_of_row(shards[row.source], row, line, row_tokens)]


def visits(plan: Plan, source: int, shard: TokenShard, numbers: Sequence[int]) -> Iterator[Visit]:
    """Every row in which one of some documents, by number in the index of a source's shard, has tokens; by step."""
    starts = shard.starts[list(numbers)]
    lasts = starts + shard.lengths[list(numbers)] - 1

    def rows(row_tokens: int) -> NDArray[np.int64]:
        spans = [np.arange(first, last + 1) for first, last in zip(starts // row_tokens, lasts // row_tokens, strict=True)]
        return np.unique(np.concatenate(spans)) if spans else np.empty(0, np.int64)

    for step, row in plan.visits(source, rows):
        yield Visit(step, row.epoch)


def documents_with(shard: TokenShard, tokenizer: Tokenizer, text: str) -> list[int]:
    """Numbers, in a shard's index, of the documents whose text as the model reads it holds a text. Raises DataError if it is damaged."""
    wanted = text.encode()
    controls = frozenset(tokenizer.specials.values())
    pieces = [_NO_TEXT if token in controls else tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary_size)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    found: list[int] = []
    for first, end in _document_ranges(shard):
        start = int(shard.starts[first])
        tokens = shard.tokens[start : int(shard.starts[end - 1] + shard.lengths[end - 1])]
        written = b"".join([pieces[token] for token in tokens.tolist()])
        ends = np.cumsum(lengths[tokens])
        place = written.find(wanted)
        while place >= 0:
            token = start + int(np.searchsorted(ends, place, side="right"))
            number = int(np.searchsorted(shard.starts, token, side="right")) - 1
            last = start + int(np.searchsorted(ends, place + len(wanted) - 1, side="right"))
            if last < int(shard.starts[number] + shard.lengths[number]) and (not found or found[-1] != number):
                found.append(number)
            place = written.find(wanted, place + 1)
    return found


def described(parts: Sequence[Part], shown: int = 5) -> str:
    """The documents of some parts in a line: source and id of the first ones, and how many more."""
    names = list(dict.fromkeys(f"{part.source} {part.document}" for part in parts))
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def _parts_of_row(shard: TokenShard, row: Row, line: int, row_tokens: int) -> Iterator[Part]:
    start = row.index * row_tokens
    first = max(0, int(np.searchsorted(shard.starts, start, side="right")) - 1)
    end = int(np.searchsorted(shard.starts, start + row_tokens))
    for number in range(first, end):
        begins = int(shard.starts[number]) - start
        ends = begins + int(shard.lengths[number])
        if ends > 0:
            document = str(shard.document_ids[number].as_py())
            yield Part(line, shard.source, document, max(0, begins), min(ends, row_tokens), max(0, -begins), row.epoch)


def _document_ranges(shard: TokenShard) -> Iterator[tuple[int, int]]:
    """Documents (first, end) that lie together in at most so many tokens, or one that is longer."""
    first = 0
    while first < len(shard.starts):
        limit = int(shard.starts[first]) + _SEARCHED_TOKENS
        end = max(first + 1, int(np.searchsorted(shard.starts + shard.lengths, limit, side="right")))
        yield first, end
        first = end
