"""Parquet files become rows, read by row group and only in the columns that are needed.

pyarrow decodes a batch of rows at a time from pages that are read as they come, so memory depends on the size of a page and not on
that of a row group. A batch has few rows, because rows may be whole books, or a page of a few bytes one long text many times.

Of documents a whole batch of texts stays in Arrow when each of them is usual; otherwise its rows are made one at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

from fledge.core.errors import DataError
from fledge.corpus.batches import DocumentBatch, Origins
from fledge.corpus.document import Document, Row
from fledge.corpus.rejects import Malformed, Reject, Rejects
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.records import MAXIMUM_TEXT_CHARACTERS, Node, Records
from fledge.corpus.sources.transport import shown
from fledge.corpus.sources.unpacking import opened, remedy_for_no_parquet

_BATCH_ROWS = 64  # with 16, texts of 100 characters cost twice as much to read
_BATCH_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_UNDECODABLE = b"\xff"
# Characters below, between and around these may be white space; a first hit ends the search.
_INK = r"[!-~\x{C0}-\x{167F}\x{3001}-\x{10FFFF}]"


def cut_row_groups(records: Records, file: InputFile, piece_bytes: int) -> Iterator[Piece]:
    """Consecutive row groups up to so many bytes of the needed columns, decompressed; no row group is cut."""
    with opened(file) as stored, _parquet_errors(file):
        metadata = _open(records, file, stored).metadata
        keys = list(records.all_keys.values())
        sizes = [_group_sizes(metadata.row_group(group), keys) for group in range(metadata.num_row_groups)]
    start, plain_bytes, stored_bytes = 0, 0, 0
    for group, (group_plain_bytes, group_stored_bytes) in enumerate(sizes):
        if group > start and plain_bytes + group_plain_bytes > piece_bytes:
            yield Piece((file,), start, group, stored_bytes)
            start, plain_bytes, stored_bytes = group, 0, 0
        plain_bytes += group_plain_bytes
        stored_bytes += group_stored_bytes
    yield Piece((file,), start, None, stored_bytes)


def read_rows(records: Records, file: InputFile, start: int, end: int | None, rejects: Rejects, early_share: float) -> Iterator[Row | Node]:
    """The rows of some row groups. Raises DataError if a column is missing or of another type, or the file cannot be read."""
    for number, batch in _batches(records, file, start, end):
        yield from _rows(records, file, number, batch, rejects, early_share)


def read_row_batches(
    records: Records, file: InputFile, start: int, end: int | None, rejects: Rejects, early_share: float
) -> Iterator[DocumentBatch]:
    """The same of documents, a batch at a time."""
    for number, batch in _batches(records, file, start, end):
        texts = _usual_texts(batch.column(records.keys["text"]))
        if texts is None:
            rows = _rows(records, file, number, batch, rejects, early_share)
            yield DocumentBatch.of([row for row in rows if isinstance(row, Document)])
        else:
            rejects.saw(records.source, "rows", early_share, len(texts))
            ids = [f"{records.source}:{file.name}:{number + index}" for index in range(len(texts))]
            yield DocumentBatch(texts, Origins.of_source(records.source, ids))


def _usual_texts(column: pa.Array) -> pa.LargeStringArray | None:
    """The texts, if a row of each would hold just this string, and none would be refused."""
    if column.null_count or not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        return None
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return None
    has_long = column.nbytes > MAXIMUM_TEXT_CHARACTERS
    if has_long or pc.any(pc.match_substring(column, "\r")).as_py() or not pc.all(pc.match_substring_regex(column, _INK)).as_py():
        return None
    return column.cast(pa.large_string())


def _batches(records: Records, file: InputFile, start: int, end: int | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The needed columns of some row groups, and the number in the file of the first row of each batch."""
    with opened(file) as stored, _parquet_errors(file):
        parquet = _open(records, file, stored)
        metadata = parquet.metadata
        number = sum(metadata.row_group(group).num_rows for group in range(start))
        groups = list(range(start, metadata.num_row_groups if end is None else end))
        keys = [key for key in records.all_keys.values() if parquet.schema_arrow.get_field_index(key) >= 0]
        for batch in parquet.iter_batches(_batch_rows(metadata, groups, keys), row_groups=groups, columns=keys, use_threads=False):
            yield number, batch
            number += batch.num_rows


