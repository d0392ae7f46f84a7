"""Files that are read from their beginning to their end as one value or table: a JSON list of objects, and CSV.

A record that cannot be used is a reject with its place; a file that is no such list or table is an error.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any

import orjson

from fledge.core.errors import DataError
from fledge.corpus.document import Row
from fledge.corpus.rejects import Malformed, Reject, Rejects, value_kind
from fledge.corpus.sources.files import UTF8_BOM
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.records import MAXIMUM_TEXT_CHARACTERS, Node, Records
from fledge.corpus.sources.transport import shown
from fledge.corpus.sources.unpacking import Damaged, GivenUp, Unpacked, unpacked

MAXIMUM_FILE_BYTES = 1 << 30
"""Of a JSON list, which takes several times as much memory: larger sets come as lines or Parquet."""


def read_list(records: Records, file: InputFile, rejects: Rejects, early_share: float) -> Iterator[Row | Node]:
    """The rows of a JSON list, whose rejects are numbered by their place in it, from 1. Raises DataError."""
    try:
        with unpacked(file) as stream:
            content = stream.read(MAXIMUM_FILE_BYTES + 1)
    except (Damaged, GivenUp) as error:
        raise DataError(f"{shown(file.address)} is damaged: {error}", "restore the file from its source") from error
    if len(content) > MAXIMUM_FILE_BYTES:
        problem = f"{shown(file.address)} is longer than {MAXIMUM_FILE_BYTES:,} bytes, and is one list"
        raise DataError(problem, "make lines of it, kind: jsonl, for example with: jq -c '.[]'")
    try:
        values = orjson.loads(content.removeprefix(UTF8_BOM))
    except orjson.JSONDecodeError as error:
        remedy = "mend it; if it has an object on each line, it is of kind: jsonl"
        raise DataError(f"{shown(file.address)} is not JSON: {error}", remedy) from error
    if not isinstance(values, list):
        raise DataError(f"{shown(file.address)} holds {value_kind(values)}, not a list", "name a file that is a list of objects")
    for number, value in enumerate(values, start=1):
        yield from _row(records, file, number, value, rejects, early_share)


def read_table(records: Records, file: InputFile, delimiter: str, rejects: Rejects, early_share: float) -> Iterator[Row | Node]:
    """The rows of a CSV table, whose rejects are numbered by their line. Raises DataError without the columns that are needed."""
    csv.field_size_limit(MAXIMUM_TEXT_CHARACTERS)
    try:
        with unpacked(file) as stream:
            lines = csv.reader(_text_lines(stream, file), delimiter=delimiter, strict=True)
            header = next(lines, [])
            _require_columns(records, file, header)
            for values in lines:
                if values:
                    yield from _row(records, file, lines.line_num, _named(header, values), rejects, early_share)
    except csv.Error as error:
        problem = f"{shown(file.address)} is not CSV after line {lines.line_num:,}: {error}"
        raise DataError(problem, "mend the quotes there, or set the delimiter of the source") from error
    except (Damaged, GivenUp) as error:
        raise DataError(f"{shown(file.address)} is damaged: {error}", "restore the file from its source") from error


def _text_lines(stream: Unpacked, file: InputFile) -> Iterator[str]:
    for number in itertools.count(1):
        line = stream.readline(MAXIMUM_TEXT_CHARACTERS + 1)
        if not line:
            return
        if len(line) > MAXIMUM_TEXT_CHARACTERS:
            problem = f"{shown(file.address)}: line {number:,} is longer than {MAXIMUM_TEXT_CHARACTERS:,} bytes"
            raise DataError(problem, "name a file that is a table as text")
        yield (line.removeprefix(UTF8_BOM) if number == 1 else line).decode("utf-8", "surrogateescape")


def _named(header: list[str], values: list[str]) -> object:
    """The values by column; a row of another length is no record."""
    return dict(zip(header, values, strict=True)) if len(values) == len(header) else _Uneven(len(values), len(header))


class _Uneven:
    def __init__(self, values: int, columns: int) -> None:
        self.problem = f"{values} values for {columns} columns"


def _require_columns(records: Records, file: InputFile, header: list[str]) -> None:
    missing = next((key for key in records.keys.values() if key not in header), None)
    if missing is not None:
        problem = f"{shown(file.address)} has no column {missing!r} (it has {', '.join(header) or 'none'})"
        raise DataError(problem, "name the column in `fields` of the source, or set its delimiter")


def _row(records: Records, file: InputFile, number: int, value: Any, rejects: Rejects, early_share: float) -> Iterator[Row | Node]:
    rejects.saw(records.source, "rows", early_share)
    try:
        if isinstance(value, _Uneven):
            raise Malformed(value.problem)
        if not isinstance(value, dict):
            raise Malformed(f"{value_kind(value)}, not an object")
        _require_text(value)
        yield records.row(value, f"{records.source}:{file.name}:{number}")
    except Malformed as error:
        rejects.add(Reject(records.source, file.name, number, 0, str(error)))


def _require_text(values: dict[str, Any]) -> None:
    """What was no UTF-8 has become half surrogate pairs."""
    for value in values.values():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Malformed("not UTF-8") from error
