"""The plain form in which others publish tokens: `train.bin` and `val.bin`, headerless little-endian ids, and `data_meta.json`.

    train.bin, val.bin     uint16 ids, or uint32 if `data_meta.json` says so; val.bin may be missing
    data_meta.json         if it is there, `train_tokens`, `val_tokens`, `vocab_size` and `dtype` are compared with what is found
    tokenizer/             the tokenizer the ids were made with

Nothing in such a file says which tokenizer made it or where a document begins, so an import takes the tokenizer as given, refuses ids
outside its vocabulary, and finds documents by their end (or start) ids. What comes out is a token set like any other. After nanoGPT.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.corpus.document import Split
from fledge.tokens.packing import token_set_meta
from fledge.tokens.shard_format import ShardMeta, record_shards
from fledge.tokens.shard_writer import IndexRows, ShardWriter
from fledge.tokens.shards import TokenSet
from fledge.tokens.tokenizer import Tokenizer, require_same_tokenizer
from fledge.tokens.unpacking import token_stream

BIN_META = "data_meta.json"
BIN_FILES: Mapping[Split, str] = {"train": "train.bin", "validation": "val.bin"}
BIN_TOKENIZER = "tokenizer"
HUB_BYTES: Mapping[str, int] = {"ark296/gpt-training-data": 2_020_000_000}
"""Of both files of the repositories that our recipes name, for planning: here 1B and 10M ids of 16 bits."""
SOURCE = "bin"
"""Name of the one source of an imported set."""

_PIECE_TOKENS = 1 << 22
_META_BYTES = 1 << 24
_REMEDY = "fetch the folder again, or name the tokenizer it was made with (pack.tokenizer)"


def import_bin(folder: Path, tokenizer: Tokenizer, target: Path) -> dict[Split, dict[str, Any]]:
    """Make a token set of a plain folder; returns the figures of each split.

    Raises DataError naming the file, and the position of the first id that the tokenizer does not have.
    """
    told = _read_bin_meta(folder)
    element_type = _element_type(folder, told)
    if told.get("vocab_size") not in (None, tokenizer.vocabulary_size):
        raise DataError(
            f"{folder / BIN_META}: vocab_size is {told['vocab_size']}, the tokenizer has {tokenizer.vocabulary_size:,} entries", _REMEDY
        )
    if "tokenizer_sha256" in told:
        require_same_tokenizer(str(told["tokenizer_sha256"]), tokenizer.sha256, str(folder / BIN_META))
    if not (folder / BIN_FILES["train"]).is_file():
        raise DataError(f"{folder / BIN_FILES['train']} is missing", "name a folder with train.bin, and val.bin if there is one")
    meta = token_set_meta("documents", tokenizer, row_tokens=None)
    shards = []
    for split, name in BIN_FILES.items():
        if (folder / name).is_file():
            count = _token_count(folder / name, element_type, told.get(f"{name.removesuffix('.bin')}_tokens"))
            shards.append(_import_file(folder / name, element_type, count, tokenizer, ShardWriter(target, split, SOURCE, meta), split))
    record_shards(target, replace(meta, shards=tuple(shards)))
    return {split: _figures([shard for shard in shards if shard.split == split]) for split in BIN_FILES}


def export_bin(token_set: TokenSet, tokenizer: Tokenizer, folder: Path) -> dict[Split, int]:
    """Write a set of documents in the plain form, sources one behind the other; returns the tokens of each split.

    Documents in rows are put together again, so their padding is left out. Raises DataError for conversations and preferences, whose
    masks this form cannot hold.
    """
    if token_set.content != "documents":
        raise DataError(f"{token_set.folder} holds {token_set.content}: plain .bin files have no mask", "export the documents instead")
    counts: dict[Split, int] = {}
    for split, name in BIN_FILES.items():
        if token_set.shards(split):
            digest = disk.write_bytes(folder / name, _stream_bytes(token_set, split))
            counts[split] = digest.size_bytes // token_set.meta.token_type.itemsize
    disk.write_json(folder / BIN_META, _describe(token_set, tokenizer, counts))
    for path in sorted(tokenizer.folder.iterdir()):
        # The manifest is of the folder it lies in, which is another one.
        if path.is_file() and path.name != "manifest.json":
            disk.write_bytes(folder / BIN_TOKENIZER / path.name, path.read_bytes())
    return counts


def _describe(token_set: TokenSet, tokenizer: Tokenizer, counts: Mapping[Split, int]) -> dict[str, Any]:
    return {
        "dtype": token_set.meta.token_type.name,
        "vocab_size": token_set.vocabulary_size,
        "train_tokens": counts.get("train", 0),
        "val_tokens": counts.get("validation", 0),
        "train_documents": _document_count(token_set, "train"),
        "val_documents": _document_count(token_set, "validation"),
        "eos_token_id": token_set.meta.end_of_text,
        "document_start": list(tokenizer.document_start),
        "document_end": list(tokenizer.document_end),
        "tokenizer_sha256": token_set.tokenizer_sha256,
        "sources": {split: {shard.source: len(shard.tokens) for shard in token_set.shards(split)} for split in counts},
    }


def _document_count(token_set: TokenSet, split: Split) -> int:
    return sum(len(np.unique(shard.documents)) for shard in token_set.shards(split))


def _stream_bytes(token_set: TokenSet, split: Split) -> Iterator[bytes]:
    for shard in token_set.shards(split):
        tokens = token_stream(shard).tokens
        for start in range(0, len(tokens), _PIECE_TOKENS):
            yield tokens[start : start + _PIECE_TOKENS].tobytes()


def _read_bin_meta(folder: Path) -> dict[str, Any]:
    path = folder / BIN_META
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _META_BYTES:
            raise ValueError(f"it is {path.stat().st_size:,} bytes long")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", "mend it, or remove it") from error
    return told


def _element_type(folder: Path, told: Mapping[str, Any]) -> np.dtype[Any]:
    name = told.get("dtype", "uint16")
    if name not in ("uint16", "uint32"):
        raise DataError(f"{folder / BIN_META}: dtype is {name!r}, only uint16 and uint32 are read", "convert the files")
    return np.dtype("<u2" if name == "uint16" else "<u4")


def _token_count(path: Path, element_type: np.dtype[Any], told: Any) -> int:
    size_bytes = path.stat().st_size
    count, rest = divmod(size_bytes, element_type.itemsize)
    if rest or not count:
        raise DataError(f"{path} is {size_bytes:,} bytes long, which is no number of {element_type.name} ids", _REMEDY)
    if told is not None and told != count:
        raise DataError(f"{path} holds {count:,} ids, {BIN_META} says {told}", _REMEDY)
    return count


def _import_file(path: Path, element_type: np.dtype[Any], count: int, tokenizer: Tokenizer, writer: ShardWriter, split: Split) -> ShardMeta:
    borders = _Borders(tokenizer, split)
    with console.progress(f"import {path.name}", count, "tokens") as progress, path.open("rb") as file:
        place = 0
        while content := file.read(_PIECE_TOKENS * element_type.itemsize):
            tokens = np.frombuffer(content, element_type)
            outside = np.flatnonzero(tokens >= tokenizer.vocabulary_size)
            if outside.size:
                first = int(outside[0])
                raise DataError(
                    f"{path} holds id {tokens[first]} at token {place + first:,}, the tokenizer's vocabulary ends at "
                    f"{tokenizer.vocabulary_size - 1}",
                    _REMEDY,
                )
            writer.append_tokens(tokens)
            writer.append_index(borders.finished(tokens, place))
            place += len(tokens)
            progress.advance(len(tokens))
    if place != count:
        raise DataError(f"{path} changed while it was read: {count:,} ids became {place:,}", "run the same command again")
    writer.append_index(borders.last(count))
    return writer.close()


class _Borders:
    """Finds documents in a stream that comes in pieces: behind each end id, or where there is none before each start id."""

    def __init__(self, tokenizer: Tokenizer, split: Split) -> None:
        ends_documents = bool(tokenizer.document_end)
        marks = tokenizer.document_end[-1:] or tokenizer.document_start[:1]
        self._mark = marks[0] if marks else None
        self._behind = 1 if ends_documents else 0
        self._byte_lengths, self._split = tokenizer.byte_lengths, split
        self._start, self._bytes, self._number = 0, 0, 0

    def finished(self, tokens: NDArray[Any], place: int) -> IndexRows:
        """The documents that are known to have ended within or before this piece, which begins at `place`."""
        found = np.empty(0, np.int64) if self._mark is None else np.flatnonzero(tokens == self._mark) + self._behind
        borders = found[(found + place > self._start)] + place
        text = np.concatenate([[0], np.cumsum(self._byte_lengths[tokens])])
        starts = np.concatenate([[self._start], borders[:-1]])[: len(borders)].astype(np.int64)
        # A document that began in an earlier piece brings the bytes it had there.
        text_bytes = text[borders - place] - text[np.maximum(starts - place, 0)]
        if len(borders):
            text_bytes[0] += self._bytes
            self._start, self._bytes = int(borders[-1]), 0
        self._bytes += int(text[-1] - text[max(self._start - place, 0)])
        return self._rows(starts, borders - starts, text_bytes)

    def last(self, count: int) -> IndexRows:
        """What is left when the stream ends after `count` tokens."""
        starts = np.array([self._start] if self._start < count else [], np.int64)
        return self._rows(starts, count - starts, np.full(len(starts), self._bytes))

    def _rows(self, starts: NDArray[np.int64], lengths: NDArray[np.int64], text_bytes: NDArray[np.int64]) -> IndexRows:
        ids = [f"{self._split}-{number}" for number in range(self._number, self._number + len(starts))]
        self._number += len(starts)
        return IndexRows(ids, starts, lengths, text_bytes)


def _figures(shards: list[ShardMeta]) -> dict[str, Any]:
    tokens = sum(shard.tokens for shard in shards)
    return {
        "documents": sum(shard.documents for shard in shards),
        "tokens": tokens,
        "supervised_tokens": tokens,
        "padding_share": 0.0,
        "tokens_by_source": {shard.source: shard.tokens for shard in shards},
    }