def _rows(
    records: Records, file: InputFile, number: int, batch: pa.RecordBatch, rejects: Rejects, early_share: float
) -> Iterator[Row | Node]:
    with _parquet_errors(file):
        for values in _records(batch, batch.schema.names):
            rejects.saw(records.source, "rows", early_share)
            try:
                row = records.row(values, f"{records.source}:{file.name}:{number}")
            except Malformed as error:
                rejects.add(Reject(records.source, file.name, number, 0, str(error)))
            else:
                yield row
            number += 1


def _open(records: Records, file: InputFile, stored: BinaryIO) -> pq.ParquetFile:
    # Without pre_buffer the pages of a column are read one after another instead of all at once.
    parquet = pq.ParquetFile(stored, pre_buffer=False, buffer_size=_READ_BYTES)
    for name, key in records.all_keys.items():
        if name in records.keys or parquet.schema_arrow.get_field_index(key) >= 0:
            _require_column(file, parquet.schema_arrow, name, key)
    return parquet


def _require_column(file: InputFile, schema: pa.Schema, name: str, key: str) -> None:
    position = schema.get_field_index(key)
    if position < 0:
        problem = f"{shown(file.address)} has no column {key!r} (it has {', '.join(schema.names)})"
        raise DataError(problem, "name the column in `fields` of the source")
    found = schema.field(position).type
    wanted = {"messages": "messages", "rank": "numbers", **dict.fromkeys(("prompt", "chosen", "rejected"), "text or messages")}.get(
        name, "text"
    )
    holds = {"text": _holds_text(found), "messages": _holds_messages(found), "numbers": kinds.is_integer(found) or kinds.is_floating(found)}
    if not any(holds[kind] for kind in wanted.split(" or ")) and not kinds.is_null(found):
        problem = f"{shown(file.address)}: column {key!r} holds {found}, not {wanted}"
        remedy = "name the right column in `fields` of the source; messages are a list of {role, content}, of {from, value} or of texts"
        raise DataError(problem, remedy)


def _holds_text(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _holds_text(kind.value_type)
    tests = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)
    return any(test(kind) for test in tests)


def _holds_messages(kind: pa.DataType) -> bool:
    if not (kinds.is_list(kind) or kinds.is_large_list(kind)):
        return False
    if not kinds.is_struct(kind.value_type):
        return _holds_text(kind.value_type)
    fields = {field.name: field.type for field in kind.value_type}
    pairs = (("role", "content"), ("from", "value"))
    return any(all(name in fields and _holds_text(fields[name]) for name in pair) for pair in pairs)


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int], keys: Sequence[str]) -> int:
    plain_bytes = sum(_group_sizes(metadata.row_group(group), keys)[0] for group in groups)
    rows: int = sum(metadata.row_group(group).num_rows for group in groups)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, plain_bytes)))


def _group_sizes(group: pq.RowGroupMetaData, keys: Sequence[str]) -> tuple[int, int]:
    """Bytes of the needed columns of a row group, decompressed and as stored."""
    columns = [group.column(position) for position in range(group.num_columns)]
    # A nested column has one chunk per leaf, like messages.list.element.role.
    starts = tuple(f"{key}." for key in keys)
    needed = [column for column in columns if f"{column.path_in_schema}.".startswith(starts)]
    return sum(column.total_uncompressed_size for column in needed), sum(column.total_compressed_size for column in needed)


def _records(batch: pa.RecordBatch, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    columns = [map(_plain, batch.column(key)) for key in keys]
    return (dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True))


def _plain(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        # Parquet does not promise that a string is UTF-8. What reads these bytes says so.
        return _UNDECODABLE


@contextlib.contextmanager
def _parquet_errors(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{shown(file.address)} cannot be read as Parquet: {reason}", remedy_for_no_parquet(file)) from error
