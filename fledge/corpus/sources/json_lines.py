"""JSON Lines files become rows; a malformed line is a reject, not the end.

A line is parsed by orjson, which is as strict as RFC 8259. What it refuses goes to the standard library's parser, ten times as slow,
which finds out why; it also takes what is harmless, half a surrogate pair where nothing reads it. Of a key given twice in one
object the last counts.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import orjson

from fledge.core.errors import DataError
from fledge.corpus.document import Row
from fledge.corpus.rejects import Malformed, Reject, Rejects, value_kind
from fledge.corpus.sources.files import UTF8_BOM
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.records import Records
from fledge.corpus.sources.transport import shown
from fledge.corpus.sources.unpacking import Damaged, GivenUp, Unpacked, unpacked

MAXIMUM_LINE_BYTES = 32 << 20

_SKIP_BYTES = 1 << 20
_MAXIMUM_DEPTH = 1_024  # orjson's
# A value of 3 bytes, {}, takes 64 in memory and more: 32 MiB of them would take a gigabyte.
_LONG_LINE_BYTES = 4 << 20
_MAXIMUM_VALUES = 1_000_000
# Without backtracking, and an open string reaches to the end: else a line of backslashes and quotes takes quadratic time.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class _Line(NamedTuple):
    number: int
    byte_offset: int
    content: bytes
    problem: str
    """Why there is no content."""


def cut_lines(file: InputFile, piece_bytes: int) -> Iterator[Piece]:
    """Pieces of a plain file; each owns the lines that begin in it."""
    for start in range(0, file.size_bytes, piece_bytes):
        end = start + piece_bytes if start + piece_bytes < file.size_bytes else None
        yield Piece((file,), start, end, min(piece_bytes, file.size_bytes - start))


def read_lines(records: Records, file: InputFile, start: int, end: int | None, rejects: Rejects, early_share: float) -> Iterator[Row]:
    """The rows of the lines that begin in a stretch of the plain bytes of a file. Raises DataError for a broken file."""
    number = 0
    with unpacked(file, max(0, start - 1)) as stream:
        for line in _lines(stream, file, start, end):
            number = line.number
            if line.content.isspace() or not (line.content or line.problem):
                continue
            rejects.saw(records.source, "lines", early_share)
            try:
                row = _row(records, line, f"{records.source}:{file.name}:{line.byte_offset}")
            except Malformed as error:
                rejects.add(Reject(records.source, file.name, line.number, line.byte_offset, str(error)))
            else:
                yield row
    if end is not None:
        rejects.lines_read[records.source, file.name] += number


def _lines(stream: Unpacked, file: InputFile, start: int, end: int | None) -> Iterator[_Line]:
    """The stream stands on the byte before `start`: if that ends a line, one begins at `start`."""
    number, offset, border = 0, start, sys.maxsize if end is None else end
    if start:
        offset += _skip_line(stream, border - start) - 1
    try:
        while offset < border and (content := stream.readline(MAXIMUM_LINE_BYTES + 1)):
            length, problem = len(content), ""
            if length > MAXIMUM_LINE_BYTES and not content.endswith(b"\n"):
                content, problem = b"", f"longer than {MAXIMUM_LINE_BYTES:,} bytes"
                length += _skip_line(stream, border - offset - length)
            number += 1
            yield _Line(number, offset, content if offset else content.removeprefix(UTF8_BOM), problem)
            offset += length
    except GivenUp as error:
        yield _Line(number + 1, offset, b"", str(error))
    except Damaged as error:
        problem = f"{shown(file.address)} is damaged after line {number:,}: {error}"
        raise DataError(problem, "restore the compressed file from its source") from error
    if stream.left_out:
        yield _Line(number + 1, offset, b"", stream.left_out)


def _skip_line(stream: Unpacked, maximum_bytes: int) -> int:
    """Read to the end of a line, but not much further than is of interest; returns the bytes read."""
    skipped_bytes = 0
    while rest := stream.readline(_SKIP_BYTES):
        skipped_bytes += len(rest)
        if rest.endswith(b"\n") or skipped_bytes > maximum_bytes:
            break
    return skipped_bytes


def _row(records: Records, line: _Line, row_id: str) -> Row:
    if line.problem:
        raise Malformed(line.problem)
    if len(line.content) > _LONG_LINE_BYTES:
        _require_few_values(line.content)
    try:
        values = orjson.loads(line.content)
    except orjson.JSONDecodeError:
        values = _parse_strictly(line.content, records)
    if not isinstance(values, dict):
        raise Malformed(f"{value_kind(values)}, not an object")
    return records.row(values, row_id)


def _require_few_values(content: bytes) -> None:
    # The text holds such marks too, so it is left out of a second count.
    if _most_values(content) > _MAXIMUM_VALUES and _most_values(_STRING.sub(b"", content)) > _MAXIMUM_VALUES:
        raise Malformed(f"more than {_MAXIMUM_VALUES:,} values")


def _most_values(content: bytes) -> int:
    """At least the number of members of all lists and objects: each stands behind a comma or an opening bracket."""
    return sum(content.count(mark) for mark in (b",", b"[", b"{"))


def _parse_strictly(content: bytes, records: Records) -> Any:
    """The value of a line that orjson refused, if what it refused does not matter. Raises Malformed with the reason."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    _require_flat(content)
    with _room_to_recurse():
        try:
            values = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_refuse_constant)
            for name, key in records.keys.items():
                if isinstance(values, dict) and key in values:
                    _require_whole_pairs(values[key], name)
        except json.JSONDecodeError as error:
            raise Malformed("not JSON" if content.endswith(b"\n") else "truncated: the file ends inside this line") from error
    return values


def _require_flat(content: bytes) -> None:
    depth = 0
    for bracket in _STRING.sub(b"", content).translate(None, _ALL_BUT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MAXIMUM_DEPTH:
            raise Malformed("nested too deep")


def _require_whole_pairs(value: object, name: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed(f"{name} holds half a surrogate pair") from error


@contextlib.contextmanager
def _room_to_recurse() -> Iterator[None]:
    """The standard library's parser takes Python's stack, so how deep it comes would depend on who calls."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 4 * _MAXIMUM_DEPTH)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _integer(digits: str) -> float:
    """As orjson has it: what does not fit into 64 bits is a float."""
    number = _number(digits)
    exact = int(digits)
    return exact if -(1 << 63) <= exact < 1 << 64 else number


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise Malformed("a number that is too long")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is no JSON number")
