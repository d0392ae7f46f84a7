"""Plain text files become documents."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.files import SourceFile, data_errors, find_files, refuse_utf16
from fledge.corpus.near_duplicates import text_group
from fledge.corpus.pieces import cut
from fledge.corpus.rejects import Reject, Rejects
from fledge.corpus.settings import TextSource

_CHUNK = 1 << 16


def read_text_files(source: TextSource, rejects: Rejects) -> Iterator[Document]:
    """The documents of every file; a file that is not UTF-8 is a reject as a whole. Raises DataError."""
    files = find_files(source)
    with console.progress(f"reading {source.name}", len(files), "files") as progress:
        for file in files:
            rejects.seen[source.name] += 1
            offset = _first_undecodable_byte(file.path)
            if offset is None:
                yield from _documents(source, file)
            else:
                rejects.add(Reject(source.name, str(file.path), 0, offset, "not UTF-8"))
            progress.advance()
    rejects.require_few(source.name, "files", source.maximum_reject_share, at_end=True)


def _documents(source: TextSource, file: SourceFile) -> Iterator[Document]:
    for number, piece in enumerate(cut(_chunks(file.path), source.maximum_document_characters)):
        yield Document(piece, f"{source.name}:{file.name}#{number}", source.name, text_group(piece))


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file with the byte order mark dropped and every line end a newline."""
    try:
        with data_errors(path), path.open(encoding="utf-8-sig") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except UnicodeDecodeError as error:
        raise DataError(f"{path} changed while it was read", "run the same command again when nothing writes to it") from error


def _first_undecodable_byte(path: Path) -> int | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with data_errors(path), path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            if offset == 0:
                refuse_utf16(path, chunk)
            pending_bytes = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return offset - pending_bytes + error.start
            if not chunk:
                return None
            offset += len(chunk)
