"""The unit that flows: a document, a conversation or a preference pair, in memory as a dataclass and on disk as a Parquet row.

A corpus folder holds one content in shards `train-00000.parquet`, `validation-00000.parquet`, ... whose columns are the
fields of the dataclass; shards of documents may be JSON Lines instead (`.jsonl`, `.jsonl.zst`). `group` names the cluster of near
duplicates a row belongs to; it decides the split, so equal groups always lie on the same side, also across contents derived from
the same text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fledge.core.errors import DataError
from fledge.corpus.sources.settings import Content as Content

Split = Literal["train", "validation"]
Role = Literal["system", "user", "assistant"]

_READ_BATCH_ROWS = 1_024
_SHARD_SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst")


@dataclass(frozen=True)
class Document:
    """A text to continue."""

    text: str
    id: str
    source: str
    group: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of user and assistant in alternation, ending with the assistant; a system message may come first."""

    messages: tuple[Message, ...]
    id: str
    source: str
    group: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which `chosen` is the better; `damage` says how `rejected` was made, "" if unknown."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    damage: str
    id: str
    source: str
    group: str


Row = Document | Conversation | Preference

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ORIGIN = [("id", pa.string()), ("source", pa.string()), ("group", pa.string())]

SCHEMAS: dict[Content, pa.Schema] = {
    "documents": pa.schema([("text", pa.string()), *_ORIGIN]),
    "conversations": pa.schema([("messages", _MESSAGES), *_ORIGIN]),
    "preferences": pa.schema(
        [("prompt", _MESSAGES), ("chosen", pa.string()), ("rejected", pa.string()), ("damage", pa.string()), *_ORIGIN]
    ),
}


def as_columns(row: Row) -> dict[str, Any]:
    """A row as the plain values of its Parquet columns."""
    return {name: _plain_messages(value) if isinstance(value, tuple) else value for name, value in vars(row).items()}


def shard_paths(folder: Path, split: Split) -> list[Path]:
    """The shards of a split in reading order; empty if nothing was held out."""
    return sorted(path for path in folder.glob(f"{split}-*") if path.name.endswith(_SHARD_SUFFIXES))


def read_documents(folder: Path, split: Split) -> Iterator[Document]:
    """The documents of a split in the order they were written. Raises DataError if the folder holds none or another content."""
    for row in _read_rows(folder, split, "documents"):
        yield Document(**row)


def read_conversations(folder: Path, split: Split) -> Iterator[Conversation]:
    """The conversations of a split in the order they were written. Raises DataError if the folder holds none or another content."""
    for row in _read_rows(folder, split, "conversations"):
        yield Conversation(**{**row, "messages": _messages(row["messages"])})


def read_preferences(folder: Path, split: Split) -> Iterator[Preference]:
    """The preference pairs of a split in the order they were written. Raises DataError if the folder holds none or another content."""
    for row in _read_rows(folder, split, "preferences"):
        yield Preference(**{**row, "prompt": _messages(row["prompt"])})


def _read_rows(folder: Path, split: Split, content: Content) -> Iterator[dict[str, Any]]:
    paths = shard_paths(folder, split)
    if not paths and not shard_paths(folder, "train"):
        raise DataError(f"{folder} holds no corpus of {content}", "run the corpus stage, or name the folder it made")
    for path in paths:
        yield from _read_shard(path, content)


def _read_shard(path: Path, content: Content) -> Iterator[dict[str, Any]]:
    if path.suffix != ".parquet":
        yield from _read_json_lines(path, content)
        return
    expected = SCHEMAS[content]
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, file.schema_arrow, expected, content)
            for batch in file.iter_batches(_READ_BATCH_ROWS, columns=expected.names):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "restore the file, or repeat the corpus stage with --force") from error


def _read_json_lines(path: Path, content: Content) -> Iterator[dict[str, Any]]:
    names = SCHEMAS[content].names
    try:
        with pa.input_stream(path) as stream, io.BufferedReader(stream) as lines:
            for line in lines:
                row = json.loads(line)
                yield {name: row[name] for name in names}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", "restore the file, or repeat the corpus stage with --force") from error


def _require_columns(path: Path, found: pa.Schema, expected: pa.Schema, content: Content) -> None:
    for field in expected:
        position = found.get_field_index(field.name)
        if position < 0:
            shown = ", ".join(found.names)
            raise DataError(f"{path} has no column {field.name!r} (it has {shown})", f"name a folder that holds {content}")
        if found.field(position).type != field.type:
            raise DataError(
                f"{path}: column {field.name!r} holds {found.field(position).type}, not {field.type}",
                f"name a folder that holds {content}",
            )


def _messages(raw: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(**message) for message in raw)


def _plain_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
