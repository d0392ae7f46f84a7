"""JSON Lines files become documents, conversations or preference pairs; a malformed line is a reject, not the end.

Of a key given twice in one object the last counts, as in Python's json. Line ends inside texts become newlines.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Conversation, Document, Message, Preference, Row
from fledge.corpus.files import UTF8_BOM, SourceFile, data_errors, find_files, refuse_utf16
from fledge.corpus.near_duplicates import text_group
from fledge.corpus.rejects import Malformed, Reject, Rejects
from fledge.corpus.settings import JsonLinesSource

MAXIMUM_LINE_BYTES = 64 << 20

_SHOWN_KEYS = 6
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class _Line:
    number: int
    byte_offset: int
    content: bytes
    is_whole: bool
    """Ends with a newline: the last line of a file that was cut off does not."""


def read_json_lines(source: JsonLinesSource, rejects: Rejects) -> Iterator[Row]:
    """The rows of every file in order. Raises DataError for a broken file or too many rejects."""
    files = find_files(source)
    with console.progress(f"reading {source.name}", sum(file.path.stat().st_size for file in files), "bytes") as progress:
        for file in files:
            yield from _rows(source, file, rejects, progress)
    rejects.require_few(source.name, "lines", source.maximum_reject_share, at_end=True)


def _rows(source: JsonLinesSource, file: SourceFile, rejects: Rejects, progress: console.Progress) -> Iterator[Row]:
    for line in _lines(file.path, progress):
        if not line.content.strip():
            continue
        rejects.seen[source.name] += 1
        try:
            yield _row(source, file, line)
        except Malformed as error:
            rejects.add(Reject(source.name, str(file.path), line.number, line.byte_offset, str(error)))
        rejects.require_few(source.name, "lines", source.maximum_reject_share, at_end=False)


def _lines(path: Path, progress: console.Progress) -> Iterator[_Line]:
    """The lines of a file, decompressed. Raises DataError where a compressed file breaks off, after its good lines."""
    number, offset, read_bytes = 0, 0, 0
    with data_errors(path), path.open("rb") as stored, _decompressed(stored, path) as file:
        try:
            while content := file.readline(MAXIMUM_LINE_BYTES):
                number += 1
                is_whole = content.endswith(b"\n")
                length = len(content) + (0 if is_whole else _skip_line(file))
                if number == 1:
                    refuse_utf16(path, content)
                    content = content.removeprefix(UTF8_BOM)
                yield _Line(number, offset, content, is_whole)
                offset += length
                progress.advance(stored.tell() - read_bytes)
                read_bytes = stored.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged after line {number:,}: {error}", "restore the compressed file from its source") from error


def _decompressed(stored: BinaryIO, path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.GzipFile(fileobj=stored) if path.name.endswith(".gz") else stored


def _skip_line(file: gzip.GzipFile | BinaryIO) -> int:
    skipped_bytes = 0
    while rest := file.readline(1 << 20):
        skipped_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped_bytes


def _row(source: JsonLinesSource, file: SourceFile, line: _Line) -> Row:
    values = _parse(line)
    origin = {"id": f"{source.name}:{file.name}:{line.number}", "source": source.name}
    match source.content:
        case "documents":
            text = _text(_value(values, source.key("text")), "text")
            return Document(text=text, group=text_group(text), **origin)
        case "conversations":
            messages = _messages(_value(values, source.key("messages")), "assistant")
            return Conversation(messages=messages, group=text_group(_joined(messages)), **origin)
        case "preferences":
            return _preference(source, values, origin)


def _preference(source: JsonLinesSource, values: dict[str, Any], origin: dict[str, str]) -> Preference:
    given = _value(values, source.key("prompt"))
    prompt = (Message("user", _text(given, "prompt")),) if isinstance(given, str) else _messages(given, "user")
    chosen = _text(_value(values, source.key("chosen")), "chosen")
    rejected = _text(_value(values, source.key("rejected")), "rejected")
    if chosen == rejected:
        raise Malformed("chosen and rejected are equal")
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, damage="", group=text_group(_joined(prompt)), **origin)


def _parse(line: _Line) -> dict[str, Any]:
    if not line.is_whole and len(line.content) >= MAXIMUM_LINE_BYTES:
        raise Malformed(f"longer than {MAXIMUM_LINE_BYTES:,} bytes")
    try:
        values = json.loads(line.content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    except RecursionError as error:
        raise Malformed("nested too deep") from error
    except json.JSONDecodeError as error:
        raise Malformed("not JSON" if line.is_whole else "truncated: the file ends inside this line") from error
    except ValueError as error:
        raise Malformed("a number that is too long") from error
    if not isinstance(values, dict):
        raise Malformed(f"a {type(values).__name__}, not an object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is no JSON number")


def _value(values: dict[str, Any], key: str) -> object:
    if key not in values:
        keys = ", ".join(list(values)[:_SHOWN_KEYS]) or "none"
        raise Malformed(f"no key {key!r} (keys: {keys[:_SHOWN_CHARACTERS]})")
    return values[key]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{name} is a {type(value).__name__}, not a string")
    if not value.strip():
        raise Malformed(f"{name} is empty")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(f"{name} holds half a surrogate pair")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _messages(value: object, last: str) -> tuple[Message, ...]:
    """Turns of user and assistant in alternation, ending with role `last`; a system message may come first."""
    if not isinstance(value, list):
        raise Malformed(f"messages is a {type(value).__name__}, not a list")
    messages = tuple(_message(item) for item in value)
    turns = [message.role for message in messages if message.role != "system"]
    if not turns or turns[-1] != last:
        raise Malformed(f"the last message is not the {last}'s")
    alternating = all(role == ("user", "assistant")[position % 2] for position, role in enumerate(turns))
    if not alternating or any(message.role == "system" for message in messages[1:]):
        raise Malformed("user and assistant do not take turns")
    return messages


def _message(value: object) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise Malformed("a message without role and content")
    role = value["role"]
    if role not in ("system", "user", "assistant"):
        raise Malformed(f"the role {str(role)[:_SHOWN_CHARACTERS]!r} is unknown")
    return Message(role, _text(value["content"], "content"))


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in messages)
