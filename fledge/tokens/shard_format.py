"""What a token set says of itself: `tokens.json`, and a header of 64 bytes in front of every array. Both say the same.

    header   magic, format version, element type, content, number of elements, first 16 bytes of the tokenizer's SHA-256, vocabulary
             size, tokens in a row, end-of-text id, lowest and highest id, CRC-32 of the checksums of the blocks that follow

A reader compares every field, so a description and an array that were not written together are noticed before anything is read,
and the error names the file and the field. After Megatron's indexed dataset.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus.document import Content, Split

META_FILE = "tokens.json"
FORMAT_VERSION = 2
REMEDY = "restore the file, or pack again: fledge pack RECIPE --force"

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]

ShardPart = Literal["tokens", "supervised", "documents", "tokens.crc32", "supervised.crc32"]
FLAGS: np.dtype[Any] = np.dtype("u1")
"""Elements of the `.supervised` array."""

_HEADER = struct.Struct("<8sIHHQ16s6I")
HEADER_BYTES = _HEADER.size
_HEADER_FIELDS = (
    "magic",
    "format version",
    "element type",
    "content",
    "token count",
    "tokenizer",
    "vocabulary size",
    "row length",
    "end-of-text id",
    "lowest id",
    "highest id",
    "CRC-32 of the block checksums",
)
_MAGIC = b"FLEDGETK"
_NO_ID = 0xFFFFFFFF
_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 2: np.dtype("<u4"), 3: FLAGS}
_LARGEST_UINT16_VOCABULARY = 65_536
_SOURCE_NAME = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True)
class ShardMeta:
    """One entry of `tokens.json`."""

    split: Split
    source: str
    documents: int
    """Rows of the index: documents, parts of documents that were cut to fit rows, conversations, or answers (two to a pair)."""
    tokens: int
    """Token ids, padding included."""
    lowest_id: int
    highest_id: int
    """Of all ids, padding included."""
    index_crc32: int
    """Of the whole `.documents` file."""
    tokens_crc32: int
    """Of the checksums of the blocks of `.tokens`."""
    supervised_crc32: int | None
    """Of the checksums of the blocks of `.supervised`; None in a stream, which has no such file."""

    def path(self, folder: Path, part: ShardPart) -> Path:
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
    end_of_text: int | None = None
    """The tokenizer's id for the end of a text; None if it has none."""

    @property
    def token_type(self) -> np.dtype[Any]:
        return _ELEMENT_TYPES[1 if self.vocabulary_size <= _LARGEST_UINT16_VOCABULARY else 2]


def pack_header(meta: TokenSetMeta, shard: ShardMeta, part: Literal["tokens", "supervised"]) -> bytes:
    """The 64 bytes in front of an array of a shard."""
    element_type = meta.token_type if part == "tokens" else FLAGS
    checksums_crc32 = shard.tokens_crc32 if part == "tokens" else shard.supervised_crc32
    return _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        next(code for code, known in _ELEMENT_TYPES.items() if known == element_type),
        get_args(Content).index(meta.content),
        shard.tokens,
        bytes.fromhex(meta.tokenizer_sha256)[:16],
        meta.vocabulary_size,
        meta.row_tokens or 0,
        _NO_ID if meta.end_of_text is None else meta.end_of_text,
        shard.lowest_id,
        shard.highest_id,
        checksums_crc32,
    )


def require_header(path: Path, expected: bytes) -> None:
    """Compare a file's header with what `tokens.json` makes of it. Raises DataError naming the first field that differs."""
    with path.open("rb") as file:
        content = file.read(HEADER_BYTES)
    for name, value, wanted in zip(_HEADER_FIELDS, _HEADER.unpack(content), _HEADER.unpack(expected), strict=True):
        if value != wanted:
            shown, expected_shown = ((item.hex() if isinstance(item, bytes) else item) for item in (value, wanted))
            raise DataError(f"{path}: the header's {name} is {shown}, {META_FILE} expects {expected_shown}", REMEDY)


