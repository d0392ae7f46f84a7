"""Fills token shards from a corpus: documents as one continuous stream, conversations and preference pairs in rows of one length.

Documents lose nothing and need no padding: each is `<|endoftext|>` and its ids, one behind the other, grouped by source. So every
token is a target once in an epoch, and `<|endoftext|>` both opens a text and ends the one before.

Conversations and pairs are never cut, since half an answer teaches to stop in the middle. They are placed by best-fit decreasing
(Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): the longest first, each into the row with the least room that
still holds it. A pair is two whole conversations in one row, the chosen answer first. What is longer than a row is left out and
counted. Rows stand in the order of the corpus (by their first member); the order of training is decided later.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Content, Conversation, Document, Message, Preference, Split
from fledge.tokens.chat import Rendered, render_batch, trimmed
from fledge.tokens.engines import Encoded
from fledge.tokens.shards import Segment, ShardMeta, ShardWriter, TokenArray, TokenSetMeta, record_shards, token_array
from fledge.tokens.tokenizer import Tokenizer

T = TypeVar("T")

_BATCH_DOCUMENTS = 1_024
"""Documents encoded together; enough to keep all cores of the encoder busy, few enough to stay small in memory."""


def pack_documents(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path, split: Split) -> dict[str, Any]:
    """Write the shards of a split of documents, one per source; returns its figures.

    Raises DataError if the training split is empty; an empty validation split has no shard.
    """
    meta = _meta("documents", tokenizer, row_tokens=None)
    writers: dict[str, ShardWriter] = {}
    engines: dict[str, Any] = {}
    figures = _Figures(split)
    with console.progress(f"pack {split} documents", None, "documents") as progress:
        for batch in _batches(documents):
            by_source: dict[str, list[Document]] = defaultdict(list)
            for document in batch:
                by_source[document.source].append(document)
            for source, members in by_source.items():
                texts = [document.text for document in members]
                if source not in writers:
                    engines[source] = tokenizer.choose_engine(texts)
                    writers[source] = ShardWriter(folder, split, source, meta)
                tokens, lengths = _stream(tokenizer, tokenizer.encode_arrays(texts), meta)
                text_bytes = [len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts]
                writers[source].append_batch([document.id for document in members], tokens, lengths, text_bytes)
                figures.count_documents(len(members), sum(text_bytes), len(tokens))
            progress.advance(len(batch))
    return {**_finish(folder, meta, figures, [writer.close() for writer in writers.values()]), "engine_by_source": engines}


def _stream(tokenizer: Tokenizer, encoded: Encoded, meta: TokenSetMeta) -> tuple[TokenArray, NDArray[np.int64]]:
    """The ids of documents one behind the other, each between the ids that open and close it; and how many each has."""
    start, end = tokenizer.document_start, tokenizer.document_end
    lengths = np.diff(encoded.offsets) + len(start) + len(end)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), meta.token_type)
    is_text = np.ones(len(tokens), np.bool_)
    for place, token in [*enumerate(start), *enumerate(end, -len(end))]:
        at = (ends - lengths if place >= 0 else ends) + place
        tokens[at], is_text[at] = token, False
    tokens[is_text] = encoded.ids
    return tokens, lengths


def pack_conversations(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, folder: Path, split: Split, row_tokens: int
) -> dict[str, Any]:
    """Write the shards of a split of conversations in rows of `row_tokens` tokens; returns its figures.

    Held in memory until they are placed: about 3 bytes per token. Raises DataError if the training split is empty, or all of it
    is longer than a row.
    """
    meta = _meta("conversations", tokenizer, row_tokens)
    groups: dict[str, list[tuple[Segment, ...]]] = defaultdict(list)
    figures = _Figures(split, row_tokens)
    with console.progress(f"pack {split} conversations", None, "conversations") as progress:
        for batch in _batches(conversations):
            rendered = render_batch(tokenizer, [conversation.messages for conversation in batch])
            for conversation, one in zip(batch, rendered, strict=True):
                answers = [message.content for message in conversation.messages if message.role == "assistant"]
                segment = _segment(conversation.id, one, answers, meta)
                if figures.accept((segment,)):
                    groups[conversation.source].append((segment,))
            progress.advance(len(batch))
    return _write_rows(folder, meta, tokenizer, figures, groups)


def pack_preferences(
    preferences: Iterable[Preference], tokenizer: Tokenizer, folder: Path, split: Split, row_tokens: int
) -> dict[str, Any]:
    """Write the shards of a split of preference pairs in rows of `row_tokens` tokens; returns its figures, in which a pair counts once.

    Only the two answers are targets, not those in the prompt. Raises DataError as `pack_conversations` does.
    """
    meta = _meta("preferences", tokenizer, row_tokens)
    groups: dict[str, list[tuple[Segment, ...]]] = defaultdict(list)
    figures = _Figures(split, row_tokens)
    with console.progress(f"pack {split} preferences", None, "pairs") as progress:
        for batch in _batches(preferences):
            answered = [(*pair.prompt, Message("assistant", answer)) for pair in batch for answer in (pair.chosen, pair.rejected)]
            rendered = render_batch(tokenizer, answered, last_answer_only=True)
            for pair, chosen, rejected in zip(batch, rendered[0::2], rendered[1::2], strict=True):
                both = (
                    _segment(pair.id, chosen, [pair.chosen], meta, pair.damage),
                    _segment(pair.id, rejected, [pair.rejected], meta, pair.damage),
                )
                if figures.accept(both):
                    groups[pair.source].append(both)
            progress.advance(len(batch))
    return _write_rows(folder, meta, tokenizer, figures, groups)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row of `capacity`: every index of `lengths` once, in ascending order within a row and by first index.

    Best-fit decreasing. Rows are kept by the room they have left; which rooms occur is one integer's set bits, so that the least
    room that suffices is found with a shift: 100,000 items take a fraction of a second.
    """
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    for index in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[index]
        assert 0 < length <= capacity, "items that fit no row are to be left out before"
        sufficing = rooms >> length
        if sufficing:
            room = length + (sufficing & -sufficing).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        rows_by_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return sorted(sorted(row) for row in rows)


