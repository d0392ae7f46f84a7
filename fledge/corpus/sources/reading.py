"""Every kind of source is cut into pieces and becomes the same rows; a new kind is one more case here and in `settings.py`.

A piece is small files in a row, or a stretch of a large one: lines by their first byte, Parquet by row groups. What is compressed as
a whole, and text, which is judged by the file, is never cut. The pieces follow from names, lengths and contents of the files alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

from fledge.corpus.batches import DocumentBatch, batches_of, gathered
from fledge.corpus.document import Document, Row
from fledge.corpus.limits import Limits
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.json_lines import cut_lines, read_line_batches, read_lines
from fledge.corpus.sources.parquet_files import cut_row_groups, read_row_batches, read_rows
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.records import Node, Records
from fledge.corpus.sources.settings import (
    CsvSource,
    FileSource,
    HubSource,
    JsonSource,
    ParquetSource,
    PythonDocsSource,
    Source,
    TableSource,
    TextSource,
)
from fledge.corpus.sources.text_files import read_text
from fledge.corpus.sources.threads import threads
from fledge.corpus.sources.unpacking import is_packed
from fledge.corpus.sources.whole_files import read_list, read_table
from fledge.corpus.split import Splitter

PIECE_BYTES = 64 << 20

# What files count in a group: compressed text expands about threefold, and to open a file costs as much as to read 16 KiB.
_EXPANSION = 3
_OPENING_BYTES = 16 << 10


def cut_pieces(source: Source, files: Sequence[InputFile], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of the files of a source, in order: their rows one after another are the same for any `piece_bytes`.

    Reads the footers of large Parquet files. Raises DataError, MachineError if one cannot be read.
    """
    if isinstance(source, PythonDocsSource):
        return [Piece()]
    pieces: list[Piece] = []
    small: list[InputFile] = []
    small_bytes = 0
    for file in files:
        cost_bytes = _cost_bytes(source, file)
        is_cut = cost_bytes > piece_bytes and not (_is_whole(source) or is_packed(file.name))
        if small and (is_cut or small_bytes + cost_bytes > piece_bytes):
            pieces.append(_grouped(small))
            small, small_bytes = [], 0
        if not is_cut:
            small.append(file)
            small_bytes += cost_bytes
            if _ends_group(file, cost_bytes, piece_bytes):
                pieces.append(_grouped(small))
                small, small_bytes = [], 0
        elif _is_parquet(source, file):
            pieces += cut_row_groups(_records(source), file, piece_bytes)
        else:
            pieces += cut_lines(file, piece_bytes)
    return [*pieces, _grouped(small)] if small else pieces


def read_piece(source: Source, piece: Piece, rejects: Rejects, splitter: Splitter) -> Iterator[Row]:
    """The rows of a piece in order; what cannot be used goes to `rejects`. The embedded preference pairs need the sides to stay on them.

    `Document.group` is "" where the source names none. Raises DataError if a file is broken or changes, or if most of the first 1,000
    lines, rows or files of the beginning of a file are malformed; MachineError if a server stays away.
    """
    if isinstance(source, PythonDocsSource):
        yield from itertools.islice(_python_rows(source, splitter), source.skip_documents, None)
        return
    early_share = _early_share(source, piece)
    for file in piece.files:
        if isinstance(source, TextSource):
            yield from read_text(source, file, rejects, early_share)
        else:
            yield from _record_rows(source, file, piece, rejects, early_share)


def _record_rows(source: TableSource, file: InputFile, piece: Piece, rejects: Rejects, early_share: float) -> Iterator[Row]:
    records = Records.of(source)
    found: Iterator[Row | Node]
    if isinstance(source, JsonSource):
        found = read_list(records, file, rejects, early_share)
    elif isinstance(source, CsvSource):
        found = read_table(records, file, source.delimiter, rejects, early_share)
    else:
        read = read_rows if _is_parquet(source, file) else read_lines
        found = read(records, file, piece.start, piece.end, rejects, early_share)
    if records.form == "tree":
        yield from threads(records, file.name, (node for node in found if isinstance(node, Node)), rejects)
    else:
        yield from (row for row in found if not isinstance(row, Node))


def read_batches(source: Source, piece: Piece, rejects: Rejects, splitter: Splitter, limits: Limits) -> Iterator[DocumentBatch]:
    """The documents of a piece in order, up to the limits. Raises what `read_piece` raises."""
    if limits.endless and not isinstance(source, PythonDocsSource | TextSource | JsonSource | CsvSource):
        yield from gathered(itertools.chain.from_iterable(_batches_of_files(source, piece, rejects)))
    else:
        # A block of lines would be read, and its rejects counted, beyond a limit.
        yield from batches_of(limits.take(_documents(read_piece(source, piece, rejects, splitter))))


def _batches_of_files(source: TableSource, piece: Piece, rejects: Rejects) -> Iterator[Iterator[DocumentBatch]]:
    records = Records.of(source)
    for file in piece.files:
        read = read_row_batches if _is_parquet(source, file) else read_line_batches
        yield read(records, file, piece.start, piece.end, rejects, _early_share(source, piece))


def _early_share(source: FileSource, piece: Piece) -> float:
    """In the middle of a file a bad stretch is one among many, and only the whole source is judged."""
    return source.maximum_reject_share if piece.start == 0 else 1.0


def _documents(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        assert isinstance(row, Document), "only documents are read in batches"
        yield row


def expected_text_bytes(source: Source, piece: Piece) -> int:
    """About how much text a piece holds, for progress."""
    are_compressed = any(is_packed(file.name) or _is_parquet(source, file) for file in piece.files)
    return piece.size_bytes * (_EXPANSION if are_compressed else 1)


def _records(source: Source) -> Records:
    assert not isinstance(source, PythonDocsSource | TextSource), "these have no records"
    return Records.of(source)


def _is_whole(source: Source) -> bool:
    """Whether a file has to be read from its beginning to its end, or at once."""
    is_tree = isinstance(source, TableSource) and Records.of(source).form == "tree"
    return is_tree or isinstance(source, TextSource | JsonSource | CsvSource)


def _is_parquet(source: Source, file: InputFile) -> bool:
    return isinstance(source, ParquetSource) or (isinstance(source, HubSource) and file.name.lower().endswith(".parquet"))


def _cost_bytes(source: Source, file: InputFile) -> int:
    is_compressed = is_packed(file.name) or _is_parquet(source, file)
    return max(_OPENING_BYTES, file.size_bytes * (_EXPANSION if is_compressed else 1))


def _ends_group(file: InputFile, cost_bytes: int, piece_bytes: int) -> bool:
    """Whether a group ends with this file, whatever was before: so an edit of one file moves no border far from it.

    By chance of its name, in proportion to its size: a group has half of `piece_bytes` on average.
    """
    chance = int.from_bytes(hashlib.sha256(file.name.encode("utf-8")).digest()[:8], "big") / (1 << 64)
    return chance < cost_bytes / (piece_bytes / 2)


def _grouped(files: Sequence[InputFile]) -> Piece:
    return Piece(tuple(files), size_bytes=sum(file.size_bytes for file in files))


def _python_rows(source: PythonDocsSource, splitter: Splitter) -> Iterator[Row]:
    entries = python_docs.stdlib_entries(python_docs.stdlib_folder())
    match source.content:
        case "documents":
            yield from python_docs.documents(source.name, entries)
        case "conversations":
            yield from python_docs.conversations(source.name, entries)
        case "preferences":
            yield from python_docs.preferences(source.name, entries, splitter)