def token_array(ids: Sequence[int], meta: TokenSetMeta) -> TokenArray:
    """Ids in the element type of a token set."""
    return np.array(ids, dtype=meta.token_type)


def record_shards(folder: Path, added: TokenSetMeta) -> None:
    """Write `tokens.json`, or add the shards of another split to the one that is there."""
    shards = added.shards
    if (folder / META_FILE).is_file():
        known = read_meta(folder)
        assert replace(known, shards=()) == replace(added, shards=()), "the splits of a set are made alike"
        assert not {(shard.split, shard.source) for shard in known.shards} & {(shard.split, shard.source) for shard in shards}
        shards = known.shards + shards
    described = {"format_version": FORMAT_VERSION, "element_type": added.token_type.name, **asdict(replace(added, shards=shards))}
    disk.write_json(folder / META_FILE, described)


def read_meta(folder: Path) -> TokenSetMeta:
    """Read and check `tokens.json`. Raises DataError naming what is wrong with it."""
    path = folder / META_FILE
    if not path.is_file():
        raise DataError(f"there is no token set in {folder} ({META_FILE} is missing)", "make one: fledge pack RECIPE")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version, element_type = raw.pop("format_version"), raw.pop("element_type", None)
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version is {version}, this Fledge reads {FORMAT_VERSION}", "pack again: fledge pack RECIPE --force"
            )
        meta = TokenSetMeta(**{**raw, "shards": tuple(ShardMeta(**shard) for shard in raw["shards"])})
        _check_meta(meta)
        if element_type != meta.token_type.name:
            raise ValueError(f"element_type is {element_type!r}, a vocabulary of {meta.vocabulary_size:,} has {meta.token_type.name}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} does not describe a token set: {error}", REMEDY) from error
    return meta


def _check_meta(meta: TokenSetMeta) -> None:
    """ValueError for values no set can have; names of sources become names of files, so they must be plain."""
    if meta.content not in get_args(Content):
        raise ValueError(f"content is {meta.content!r}")
    if len(bytes.fromhex(meta.tokenizer_sha256)) != 32:
        raise ValueError(f"tokenizer_sha256 is {meta.tokenizer_sha256!r}")
    for name, value, lowest, highest in _numbers(meta):
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"{name} is {value!r}, not in {lowest} to {highest}")
    if meta.row_tokens is None and meta.content != "documents":
        raise ValueError(f"row_tokens is null for {meta.content}")
    names = [(shard.split, shard.source) for shard in meta.shards]
    for shard in meta.shards:
        split, source = shard.split, shard.source
        if split not in get_args(Split) or not _SOURCE_NAME.fullmatch(source) or names.count((split, source)) > 1:
            raise ValueError(f"the shard {split}-{source} is misnamed or listed twice")
        if (shard.supervised_crc32 is None) != (meta.row_tokens is None):
            raise ValueError(f"supervised_crc32 of {split}-{source} is {shard.supervised_crc32} with row_tokens {meta.row_tokens}")


def _numbers(meta: TokenSetMeta) -> Iterator[tuple[str, Any, int, int]]:
    """Every number, with the least and the greatest it can be."""
    yield "vocabulary_size", meta.vocabulary_size, 1, _NO_ID - 1
    yield "row_tokens", 1 if meta.row_tokens is None else meta.row_tokens, 1, _NO_ID
    yield "end_of_text", 0 if meta.end_of_text is None else meta.end_of_text, 0, meta.vocabulary_size - 1
    for shard in meta.shards:
        name = f"{shard.split}-{shard.source}"
        yield f"documents of {name}", shard.documents, 1, 1 << 62
        yield f"tokens of {name}", shard.tokens, 1, 1 << 62
        yield f"highest_id of {name}", shard.highest_id, 0, meta.vocabulary_size - 1
        yield f"lowest_id of {name}", shard.lowest_id, 0, shard.highest_id
        for field in ("index_crc32", "tokens_crc32", "supervised_crc32"):
            yield f"{field} of {name}", 0 if getattr(shard, field) is None else getattr(shard, field), 0, _NO_ID
