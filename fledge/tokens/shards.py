"""Token shards: token ids on disk as flat little-endian arrays that training maps into memory; one shard per split and source.

    tokens.json                      what the set holds: content, tokenizer, row length, and the shards by name
    train-python-docs.tokens         64-byte header, then uint16 ids (uint32 where the vocabulary exceeds 65,536)
    train-python-docs.supervised     the same header, then one byte per token: 1 if it is a target of the loss (row sets only)
    train-python-docs.documents      Arrow file: id, start, token and text length of every document, in the order of the tokens

Documents form one continuous stream. Conversations and preferences lie in rows of `row_tokens` tokens, padded at the end, and no
document crosses a row. The header names the tokenizer, so ids are never read with another one; every size that can be checked
without reading the data is checked on opening. After Megatron's indexed dataset and nanoGPT's flat uint16 files.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus.document import Content, Split

META_FILE = "tokens.json"
FORMAT_VERSION = 1

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]

_HEADER = struct.Struct("<8sIIQ16s24x")
"""Magic, format version, code of the element type, number of elements, first 16 bytes of the tokenizer's SHA-256, reserve."""
_MAGIC = b"FLEDGETK"
_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 2: np.dtype("<u4"), 3: np.dtype("u1")}
_LARGEST_UINT16_VOCABULARY = 65_536
_SOURCE_NAME = re.compile(r"[a-z0-9-]+")
_PART_BYTES = 32 << 20
_INDEX_BATCH = 10_000
_REMEDY = "restore the file, or pack again: fledge pack RECIPE --force"

_INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("token_count", pa.int64(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),
        pa.field("damage", pa.string()),
    ]
)


@dataclass(frozen=True)
class ShardMeta:
    """One entry of `tokens.json`."""

    split: Split
    source: str
    documents: int
    """Documents, or segments in a set of preferences (two to a pair)."""
    tokens: int
    """Token ids, padding included."""

    def path(self, folder: Path, part: str) -> Path:
        return folder / f"{self.split}-{self.source}.{part}"


@dataclass(frozen=True)
class TokenSetMeta:
    """The content of `tokens.json`."""

    content: Content
    tokenizer_sha256: str
    vocabulary_size: int
    row_tokens: int | None
    """Tokens in a row; None for one continuous stream."""
    shards: tuple[ShardMeta, ...] = ()

    @property
    def token_type(self) -> np.dtype[Any]:
        return _ELEMENT_TYPES[1 if self.vocabulary_size <= _LARGEST_UINT16_VOCABULARY else 2]


@dataclass(frozen=True)
class Segment:
    """One document, conversation or answer as it goes into a shard."""

    document_id: str
    tokens: TokenArray
    text_bytes: int
    """UTF-8 bytes of the text whose tokens are targets: of a document all of it, of a conversation the answers."""
    supervised: NDArray[np.uint8] | None = None
    """1 where the token is a target of the loss; None in a set of documents, where all are."""
    damage: str | None = None
    """Of a preference: what is wrong with the rejected answer."""


@dataclass(frozen=True)
class TokenShard:
    """One source's part of a split, mapped into memory; D documents, N tokens."""

    source: str
    tokens: TokenArray
    """(N,) ids, read-only."""
    supervised: NDArray[np.uint8] | None
    """(N,) 1 where a token is a target of the loss, else 0; None: all are."""
    starts: NDArray[np.int64]
    """(D,) where each document begins. In a set of preferences the even ones are chosen answers, the odd ones the rejected."""
    lengths: NDArray[np.int64]
    """(D,) tokens of each document, without the padding that may follow it."""
    text_bytes: NDArray[np.int64]
    """(D,) UTF-8 bytes of the text whose tokens are targets."""
    document_ids: pa.ChunkedArray
    """(D,) as the corpus names them; the two answers of a pair share one."""
    damages: pa.ChunkedArray | None
    """(D,) kind of damage of the pair that a segment belongs to; None unless this is a set of preferences."""


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

    def check_ids(self) -> None:
        """Read every token and raise DataError for the first id outside the vocabulary; costs one pass over the files."""
        for meta, shard in self._shards:
            for start in range(0, meta.tokens, _PART_BYTES):
                outside = np.flatnonzero(shard.tokens[start : start + _PART_BYTES] >= self.vocabulary_size)
                if outside.size:
                    place = start + int(outside[0])
                    raise DataError(
                        f"{meta.path(self.folder, 'tokens')} holds id {shard.tokens[place]} at token {place:,}, "
                        f"the vocabulary ends at {self.vocabulary_size - 1}",
                        _REMEDY,
                    )


def open_token_set(folder: Path) -> TokenSet:
    """Map the shards of a folder; checks headers, sizes and document starts, not the ids (see `TokenSet.check_ids`).

    Raises DataError naming the file, what was found and what was expected.
    """
    meta = _read_meta(folder)
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


