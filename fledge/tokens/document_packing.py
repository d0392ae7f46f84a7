"""Fills token shards with documents: one continuous stream per source, or rows of one length that no document crosses.

    document -> start ids, ids, end ids      `Tokenizer.document_start` and `document_end`, for byte-level BPE `<|endoftext|>` in front

A stream loses nothing and needs no padding: documents lie one behind the other, so every token is a target once in an epoch, and
`<|endoftext|>` both opens a text and ends the one before.

Rows hold whole documents, placed by best-fit decreasing; one that is longer than a row is cut into parts of a row each and a rest.
Nothing is lost, and the rest of each row is padding. What is no target: padding (but for one `<|endoftext|>` behind the last
document of a row, so that ends are learned as in a stream), and the first token of a rest, which does not follow from what is before
it. Rows are filled from buffers of about 4 million tokens of a source, which bounds memory to about 200 MB beside 8 MB a source.

Ids come as flat arrays and are framed, placed and written by array arithmetic, per batch and source. The loop without reading and
encoding handles 340 to 390 MB of text per CPU-second as a stream and 135 to 180 in rows of 1,024 (documents of 2.8 kB, a busy machine).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fledge.core import console
from fledge.corpus.document import Document, Split
from fledge.tokens.best_fit import best_fit
from fledge.tokens.engines import Encoded
from fledge.tokens.figures import DocumentHashes, PackingFigures
from fledge.tokens.packing import in_batches, token_set_meta
from fledge.tokens.shard_format import ShardMeta, TokenArray, TokenSetMeta, record_shards
from fledge.tokens.shard_writer import IndexRows, ShardWriter
from fledge.tokens.sides import Budgets
from fledge.tokens.tokenizer import Tokenizer

_BUFFER_TOKENS = 1 << 22
_CHOICE_BYTES = 4_000_000
"""Less is encoded by the reference in two seconds; to load and compare the other engines takes about as long."""

Sided = tuple[Split, Document]


def pack_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, folder: Path, split: Split, row_tokens: int | None = None, text_bytes: int = 0
) -> dict[str, Any]:
    """Write the shards of one split of documents, one per source; returns its figures.

    `row_tokens` None packs a stream; `text_bytes` says about how much text there is. Raises DataError if the training split is empty;
    an empty validation split has no shard.
    """
    sided = ((split, document) for document in documents)
    return pack_sides(sided, tokenizer, folder, (split,), row_tokens, text_bytes=text_bytes)[split]


def pack_sides(
    documents: Iterable[Sided],
    tokenizer: Tokenizer,
    folder: Path,
    splits: Sequence[Split] = get_args(Split),
    row_tokens: int | None = None,
    budgets: Budgets | None = None,
    hashes: DocumentHashes | None = None,
    text_bytes: int = 0,
) -> dict[Split, dict[str, Any]]:
    """Write the shards of several splits in one pass; returns the figures of each. Raises DataError as `pack_documents` does.

    With `budgets`, documents that their source has no room for any more are neither encoded nor written, and the pass ends when
    nobody has room. From `_CHOICE_BYTES` of text on, an engine is chosen on the first documents of each source.
    """
    meta = token_set_meta("documents", tokenizer, row_tokens)
    hashes = hashes or DocumentHashes()
    figures = {split: PackingFigures("documents", split, row_tokens, hashes) for split in splits}
    writers: dict[tuple[Split, str], _Writer] = {}
    engines: dict[str, Any] = {}
    with console.progress("pack documents", None, "documents") as progress:
        for batch in in_batches(documents):
            if budgets is not None:
                batch = [item for item in batch if budgets.left(item[0], item[1].source)]
            if text_bytes >= _CHOICE_BYTES:
                _choose_engines(batch, tokenizer, engines)
            for (split, source), packed in _encode(batch, tokenizer, meta):
                if budgets is not None:
                    packed = packed.leading(budgets.take(split, source, packed.lengths))
                if (split, source) not in writers:
                    shard = ShardWriter(folder, split, source, meta)
                    writers[split, source] = _StreamWriter(shard) if row_tokens is None else _RowWriter(shard, row_tokens, tokenizer)
                _count(figures[split], packed)
                writers[split, source].append(packed, figures[split])
            progress.advance(len(batch))
            if budgets is not None and budgets.spent:
                break
    return {split: {**told, "engine_by_source": engines} for split, told in _finish(folder, meta, figures, writers).items()}


@dataclass(frozen=True)
class Packed:
    """Documents of one source and split as they are to be written."""

    tokens: TokenArray
    """(N,) of all documents, one behind the other."""
    offsets: NDArray[np.int64]
    """(documents + 1,)"""
    ids: Sequence[str]
    text_bytes: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def leading(self, documents: int) -> Packed:
        """The first documents."""
        end = int(self.offsets[documents])
        return Packed(self.tokens[:end], self.offsets[: documents + 1], self.ids[:documents], self.text_bytes[:documents])


class _Writer(Protocol):
    def append(self, packed: Packed, figures: PackingFigures) -> None: ...

    def close(self, figures: PackingFigures) -> ShardMeta: ...


def frame(encoded: Encoded, start: Sequence[int], end: Sequence[int], element_type: np.dtype[Any]) -> tuple[TokenArray, NDArray[np.int64]]:
    """Ids of many texts with `start` before and `end` behind each: flat tokens and (texts + 1,) offsets."""
    around = len(start) + len(end)
    offsets = encoded.offsets + around * np.arange(len(encoded) + 1)
    tokens = np.empty(int(offsets[-1]), element_type)
    inside = np.ones(len(tokens), dtype=bool)
    for ids, begins in ((start, offsets[:-1]), (end, offsets[1:] - len(end))):
        for place, token in enumerate(ids):
            tokens[begins + place] = token
            inside[begins + place] = False
    tokens[inside] = encoded.ids
    return tokens, offsets


def _encode(batch: Sequence[Sided], tokenizer: Tokenizer, meta: TokenSetMeta) -> Iterator[tuple[tuple[Split, str], Packed]]:
    """A batch encoded at once, then split and source by split and source, each in the order it came."""
    groups: dict[tuple[Split, str], list[Document]] = {}
    for split, document in batch:
        groups.setdefault((split, document.source), []).append(document)
    texts = [document.text for members in groups.values() for document in members]
    tokens, offsets = frame(tokenizer.encode_arrays(texts), tokenizer.document_start, tokenizer.document_end, meta.token_type)
    text_bytes = np.fromiter((len(text) if text.isascii() else len(text.encode()) for text in texts), np.int64, len(texts))
    first = 0
    for group, members in groups.items():
        ids = [document.id for document in members]
        last = first + len(ids)
        begin, end = offsets[first], offsets[last]
        yield group, Packed(tokens[begin:end], offsets[first : last + 1] - begin, ids, text_bytes[first:last])
        first = last


def _choose_engines(batch: Sequence[Sided], tokenizer: Tokenizer, engines: dict[str, Any]) -> None:
    """Choose once more for every source that begins in this batch, and keep the records by source."""
    beginning: dict[str, list[str]] = {}
    for _, document in batch:
        if document.source not in engines:
            beginning.setdefault(document.source, []).append(document.text)
    for source, texts in beginning.items():
        engines[source] = tokenizer.choose_engine(texts)


def _count(figures: PackingFigures, packed: Packed) -> None:
    figures.documents += len(packed.ids)
    figures.text_bytes += int(packed.text_bytes.sum())
    figures.segment_tokens += len(packed.tokens)
    content = packed.tokens.tobytes()
    borders = (packed.offsets * packed.tokens.itemsize).tolist()
    figures.hashes.add(figures.split, (content[begin:end] for begin, end in pairwise(borders)))


def _finish(
    folder: Path, meta: TokenSetMeta, figures: dict[Split, PackingFigures], writers: dict[tuple[Split, str], _Writer]
) -> dict[Split, dict[str, Any]]:
    for counted in figures.values():
        counted.require_some()
    shards = [writer.close(figures[split]) for (split, _), writer in writers.items()]
    shards.sort(key=lambda shard: get_args(Split).index(shard.split))
    record_shards(folder, replace(meta, shards=tuple(shards)))
    return {split: counted.told([shard for shard in shards if shard.split == split]) for split, counted in figures.items()}


class _StreamWriter:
    """Documents one behind the other."""

    def __init__(self, shard: ShardWriter) -> None:
        self._shard = shard

    def append(self, packed: Packed, figures: PackingFigures) -> None:
        self._shard.append_batch(packed.tokens, IndexRows(packed.ids, packed.offsets[:-1], packed.lengths, packed.text_bytes))
        figures.supervised_tokens += len(packed.tokens)

    def close(self, figures: PackingFigures) -> ShardMeta:
        return self._shard.close()


class _RowWriter:
    """Documents in rows, from a buffer that is packed when it is full."""

    def __init__(self, shard: ShardWriter, row_tokens: int, tokenizer: Tokenizer) -> None:
        self._shard, self._row_tokens, self._tokenizer = shard, row_tokens, tokenizer
        self._buffer: list[Packed] = []
        self._buffered_tokens = 0
        self._documents = 0

    def append(self, packed: Packed, figures: PackingFigures) -> None:
        self._buffer.append(packed)
        self._buffered_tokens += len(packed.tokens)
        if self._buffered_tokens >= _BUFFER_TOKENS:
            self._write(figures)

    def close(self, figures: PackingFigures) -> ShardMeta:
        if self._buffer:
            self._write(figures)
        return self._shard.close()

    def _write(self, figures: PackingFigures) -> None:
        packed = _joined(self._buffer)
        rows = RowLayout.of(packed.lengths, self._row_tokens)
        tokens, supervised = rows.fill(packed.tokens, packed.offsets, self._tokenizer.padding, self._closing)
        text_bytes = _part_bytes(packed, rows, self._tokenizer)
        ids = [packed.ids[document] for document in rows.documents.tolist()]
        index = IndexRows(ids, rows.starts, rows.lengths, text_bytes, rows.documents + self._documents, rows.parts)
        self._shard.append_batch(tokens, index, supervised)
        self._documents += len(packed.ids)
        figures.cut_documents += int((packed.lengths > self._row_tokens).sum())
        figures.supervised_tokens += int(supervised.sum())
        self._buffer, self._buffered_tokens = [], 0

    @property
    def _closing(self) -> int | None:
        """What ends the last document of a row where documents have no end of their own."""
        return None if self._tokenizer.document_end else self._tokenizer.end_of_text


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of documents lie in rows; S parts in the order of the rows."""

    row_tokens: int
    row_count: int
    documents: NDArray[np.int64]
    """(S,) which document."""
    parts: NDArray[np.int32]
    """(S,) which part of it."""
    lengths: NDArray[np.int64]
    """(S,) tokens."""
    starts: NDArray[np.int64]
    """(S,) where the part begins, counted over all rows."""

    @staticmethod
    def of(lengths: NDArray[np.int64], row_tokens: int) -> RowLayout:
        """(documents,) tokens of each -> the layout by best-fit decreasing, documents longer than a row cut into parts."""
        part_counts = -(-lengths // row_tokens)
        documents = np.repeat(np.arange(len(lengths)), part_counts)
        parts = np.arange(len(documents)) - np.repeat(np.cumsum(part_counts) - part_counts, part_counts)
        part_lengths = np.minimum(row_tokens, lengths[documents] - parts * row_tokens)
        rows = best_fit(part_lengths, row_tokens)
        order = np.fromiter(chain.from_iterable(rows), np.int64, len(documents))
        in_row = np.fromiter(map(len, rows), np.int64, len(rows))
        placed = part_lengths[order]
        before = np.cumsum(placed) - placed
        first = np.cumsum(in_row) - in_row
        starts = before - np.repeat(before[first] - row_tokens * np.arange(len(rows)), in_row)
        return RowLayout(row_tokens, len(rows), documents[order], parts[order].astype(np.int32), placed, starts)

    def fill(
        self, tokens: TokenArray, offsets: NDArray[np.int64], padding: int, closing: int | None
    ) -> tuple[TokenArray, NDArray[np.uint8]]:
        """Flat tokens of the documents -> (rows * row_tokens,) tokens and whether each is a target."""
        filled = np.full(self.row_count * self.row_tokens, padding, tokens.dtype)
        origins = offsets[self.documents] + self.parts.astype(np.int64) * self.row_tokens
        # Slices: index arrays, at 8 bytes a token, take four times as long.
        for origin, start, length in zip(origins.tolist(), self.starts.tolist(), self.lengths.tolist(), strict=True):
            filled[start : start + length] = tokens[origin : origin + length]
        rows = self.starts // self.row_tokens
        is_last = np.append(rows[1:] != rows[:-1], True)
        used = (self.starts + self.lengths)[is_last] - rows[is_last] * self.row_tokens
        if closing is not None:
            ended = np.flatnonzero(used < self.row_tokens)
            filled[ended * self.row_tokens + used[ended]] = closing
            used[ended] += 1
        supervised = (np.arange(self.row_tokens) < used[:, None]).view(np.uint8).ravel()
        supervised[self.starts[self.parts > 0]] = 0
        return filled, supervised


def _joined(buffer: Sequence[Packed]) -> Packed:
    lengths = np.concatenate([packed.lengths for packed in buffer])
    return Packed(
        np.concatenate([packed.tokens for packed in buffer]),
        np.concatenate([[0], np.cumsum(lengths)]),
        [name for packed in buffer for name in packed.ids],
        np.concatenate([packed.text_bytes for packed in buffer]),
    )


def _part_bytes(packed: Packed, rows: RowLayout, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(S,) bytes of text in each part; those of a document add up to its own."""
    text_bytes = packed.text_bytes[rows.documents]
    begins = packed.offsets[rows.documents] + rows.parts.astype(np.int64) * rows.row_tokens
    is_last = begins + rows.lengths == packed.offsets[rows.documents + 1]
    inner = np.flatnonzero(~is_last)
    inner_bytes = [int(tokenizer.byte_lengths[packed.tokens[begin : begin + rows.row_tokens]].sum()) for begin in begins[inner].tolist()]
    before_last = np.zeros(len(packed.ids), np.int64)
    np.add.at(before_last, rows.documents[inner], inner_bytes)
    text_bytes[is_last] -= before_last[rows.documents[is_last]]
    text_bytes[inner] = inner_bytes
    return text_bytes
