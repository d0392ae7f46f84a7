"""JSON Lines files become rows; a malformed line is a reject, not the end.

A line is parsed by orjson, which is as strict as RFC 8259. What it refuses goes to the standard library's parser, ten times as slow,
which finds out why; it also takes what is harmless, half a surrogate pair where nothing reads it. Of a key given twice in one
object the last counts.

Lines are read in blocks. Of documents, a compiled loop takes those lines of a block that are usual (`flat_lines.py`), and the others
go the way above.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import orjson

from fledge.core.errors import DataError
from fledge.corpus.batches import DocumentBatch, Origins
from fledge.corpus.document import Document, Row
from fledge.corpus.rejects import Malformed, Reject, Rejects, value_kind
from fledge.corpus.sources.files import UTF8_BOM
from fledge.corpus.sources.flat_lines import FlatLines, read_flat_lines
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.records import Node, Records
from fledge.corpus.sources.transport import shown
from fledge.corpus.sources.unpacking import Damaged, GivenUp, Unpacked, unpacked

MAXIMUM_LINE_BYTES = 32 << 20

_BLOCK_BYTES = 4_000_000  # as many as a batch of documents has
_READ_BYTES = 1 << 20
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


@dataclass(frozen=True)
class _Block:
    """Whole lines, or one that cannot be read."""

    lines_before: int
    byte_offset: int
    content: bytes
    problem: str = ""

    @functools.cached_property
    def lines(self) -> int:
        newlines = np.count_nonzero(np.frombuffer(self.content, np.uint8) == ord("\n"))
        return int(newlines) + (not self.content.endswith(b"\n"))

    def line(self, index: int, start: int, end: int) -> _Line:
        """The line that lies from `start` to `end` in the content."""
        offset, content = self.byte_offset + start, self.content[start:end]
        return _Line(self.lines_before + index + 1, offset, content if offset else content.removeprefix(UTF8_BOM), self.problem)


def cut_lines(file: InputFile, piece_bytes: int) -> Iterator[Piece]:
    """Pieces of a plain file; each owns the lines that begin in it."""
    for start in range(0, file.size_bytes, piece_bytes):
        end = start + piece_bytes if start + piece_bytes < file.size_bytes else None
        yield Piece((file,), start, end, min(piece_bytes, file.size_bytes - start))


def read_lines(
    records: Records, file: InputFile, start: int, end: int | None, rejects: Rejects, early_share: float
) -> Iterator[Row | Node]:
    """The rows of the lines that begin in a stretch of the plain bytes of a file. Raises DataError for a broken file."""
    for block in _blocks(file, start, end, rejects, records.source):
        position = 0
        for index, content in enumerate(io.BytesIO(block.content) if block.content else [b""]):
            row = _row_or_reject(records, file, block.line(index, position, position + len(content)), rejects, early_share)
            if row is not None:
                yield row
            position += len(content)


def read_line_batches(
    records: Records, file: InputFile, start: int, end: int | None, rejects: Rejects, early_share: float
) -> Iterator[DocumentBatch]:
    """The same of documents, a batch at a time."""
    for block in _blocks(file, start, end, rejects, records.source):
        flat = read_flat_lines(block.content, block.lines, records.keys["text"], min(_LONG_LINE_BYTES, MAXIMUM_LINE_BYTES))
        others: list[Document] = []
        other_lines, next_line = [], 0
        for index in np.flatnonzero(~flat.are_read).tolist():
            rejects.saw(records.source, "lines", early_share, index - next_line)
            line = block.line(index, int(flat.ends[index - 1]) if index else 0, int(flat.ends[index]))
            row = _row_or_reject(records, file, line, rejects, early_share)
            if isinstance(row, Document):
                others.append(row)
                other_lines.append(index)
            next_line = index + 1
        rejects.saw(records.source, "lines", early_share, block.lines - next_line)
        yield _batch(records, file, block, flat, others, other_lines)


def _batch(
    records: Records, file: InputFile, block: _Block, flat: FlatLines, others: list[Document], other_lines: list[int]
) -> DocumentBatch:
    """The documents of a block in the order of their lines."""
    starts = block.byte_offset + np.concatenate([[0], flat.ends[:-1]])
    lines = np.flatnonzero(flat.are_read)
    ids = [f"{records.source}:{file.name}:{offset}" for offset in starts[lines].tolist()]
    batch = DocumentBatch(flat.texts, Origins.of_source(records.source, ids))
    return batch.merged(lines, DocumentBatch.of(others), np.array(other_lines)) if others else batch


def _row_or_reject(records: Records, file: InputFile, line: _Line, rejects: Rejects, early_share: float) -> Row | Node | None:
    """The row of a line; None if it is blank or was rejected."""
    if line.content.isspace() or not (line.content or line.problem):
        return None
    rejects.saw(records.source, "lines", early_share)
    try:
        return _row(records, line, f"{records.source}:{file.name}:{line.byte_offset}")
    except Malformed as error:
        rejects.add(Reject(records.source, file.name, line.number, line.byte_offset, str(error)))
        return None


def _blocks(file: InputFile, start: int, end: int | None, rejects: Rejects, source: str) -> Iterator[_Block]:
    """The lines that begin in a stretch; at its end their number goes to `rejects`."""
    lines = 0
    with unpacked(file, max(0, start - 1)) as stream:
        for block in _read_blocks(stream, file, start, end):
            yield block
            lines = block.lines_before + block.lines
    if end is not None:
        rejects.lines_read[source, file.name] += lines


def _read_blocks(stream: Unpacked, file: InputFile, start: int, end: int | None) -> Iterator[_Block]:
    """The stream stands on the byte before `start`: if that ends a line, one begins at `start`."""
    number, offset, border = 0, start, sys.maxsize if end is None else end
    if start:
        offset += _skip_line(stream, border - start) - 1
    try:
        while offset < border and (content := _whole_lines(stream, border - offset)):
            last_start = content.rfind(b"\n") + 1
            is_endless = len(content) - last_start > MAXIMUM_LINE_BYTES
            block = _Block(number, offset, content[:last_start] if is_endless else content)
            if block.content:
                yield block
                number += block.lines
                offset += len(block.content)
            if is_endless:
                length = len(content) - last_start
                length += _skip_line(stream, border - offset - length)
                yield _Block(number, offset, b"", f"longer than {MAXIMUM_LINE_BYTES:,} bytes")
                number += 1
                offset += length
    except GivenUp as error:
        yield _Block(number, offset, b"", str(error))
    except Damaged as error:
        problem = f"{shown(file.address)} is damaged after line {number:,}: {error}"
        raise DataError(problem, "restore the compressed file from its source") from error
    if stream.left_out:
        yield _Block(number, offset, b"", stream.left_out)


def _whole_lines(stream: Unpacked, maximum_bytes: int) -> bytes:
    """Lines that begin in so many bytes, and not many more; the last may break off behind MAXIMUM_LINE_BYTES. b"" at the end.

    Raises Damaged or GivenUp when there is no whole line before the damage: the stream raises it again at the next call.
    """
    chunks: list[bytes] = []
    left_bytes = min(maximum_bytes, _BLOCK_BYTES, MAXIMUM_LINE_BYTES)
    try:
        while left_bytes > 0 and (chunk := stream.read1(min(left_bytes, _READ_BYTES))):
            chunks.append(chunk)
            left_bytes -= len(chunk)
        content = b"".join(chunks)
        begun_bytes = len(content) - content.rfind(b"\n") - 1
        return content + stream.readline(MAXIMUM_LINE_BYTES + 1 - begun_bytes) if begun_bytes else content
    except (GivenUp, Damaged):
        content = b"".join(chunks)
        if b"\n" not in content:
            raise
        return content[: content.rfind(b"\n") + 1]


def _skip_line(stream: Unpacked, maximum_bytes: int) -> int:
    """Read to the end of a line, but not much further than is of interest; returns the bytes read."""
    skipped_bytes = 0
    while rest := stream.readline(_SKIP_BYTES):
        skipped_bytes += len(rest)
        if rest.endswith(b"\n") or skipped_bytes > maximum_bytes:
            break
    return skipped_bytes


def _row(records: Records, line: _Line, row_id: str) -> Row | Node:
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
            for name, key in records.all_keys.items():
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
