"""The texts a model is evaluated on, read whole from text, JSON, JSON Lines and Parquet files.

Every string counts, wherever it stands in a file: which field holds the question, and which the answer, differs from set to set.
Other than a source of documents, of which some lines may be bad, an evaluation file must be sound: what cannot be read would protect
nothing, so it is an error.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fledge.core import disk
from fledge.core.errors import DataError

T = TypeVar("T")

SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
MAXIMUM_BYTES = 1 << 28
"""Of a file, as it lies and unpacked."""

_TEXT_SUFFIXES = (".txt", ".md")
_BATCH_ROWS = 1_024
_ZSTD_WINDOW_BYTES = 1 << 27
_LEAVE_OUT = "mend it, or leave it out of the evaluation files"


@dataclass(frozen=True)
class EvaluationFile:
    """A file that a model is evaluated on."""

    path: Path
    name: str
    """The end of its path, as long as it takes to tell it from the others; printable."""
    sha256: str


def find_evaluation_files(given: Iterable[str | Path]) -> tuple[EvaluationFile, ...]:
    """The files that paths, folders and globs name, each once, in their order (those of a folder or glob sorted).

    Raises DataError if there is none, or one is of an unknown kind or too large.
    """
    paths: dict[Path, Path] = {}
    for entry in given:
        for path in _paths(str(entry)):
            paths.setdefault(path.resolve(), path)
    names = _shortest_names(list(paths.values()))
    return tuple(EvaluationFile(path, name, _checked_digest(path)) for path, name in zip(paths.values(), names, strict=True))


def strings(file: EvaluationFile) -> Iterator[str]:
    """All strings of a file."""
    content, name = _content(file), file.path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet(file.path, content, _strings_of)
        return
    text = _text(file.path, _unpacked(file.path, content))
    if name.endswith(_TEXT_SUFFIXES):
        yield text
        return
    lines = [text] if name.endswith(".json") else text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield from _strings_in(_parsed(file.path, number, line))


def records(file: EvaluationFile) -> Iterator[tuple[int, object]]:
    """What a file holds one of per question, with its number: lines of JSON Lines, rows of Parquet, items of a JSON list; or a whole text.

    They are counted from 1. Raises DataError.
    """
    content, name = _content(file), file.path.name.lower()
    if name.endswith(".parquet"):
        yield from enumerate(_parquet(file.path, content, _rows_of), 1)
        return
    text = _text(file.path, _unpacked(file.path, content))
    if name.endswith(_TEXT_SUFFIXES):
        yield 1, text
    elif name.endswith(".json"):
        items = _parsed(file.path, 1, text)
        yield from enumerate(items if isinstance(items, list) else [items], 1)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _parsed(file.path, number, line)


def _content(file: EvaluationFile) -> bytes:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise _unreadable(file.path, error) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(f"{file.path} has changed since this command began", "leave it as it is while a command runs, and start again")
    return content


def _paths(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    # Path.glob takes no absolute pattern.
    matches = _paths_below(path) if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207
    found = sorted(match for match in matches if match.is_file())
    if not found:
        wanted = f"file that ends in {', '.join(SUFFIXES)}" if path.is_dir() else "file, folder or match"
        raise DataError(f"evaluation files: there is no {wanted} at {path}", "mend the path in decontaminate.files or evaluate.files")
    return found


def _paths_below(folder: Path) -> list[Path]:
    """Files of a known kind at any depth; hidden ones and links to folders are not followed."""
    found = []
    for parent, subfolders, names in os.walk(folder, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return found


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}", "mend its permissions, or name the files by a glob")


def _checked_digest(path: Path) -> str:
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path} ends in none of {', '.join(SUFFIXES)}", "convert it, or leave it out of the evaluation files")
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise _too_large(path)
        return disk.digest_file(path).sha256
    except OSError as error:
        raise _unreadable(path, error) from error


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """For each path as many of its last parts as tell it from the others."""
    parts = [path.absolute().parts for path in paths]
    shortest: dict[tuple[str, ...], tuple[str, ...]] = {}
    length = 1
    while len(shortest) < len(parts):
        ends = Counter(one[-length:] for one in parts)
        for one in parts:
            if ends[one[-length:]] == 1:
                shortest.setdefault(one, one[-length:])
        length += 1
    return [os.fsencode("/".join(shortest[one])).decode("utf-8", "backslashreplace") for one in parts]


def _too_large(path: Path) -> DataError:
    limit = f"{MAXIMUM_BYTES:,} bytes"
    return DataError(f"{path} holds more than {limit}, too much for an evaluation file", f"cut it into files of at most {limit}")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}", "mend its permissions or restore it")


def _unpacked(path: Path, content: bytes) -> bytes:
    """At most MAXIMUM_BYTES of content, however much a small file claims to hold."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(MAXIMUM_BYTES + 1)
        elif path.name.lower().endswith(".zst"):
            decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            with decompressor.stream_reader(content, read_across_frames=True) as packed:
                content = packed.read(MAXIMUM_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path} is damaged: {error}", "restore the compressed file from its source") from error
    if len(content) > MAXIMUM_BYTES:
        raise _too_large(path)
    return content


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", _LEAVE_OUT) from error


def _parsed(path: Path, line_number: int, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path}, line {line_number}, is not JSON: {reason}", _LEAVE_OUT) from error


def _parquet(path: Path, content: bytes, taken: Callable[[pa.RecordBatch], Iterable[T]]) -> Iterator[T]:
    """What is taken of each batch of rows."""
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as table:
            groups = range(table.metadata.num_row_groups)
            if sum(table.metadata.row_group(group).total_byte_size for group in groups) > MAXIMUM_BYTES:
                raise _too_large(path)
            for batch in table.iter_batches(_BATCH_ROWS):
                yield from taken(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}", _LEAVE_OUT) from error


def _strings_of(batch: pa.RecordBatch) -> Iterator[str]:
    for column in batch.columns:
        # Also lists of strings, structures that hold some, and dictionaries.
        if "string" in str(column.type):
            yield from _strings_in(column.to_pylist())


def _rows_of(batch: pa.RecordBatch) -> list[object]:
    return list(batch.to_pylist())


def _strings_in(value: object) -> Iterator[str]:
    """The strings of nested lists and of the values of objects."""
    remaining = [value]
    while remaining:
        value = remaining.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            remaining += value.values()
        elif isinstance(value, (list, tuple)):
            remaining += value