@dataclass
class _Figures:
    """What is counted while a split is packed."""

    split: Split
    row_tokens: int | None = None
    documents: int = 0
    text_bytes: int = 0
    segment_tokens: int = 0
    supervised_tokens: int = 0
    dropped_too_long: int = 0
    longest_tokens: int = 0

    def count_documents(self, documents: int, text_bytes: int, tokens: int) -> None:
        """Count documents of a stream, in which every token is a target."""
        self.documents += documents
        self.text_bytes += text_bytes
        self.segment_tokens += tokens
        self.supervised_tokens += tokens

    def accept(self, segments: Sequence[Segment]) -> bool:
        """Count what fits into a row, or that it does not."""
        needed_tokens = sum(len(segment.tokens) for segment in segments)
        self.longest_tokens = max(self.longest_tokens, needed_tokens)
        if self.row_tokens is not None and needed_tokens > self.row_tokens:
            self.dropped_too_long += 1
            return False
        self.count(*segments)
        return True

    def count(self, *segments: Segment) -> None:
        self.documents += 1
        for segment in segments:
            self.text_bytes += segment.text_bytes
            self.segment_tokens += len(segment.tokens)
            self.supervised_tokens += len(segment.tokens) if segment.supervised is None else int(segment.supervised.sum())


def _write_rows(
    folder: Path, meta: TokenSetMeta, tokenizer: Tokenizer, figures: _Figures, groups: dict[str, list[tuple[Segment, ...]]]
) -> dict[str, Any]:
    _report_dropped(meta, figures)
    shards = [_write_row_shard(folder, meta, tokenizer, figures.split, source, members) for source, members in groups.items()]
    return _finish(folder, meta, figures, shards)


def _report_dropped(meta: TokenSetMeta, figures: _Figures) -> None:
    dropped, given = figures.dropped_too_long, figures.dropped_too_long + figures.documents
    if dropped == given and figures.split == "train" and given:
        raise DataError(
            f"none of the {given:,} {meta.content} to train on fits into a row of {meta.row_tokens} tokens "
            f"(the longest has {figures.longest_tokens:,})",
            "raise pack.sequence_length",
        )
    if dropped:
        console.warn(
            f"{dropped:,} of {given:,} {meta.content} ({figures.split}) are longer than a row of {meta.row_tokens} tokens "
            f"(the longest has {figures.longest_tokens:,}) and are left out"
        )


def _write_row_shard(
    folder: Path, meta: TokenSetMeta, tokenizer: Tokenizer, split: Split, source: str, members: Sequence[tuple[Segment, ...]]
) -> ShardMeta:
    assert meta.row_tokens is not None
    writer = ShardWriter(folder, split, source, meta)
    lengths = [sum(len(segment.tokens) for segment in member) for member in members]
    for row in best_fit(lengths, meta.row_tokens):
        for index in row:
            for segment in members[index]:
                writer.append(segment)
        writer.pad(tokenizer.padding, meta.row_tokens - sum(lengths[index] for index in row))
    return writer.close()


def _finish(folder: Path, meta: TokenSetMeta, figures: _Figures, shards: Sequence[ShardMeta]) -> dict[str, Any]:
    if not shards and figures.split == "train":
        raise DataError(f"there are no {meta.content} to pack", "add a source of them to corpus.sources")
    record_shards(folder, TokenSetMeta(meta.content, meta.tokenizer_sha256, meta.vocabulary_size, meta.row_tokens, tuple(shards)))
    tokens = sum(shard.tokens for shard in shards)
    return {
        "documents": figures.documents,
        "tokens": tokens,
        "text_bytes": figures.text_bytes,
        "supervised_tokens": figures.supervised_tokens,
        "padding_share": 1 - figures.segment_tokens / tokens if tokens else 0.0,
        "dropped_too_long": figures.dropped_too_long,
        "tokens_by_source": {shard.source: shard.tokens for shard in shards},
    }


def _meta(content: Content, tokenizer: Tokenizer, row_tokens: int | None) -> TokenSetMeta:
    return TokenSetMeta(content, tokenizer.sha256, tokenizer.vocabulary_size, row_tokens)


def _segment(document_id: str, rendered: Rendered, answers: Sequence[str], meta: TokenSetMeta, damage: str | None = None) -> Segment:
    supervised = np.array(rendered.supervised, dtype=np.uint8)
    text_bytes = sum(len(trimmed(answer).encode("utf-8")) for answer in answers)
    return Segment(document_id, token_array(rendered.ids, meta), text_bytes, supervised, damage)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH_DOCUMENTS)):
        yield batch
