"""Writes one shard of a token set in one pass and bounded memory: tokens, mask, index of documents, and the checksums of all.

An array begins with a header that says how much follows, so its place is kept free and it is written last. A set is made in a
folder that appears whole (`artifact.build`), so a shard that was not closed is never seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.core import disk
from fledge.corpus.document import Split
from fledge.tokens.blocks import BlockChecksums
from fledge.tokens.shard_format import FLAGS, HEADER_BYTES, ShardMeta, TokenArray, TokenSetMeta, pack_header

INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("document", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("token_count", pa.int64(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),
        pa.field("damage", pa.string()),
    ]
)

_INDEX_BATCH = 10_000
_WRITE_BYTES = 4 << 20


@dataclass(frozen=True)
class Segment:
    """One conversation, answer or document as it goes into a shard."""

    document_id: str
    tokens: TokenArray
    text_bytes: int
    """UTF-8 bytes of the text whose tokens are targets: of a document all of it, of a conversation the answers."""
    supervised: NDArray[np.uint8] | None = None
    """1 where the token is a target of the loss; None in a stream of documents, where all are."""
    damage: str | None = None
    """Of a preference: what is wrong with the rejected answer."""


@dataclass(frozen=True)
class IndexRows:
    """Where documents, or parts of them, lie in a batch of tokens; all of one length."""

    ids: Sequence[str]
    starts: NDArray[np.int64]
    """Counted from the first token of the batch."""
    token_counts: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    documents: NDArray[np.int64] | None = None
    """Number of the document in the shard; None: each is a document of its own, in order."""
    parts: NDArray[np.int32] | None = None
    """Which part of its document, from 0; None: none is cut."""


class ShardWriter:
    """Writes one shard; nothing counts before `close`."""

    def __init__(self, folder: Path, split: Split, source: str, meta: TokenSetMeta) -> None:
        disk.make_folder(folder)
        self._folder, self._split, self._source, self._meta = folder, split, source, meta
        self._stem = f"{split}-{source}"
        self._tokens = _ElementFile(folder / f"{self._stem}.tokens", meta.token_type)
        self._supervised = None if meta.row_tokens is None else _ElementFile(folder / f"{self._stem}.supervised", FLAGS)
        self._index = pa.ipc.new_file(str(folder / f"{self._stem}.documents"), INDEX_SCHEMA)
        self._rows: list[tuple[str, int, int, int, int, int, str | None]] = []
        self._batches: list[pa.RecordBatch] = []
        self._indexed, self._unwritten = 0, 0

    def append(self, segment: Segment) -> None:
        """Add one segment behind what is there."""
        row = (segment.document_id, self._indexed, 0, self._tokens.count, len(segment.tokens), segment.text_bytes, segment.damage)
        self._rows.append(row)
        self._count_rows(1)
        self._append_elements(segment.tokens, segment.supervised)

    def append_batch(self, tokens: TokenArray, rows: IndexRows, supervised: NDArray[np.uint8] | None = None) -> None:
        """Add many documents at once: flat tokens in which `rows` says where each lies."""
        self._add_to_index(rows, first_token=self._tokens.count)
        self._append_elements(tokens, supervised)

    def append_tokens(self, tokens: TokenArray) -> None:
        """Add tokens of a stream whose documents are told apart, by `append_index`."""
        self._append_elements(tokens, None)

    def append_index(self, rows: IndexRows) -> None:
        """Tell where documents lie, starts counted from the first token of the shard."""
        self._add_to_index(rows, first_token=0)

    def pad(self, token: int, count: int) -> None:
        """Fill the rest of a row; padding is never a target and belongs to no document."""
        assert self._supervised is not None, "a continuous stream has no padding"
        self._append_elements(np.full(count, token, dtype=self._meta.token_type), np.zeros(count, dtype=np.uint8))

    def close(self) -> ShardMeta:
        """Write what is left, the checksums, and the headers, which need all of that."""
        self._write_index()
        self._index.close()
        shard = ShardMeta(
            split=self._split,
            source=self._source,
            documents=self._indexed,
            tokens=self._tokens.count,
            lowest_id=self._tokens.lowest,
            highest_id=self._tokens.highest,
            index_crc32=zlib.crc32((self._folder / f"{self._stem}.documents").read_bytes()),
            tokens_crc32=self._tokens.finish(),
            supervised_crc32=None if self._supervised is None else self._supervised.finish(),
        )
        disk.overwrite_start(shard.path(self._folder, "tokens"), pack_header(self._meta, shard, "tokens"))
        if self._supervised is not None:
            disk.overwrite_start(shard.path(self._folder, "supervised"), pack_header(self._meta, shard, "supervised"))
        return shard

    def _add_to_index(self, rows: IndexRows, first_token: int) -> None:
        self._gather_rows()
        count = len(rows.ids)
        documents = np.arange(self._indexed, self._indexed + count) if rows.documents is None else rows.documents
        parts = np.zeros(count, np.int32) if rows.parts is None else rows.parts
        columns = [list(rows.ids), documents, parts, rows.starts + first_token, rows.token_counts, rows.text_bytes, pa.nulls(count)]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=INDEX_SCHEMA))
        self._count_rows(count)

    def _append_elements(self, tokens: TokenArray, supervised: NDArray[np.uint8] | None) -> None:
        self._tokens.append(tokens)
        if self._supervised is not None:
            assert supervised is not None, "a row set needs to know the targets of the loss"
            assert len(supervised) == len(tokens)
            self._supervised.append(supervised)

    def _count_rows(self, count: int) -> None:
        self._indexed += count
        self._unwritten += count
        if self._unwritten >= _INDEX_BATCH:
            self._write_index()

    def _gather_rows(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
            self._batches.append(pa.record_batch(arrays, schema=INDEX_SCHEMA))
            self._rows.clear()

    def _write_index(self) -> None:
        self._gather_rows()
        if self._batches:
            self._index.write_table(pa.Table.from_batches(self._batches).combine_chunks())
            self._batches.clear()
        self._unwritten = 0


class _ElementFile:
    """A flat array that grows behind the place of its header."""

    def __init__(self, path: Path, element_type: np.dtype[Any]) -> None:
        self.count, self.lowest, self.highest = 0, 0, 0
        self._path, self._type = path, element_type
        self._pending: list[NDArray[Any]] = []
        self._pending_bytes = 0
        self._checksums = BlockChecksums()
        disk.write_bytes(path, bytes(HEADER_BYTES))

    def append(self, elements: NDArray[Any]) -> None:
        """Keeps a view of what it is given until that is written."""
        if not len(elements):
            return
        lowest, highest = int(elements.min()), int(elements.max())
        self.lowest = min(self.lowest, lowest) if self.count else lowest
        self.highest = max(self.highest, highest)
        self.count += len(elements)
        self._pending.append(np.ascontiguousarray(elements, dtype=self._type))
        self._pending_bytes += len(elements) * self._type.itemsize
        if self._pending_bytes >= _WRITE_BYTES:
            self._write()

    def finish(self) -> int:
        """Write what is left and the checksums beside it; returns the CRC-32 of these."""
        self._write()
        checksums = self._checksums.finish()
        disk.write_bytes(self._path.with_name(f"{self._path.name}.crc32"), checksums)
        return zlib.crc32(checksums)

    def _write(self) -> None:
        content = b"".join(elements.data for elements in self._pending)
        self._checksums.update(content)
        if content:
            disk.append_bytes(self._path, content)
        self._pending, self._pending_bytes = [], 0
