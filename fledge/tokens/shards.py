"""Token shards: token ids on disk as flat little-endian arrays, checked as they are read; one shard per split and source.

    tokens.json                      what the set holds: content, tokenizer, row length, and the shards by name
    train-python-docs.tokens         64-byte header, then uint16 ids (uint32 where the vocabulary exceeds 65,536)
    train-python-docs.supervised     the same header, then one byte per token: 1 if it is a target of the loss (row sets only)
    train-python-docs.documents      Arrow file: id, place and text length of every document, in the order of the tokens
    train-python-docs.tokens.crc32   CRC-32 of every MiB of ids, 4 bytes each (8 kB for a billion ids); .supervised.crc32 likewise

Documents form one continuous stream, or lie like conversations and preferences in rows of `row_tokens` tokens, padded at the end,
and nothing crosses a row. Everything that can be checked without reading the tokens is checked on opening: `tokens.json` against
every header, sizes, the index and the checksums whole. The tokens are checked block by block when they are first read (blocks.py).
After Megatron's indexed dataset and nanoGPT's flat uint16 files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.core.errors import DataError
from fledge.corpus.document import Content, Split
from fledge.tokens.blocks import CheckedArray
from fledge.tokens.shard_format import (
    FLAGS,
    HEADER_BYTES,
    META_FILE,
    REMEDY,
    ShardMeta,
    ShardPart,
    TokenSetMeta,
    pack_header,
    read_meta,
    require_header,
)
from fledge.tokens.shard_writer import INDEX_SCHEMA

_NUMBERS = ("document", "part", "start", "token_count", "text_bytes")


@dataclass(frozen=True)
class TokenShard:
    """One source's part of a split; D documents (or parts of documents), N tokens. What holds tokens is read when it is indexed."""

    source: str
    tokens: CheckedArray
    """(N,) ids."""
    supervised: CheckedArray | None
    """(N,) 1 where a token is a target of the loss, else 0; None: all are."""
    starts: NDArray[np.int64]
    """(D,) where each document begins. In a set of preferences the even ones are chosen answers, the odd ones the rejected."""
    lengths: NDArray[np.int64]
    """(D,) tokens of each document, without the padding that may follow it."""
    text_bytes: NDArray[np.int64]
    """(D,) UTF-8 bytes of the text whose tokens are targets."""
    documents: NDArray[np.int64]
    """(D,) number of the document in the order of packing; the parts of one that was cut share it."""
    parts: NDArray[np.int32]
    """(D,) which part of its document it is, from 0."""
    content: Content
    index_path: Path

    @cached_property
    def document_ids(self) -> pa.ChunkedArray:
        """(D,) as the corpus names them; the parts of a document and the answers of a pair share one. Read when first asked for."""
        return _read_columns(self.index_path, ["id"])["id"]

    @cached_property
    def damages(self) -> pa.ChunkedArray | None:
        """(D,) kind of damage of the pair that a segment belongs to; None unless this is a set of preferences."""
        return _read_columns(self.index_path, ["damage"])["damage"] if self.content == "preferences" else None


@dataclass(frozen=True)
class TokenSet:
    """An opened folder of token shards."""

    folder: Path
    meta: TokenSetMeta
    _shards: tuple[tuple[ShardMeta, TokenShard], ...]

    @property
    def content(self) -> Content:
        return self.meta.content

    @property
    def tokenizer_sha256(self) -> str:
        return self.meta.tokenizer_sha256

    @property
    def vocabulary_size(self) -> int:
        return self.meta.vocabulary_size

    @property
    def row_tokens(self) -> int | None:
        return self.meta.row_tokens

    def shards(self, split: Split) -> tuple[TokenShard, ...]:
        """The shards of a split, one per source in the order of `tokens.json`; empty if the split has no documents."""
        return tuple(shard for meta, shard in self._shards if meta.split == split)


def open_token_set(folder: Path) -> TokenSet:
    """Open the shards of a folder; checks all but the tokens, which are checked when they are read.

    Raises DataError naming the file, what was found and what was expected.
    """
    meta = read_meta(folder)
    named = {shard.path(folder, "tokens").name for shard in meta.shards}
    strange = sorted(path.name for path in folder.glob("*.tokens") if path.name not in named)
    if strange:
        raise DataError(f"{folder / strange[0]} is a shard that {META_FILE} does not name", REMEDY)
    return TokenSet(folder, meta, tuple((shard, _open_shard(folder, meta, shard)) for shard in meta.shards))