def record_shards(folder: Path, added: TokenSetMeta) -> None:
    """Write `tokens.json`, or add the shards of another split to the one that is there."""
    shards = added.shards
    if (folder / META_FILE).is_file():
        known = _read_meta(folder)
        assert replace(known, shards=()) == replace(added, shards=()), "the splits of a set are made alike"
        assert not {(shard.split, shard.source) for shard in known.shards} & {(shard.split, shard.source) for shard in shards}
        shards = known.shards + shards
    disk.write_json(folder / META_FILE, {"format_version": FORMAT_VERSION, **asdict(replace(added, shards=shards))})


class ShardWriter:
    """Writes one shard, document by document, in bounded memory; nothing counts before `close`."""

    def __init__(self, folder: Path, split: Split, source: str, meta: TokenSetMeta) -> None:
        self._meta = meta
        self._shard = ShardMeta(split, source, documents=0, tokens=0)
        disk.make_folder(folder)
        self._tokens = _ElementFile(self._shard.path(folder, "tokens"), meta.token_type, meta.tokenizer_sha256)
        self._supervised: _ElementFile | None = None
        if meta.row_tokens is not None:
            self._supervised = _ElementFile(self._shard.path(folder, "supervised"), _ELEMENT_TYPES[3], meta.tokenizer_sha256)
        self._index = pa.ipc.new_file(str(self._shard.path(folder, "documents")), _INDEX_SCHEMA)
        self._rows: list[tuple[str, int, int, int, str | None]] = []
        self._documents = 0

    def append(self, segment: Segment) -> None:
        """Add a document behind what is there."""
        self._rows.append((segment.document_id, self._tokens.count, len(segment.tokens), segment.text_bytes, segment.damage))
        self._tokens.append(segment.tokens)
        if self._supervised is not None:
            assert segment.supervised is not None, "a row set needs to know the targets of the loss"
            assert len(segment.supervised) == len(segment.tokens)
            self._supervised.append(segment.supervised)
        if len(self._rows) == _INDEX_BATCH:
            self._flush_index()

    def append_batch(self, document_ids: Sequence[str], tokens: TokenArray, lengths: NDArray[np.int64], text_bytes: Sequence[int]) -> None:
        """Add many documents of a continuous stream at once: `tokens` is all of them, one behind the other, of `lengths` tokens."""
        assert self._supervised is None, "only a continuous stream is written in batches"
        starts = self._tokens.count + np.cumsum(lengths) - lengths
        self._rows += zip(document_ids, starts.tolist(), lengths.tolist(), text_bytes, itertools.repeat(None), strict=False)
        self._tokens.append(tokens)
        if len(self._rows) >= _INDEX_BATCH:
            self._flush_index()

    def pad(self, token: int, count: int) -> None:
        """Fill the rest of a row; padding is never a target and belongs to no document."""
        assert self._supervised is not None, "a continuous stream has no padding"
        self._tokens.append(np.full(count, token, dtype=self._meta.token_type))
        self._supervised.append(np.zeros(count, dtype=np.uint8))

    def close(self) -> ShardMeta:
        """Write what is left, and the headers, which need the final counts."""
        self._flush_index()
        self._index.close()
        self._tokens.close()
        if self._supervised is not None:
            self._supervised.close()
        return replace(self._shard, documents=self._documents, tokens=self._tokens.count)

    def _flush_index(self) -> None:
        if self._rows:
            columns = [pa.array(column, field.type) for column, field in zip(zip(*self._rows, strict=True), _INDEX_SCHEMA, strict=True)]
            self._index.write_batch(pa.record_batch(columns, schema=_INDEX_SCHEMA))
            self._documents += len(self._rows)
            self._rows.clear()


class _ElementFile:
    """A header and a flat array. The header comes first and counts what follows, so parts wait beside it until `close`."""

    def __init__(self, path: Path, element_type: np.dtype[Any], tokenizer_sha256: str) -> None:
        self.count = 0
        self._path, self._type, self._sha256 = path, element_type, tokenizer_sha256
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._parts: list[Path] = []

    def append(self, elements: NDArray[Any]) -> None:
        content = elements.astype(self._type, copy=False).tobytes()
        self.count += len(elements)
        self._buffer.append(content)
        self._buffered_bytes += len(content)
        if self._buffered_bytes >= _PART_BYTES:
            part = self._path.with_name(f"{self._path.name}.part-{len(self._parts):05d}")
            disk.write_bytes(part, b"".join(self._buffer))
            self._parts.append(part)
            self._buffer, self._buffered_bytes = [], 0

    def close(self) -> None:
        header = pack_header(self._type, self.count, self._sha256)
        parts = (part.read_bytes() for part in self._parts)
        disk.write_bytes(self._path, itertools.chain([header], parts, [b"".join(self._buffer)]))
        for part in self._parts:
            disk.remove(part)


def pack_header(element_type: np.dtype[Any], count: int, tokenizer_sha256: str) -> bytes:
    """The 64 bytes in front of a flat array of `count` elements."""
    code = next(code for code, known in _ELEMENT_TYPES.items() if known == element_type)
    return _HEADER.pack(_MAGIC, FORMAT_VERSION, code, count, bytes.fromhex(tokenizer_sha256)[:16])


