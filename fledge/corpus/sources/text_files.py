"""Plain text files become documents; a file that is not UTF-8 is a reject as a whole."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.rejects import Malformed, Reject, Rejects
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.pieces import cut
from fledge.corpus.sources.settings import TextSource
from fledge.corpus.sources.transport import shown
from fledge.corpus.sources.unpacking import Damaged, GivenUp, Unpacked, changed, unpacked

_BLOCK_BYTES = 1 << 16
_HELD_CHARACTERS = 16 << 20
_BOM = "\ufeff"


@dataclass(frozen=True)
class _Checked:
    """A file that is text from beginning to end."""

    chunks: list[str] | None
    """Its text, unless that is too long to be held."""
    size_bytes: int
    left_out: str


class _NoText(Malformed):
    """A file is no text from a byte on."""

    def __init__(self, reason: str, byte_offset: int) -> None:
        super().__init__(reason)
        self.byte_offset = byte_offset


def read_text(source: TextSource, file: InputFile, rejects: Rejects, early_share: float) -> Iterator[Document]:
    """The documents of a file. Raises DataError if it is damaged or changes."""
    rejects.saw(source.name, "files", early_share)
    try:
        checked = _checked(file)
    except _NoText as error:
        rejects.add(Reject(source.name, file.name, 0, error.byte_offset, str(error)))
        return
    chunks = _read_again(file) if checked.chunks is None else checked.chunks
    for number, text in enumerate(cut(chunks, source.maximum_document_characters)):
        yield Document(text, f"{source.name}:{file.name}#{number}", source.name, "")
    if checked.left_out:
        rejects.saw(source.name, "files", early_share)
        rejects.add(Reject(source.name, file.name, 0, checked.size_bytes, checked.left_out))


def _checked(file: InputFile) -> _Checked:
    """Look at the whole file before any of it is used. Raises _NoText, DataError."""
    held: list[str] | None = []
    characters = 0
    try:
        with unpacked(file) as stream:
            for chunk in _chunks(stream):
                characters += len(chunk)
                if characters > _HELD_CHARACTERS:
                    held = None
                if held is not None:
                    held.append(chunk)
            return _Checked(held, stream.tell() if stream.left_out else 0, stream.left_out)
    except Damaged as error:
        raise DataError(f"{shown(file.address)} is damaged: {error}", "restore the compressed file from its source") from error


def _read_again(file: InputFile) -> Iterator[str]:
    try:
        with unpacked(file) as stream:
            yield from _chunks(stream)
    except (_NoText, Damaged) as error:
        raise changed(file) from error


def _chunks(stream: Unpacked) -> Iterator[str]:
    """The text of a file with the byte order mark dropped and every line end a newline. Raises _NoText, Damaged."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset = 0
    while True:
        pending_bytes = len(decoder.getstate()[0])
        try:
            block = stream.read(_BLOCK_BYTES)
            text = line_ends.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _NoText("not UTF-8", offset - pending_bytes + error.start) from error
        except GivenUp as error:
            raise _NoText(str(error), offset) from error
        yield text.removeprefix(_BOM) if offset == 0 else text
        if not block:
            return
        offset += len(block)