def join_token_sets(token_sets: Sequence[TokenSet]) -> TokenSet:
    """Several sets of one content, tokenizer and row length as one. Raises DataError if they do not go together."""
    first, *others = token_sets
    for other in others:
        for name in ("content", "tokenizer_sha256", "row_tokens"):
            found, expected = getattr(other, name), getattr(first, name)
            if found != expected:
                problem = f"{other.folder} and {first.folder} do not go together: {name} is {found} and {expected}"
                raise DataError(problem, "pack both with the same settings and tokenizer")
    names = [(meta.split, shard.source) for token_set in token_sets for meta, shard in token_set._shards]
    repeated = next((source for split, source in names if names.count((split, source)) > 1), None)
    if repeated is not None:
        raise DataError(f"the source {repeated!r} is in more than one of the token sets", "name the sources of each corpus differently")
    return TokenSet(first.folder, first.meta, tuple(shard for token_set in token_sets for shard in token_set._shards))


def damaged_blocks(folder: Path) -> Iterator[str]:
    """Open a set and compare every block of it; yields a line for each thing that is damaged."""
    try:
        token_set = open_token_set(folder)
    except DataError as error:
        yield error.problem
        return
    for _, shard in token_set._shards:
        for elements in (shard.tokens, shard.supervised):
            if elements is not None:
                yield from elements.damages()


def _open_shard(folder: Path, meta: TokenSetMeta, shard: ShardMeta) -> TokenShard:
    tokens = _open_elements(folder, meta, shard, "tokens")
    supervised = None if meta.row_tokens is None else _open_elements(folder, meta, shard, "supervised")
    path = shard.path(folder, "documents")
    document, part, starts, lengths, text_bytes = _read_index(path, shard)
    _check_layout(path, meta, starts, lengths, shard.tokens)
    return TokenShard(shard.source, tokens, supervised, starts, lengths, text_bytes, document, part, meta.content, path)


def _open_elements(folder: Path, meta: TokenSetMeta, shard: ShardMeta, part: Literal["tokens", "supervised"]) -> CheckedArray:
    element_type = meta.token_type if part == "tokens" else FLAGS
    path = shard.path(folder, part)
    _require_file(path)
    size_bytes, expected_bytes = path.stat().st_size, HEADER_BYTES + shard.tokens * element_type.itemsize
    if size_bytes != expected_bytes:
        raise DataError(f"{path} is {size_bytes:,} bytes long, expected {expected_bytes:,} for {shard.tokens:,} tokens", REMEDY)
    require_header(path, pack_header(meta, shard, part))
    beside: dict[str, ShardPart] = {"tokens": "tokens.crc32", "supervised": "supervised.crc32"}
    checksums_path = shard.path(folder, beside[part])
    checksums = _read_whole(checksums_path, shard.tokens_crc32 if part == "tokens" else shard.supervised_crc32)
    return CheckedArray(path, element_type, shard.tokens, np.frombuffer(checksums, "<u4"), HEADER_BYTES)


def _read_whole(path: Path, crc32: int | None) -> bytes:
    _require_file(path)
    content = path.read_bytes()
    if zlib.crc32(content) != crc32:
        raise DataError(f"{path} is damaged: its CRC-32 is {zlib.crc32(content)}, {META_FILE} says {crc32}", REMEDY)
    return content


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing, {META_FILE} names it", REMEDY)


def _read_index(path: Path, shard: ShardMeta) -> list[NDArray[Any]]:
    """The numbers of an index, in memory: a mapped file that is cut short would end the process."""
    _read_whole(path, shard.index_crc32)
    index = _read_columns(path, list(_NUMBERS))
    if index.num_rows != shard.documents:
        raise DataError(f"{path} lists {index.num_rows:,} documents, {META_FILE} says {shard.documents:,}", REMEDY)
    return [np.array(index[name]) for name in _NUMBERS]


def _read_columns(path: Path, names: list[str]) -> pa.Table:
    chosen = pa.ipc.IpcReadOptions(included_fields=[INDEX_SCHEMA.get_field_index(name) for name in names])
    try:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if reader.schema != INDEX_SCHEMA:
                raise DataError(f"{path} has the columns {reader.schema.names}, expected {INDEX_SCHEMA.names}", REMEDY)
            return pa.ipc.open_file(file, options=chosen).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is no Arrow file that can be read: {error}", REMEDY) from error


def _check_layout(path: Path, meta: TokenSetMeta, starts: NDArray[np.int64], lengths: NDArray[np.int64], count: int) -> None:
    """Documents follow one another: without a gap in a stream; each inside one row in a row set, and pairs together."""
    ends, row_tokens = starts + lengths, meta.row_tokens
    following = np.append(starts[1:], count)
    if row_tokens is None:
        sound = starts[0] == 0 and bool((ends == following).all())
    else:
        rows = starts // row_tokens
        sound = count % row_tokens == 0 and bool(((rows == (ends - 1) // row_tokens) & (ends <= following) & (starts >= 0)).all())
        if meta.content == "preferences":
            sound = sound and len(rows) % 2 == 0 and bool((rows[0::2] == rows[1::2]).all())
    if not sound or not bool((lengths > 0).all()):
        raise DataError(f"{path}: the documents it lists do not fit the {count:,} tokens of the shard", REMEDY)