def token_array(ids: Sequence[int], meta: TokenSetMeta) -> TokenArray:
    """Ids in the element type of a token set."""
    return np.array(ids, dtype=meta.token_type)


def _open_shard(folder: Path, meta: TokenSetMeta, shard: ShardMeta) -> TokenShard:
    tokens = _map_elements(shard.path(folder, "tokens"), meta.token_type, shard.tokens, meta.tokenizer_sha256)
    supervised = None
    if meta.row_tokens is not None:
        supervised = _map_elements(shard.path(folder, "supervised"), _ELEMENT_TYPES[3], shard.tokens, meta.tokenizer_sha256)
    path = shard.path(folder, "documents")
    index = _read_index(path)
    if index.num_rows != shard.documents:
        raise DataError(f"{path} lists {index.num_rows:,} documents, {META_FILE} says {shard.documents:,}", _REMEDY)
    starts, lengths = index["start"].to_numpy(), index["token_count"].to_numpy()
    _check_layout(path, meta, starts, lengths, shard.tokens)
    damages = index["damage"] if meta.content == "preferences" else None
    return TokenShard(shard.source, tokens, supervised, starts, lengths, index["text_bytes"].to_numpy(), index["id"], damages)


def _map_elements(path: Path, element_type: np.dtype[Any], count: int, tokenizer_sha256: str) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"{path} is missing, {META_FILE} names it", _REMEDY)
    size_bytes, expected_bytes = path.stat().st_size, _HEADER.size + count * element_type.itemsize
    if size_bytes != expected_bytes:
        raise DataError(f"{path} is {size_bytes:,} bytes long, expected {expected_bytes:,} for {count:,} tokens", _REMEDY)
    with path.open("rb") as file:
        found = _HEADER.unpack(file.read(_HEADER.size))
    expected = _HEADER.unpack(pack_header(element_type, count, tokenizer_sha256))
    names = ("magic", "format version", "element type", "token count", "tokenizer")
    for name, value, wanted in zip(names, found, expected, strict=True):
        if value != wanted:
            shown, expected_shown = ((item.hex() if isinstance(item, bytes) else item) for item in (value, wanted))
            raise DataError(f"{path}: the header's {name} is {shown}, expected {expected_shown}", _REMEDY)
    if count == 0:
        return np.empty(0, dtype=element_type)
    return np.memmap(path, dtype=element_type, mode="r", offset=_HEADER.size, shape=(count,))


def _read_index(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as file:
            index = pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is no Arrow file that can be read: {error}", _REMEDY) from error
    if index.schema != _INDEX_SCHEMA:
        raise DataError(f"{path} has the columns {index.schema.names}, expected {_INDEX_SCHEMA.names}", _REMEDY)
    return index


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
        raise DataError(f"{path}: the documents it lists do not fit the {count:,} tokens of the shard", _REMEDY)


def _read_meta(folder: Path) -> TokenSetMeta:
    path = folder / META_FILE
    if not path.is_file():
        raise DataError(f"there is no token set in {folder} ({META_FILE} is missing)", "make one: fledge pack RECIPE")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.pop("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format {version}, this Fledge reads {FORMAT_VERSION}", "use the Fledge that wrote it")
        meta = TokenSetMeta(**{**raw, "shards": tuple(ShardMeta(**shard) for shard in raw["shards"])})
        _check_meta(meta)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} does not describe a token set: {error}", _REMEDY) from error
    return meta


def _check_meta(meta: TokenSetMeta) -> None:
    """ValueError for values no set can have; names of sources become names of files, so they must be plain."""
    if meta.content not in get_args(Content):
        raise ValueError(f"content is {meta.content!r}")
    if len(bytes.fromhex(meta.tokenizer_sha256)) != 32:
        raise ValueError(f"tokenizer_sha256 is {meta.tokenizer_sha256!r}")
    numbers = {"vocabulary_size": meta.vocabulary_size, **({} if meta.row_tokens is None else {"row_tokens": meta.row_tokens})}
    for name, value in (*numbers.items(), *_shard_counts(meta)):
        if type(value) is not int or value <= 0:
            raise ValueError(f"{name} is {value!r}")
    if (meta.row_tokens is None) != (meta.content == "documents"):
        raise ValueError(f"row_tokens is {meta.row_tokens} for {meta.content}")
    names = [(shard.split, shard.source) for shard in meta.shards]
    for split, source in names:
        if split not in get_args(Split) or not _SOURCE_NAME.fullmatch(source) or names.count((split, source)) > 1:
            raise ValueError(f"the shard {split}-{source} is misnamed or listed twice")


def _shard_counts(meta: TokenSetMeta) -> Iterator[tuple[str, int]]:
    for shard in meta.shards:
        yield f"the number of documents of {shard.split}-{shard.source}", shard.documents
        yield f"the number of tokens of {shard.split}-{shard.source}", shard.tokens
