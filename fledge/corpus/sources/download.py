"""`fledge corpus --download-only`: the rows of a source as raw chunks, FOLDER/SOURCE/chunk-00000.jsonl, nothing dropped or changed.

    files -> waves -> pieces -> N readers, each into a file of its own -> one writer, in order -> chunks

A reader turns a whole piece into lines on disk, so however unevenly they run, memory stays small and the writer only copies bytes.
Which rows come into which chunk depends on the rows alone. `progress.json` says how far into the files of the source the chunks
reach; a rerun goes on behind the last whole chunk and makes the same bytes. A position counts in waves, whose sizes are fixed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import orjson

from fledge.core import console, disk
from fledge.core.artifact import hash_json
from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.limits import Limits, limits_of
from fledge.corpus.rejects import Rejects
from fledge.corpus.resolve import Resolved, waves
from fledge.corpus.sources import reading
from fledge.corpus.sources.attempts import PAUSE, Stopped, pause_until
from fledge.corpus.sources.inputs import localise
from fledge.corpus.sources.piece import Piece
from fledge.corpus.sources.settings import FileSource, Source
from fledge.corpus.split import Splitter

PROGRESS = "progress.json"

_READING = "reading"
_BLOCK_BYTES = 1 << 20
_FREE_FIELDS = {"license", "expect", "maximum_reject_share", "cache", "path", "sha256"}


def download(
    sources: Sequence[Resolved], folder: Path, cache_folder: Path, workers: int, chunk_documents: int, chunks: int | None
) -> dict[str, dict[str, int]]:
    """Write each source of documents as chunks of `chunk_documents` lines, at most `chunks` of them.

    Returns chunks, documents, utf8_bytes, seen and rejected of each source. Raises DataError if a source cannot be read, or if its folder
    holds chunks of something else; MachineError if a server stays away or the disk is full.
    """
    counts = {}
    for resolved in sources:
        source = resolved.source
        target = _opened(resolved, folder / source.name, chunk_documents)
        if not target.is_finished and (chunks is None or target.chunks < chunks):
            _Writer(resolved, target, cache_folder, workers, chunk_documents, chunks).run()
        counts[source.name] = target.counts()
        if target.position.rejected:
            of = f"{target.position.rejected:,} of {target.position.seen:,} lines, rows or files"
            console.warn(f"source {source.name}: {of} could not be used")
    return counts


@dataclass(frozen=True)
class _Position:
    """How far the chunks reach: to so many rows of a piece of a wave of files; and what there was up to there."""

    wave: int = 0
    piece: int = 0
    rows: int = 0
    documents: int = 0
    utf8_bytes: int = 0
    seen: int = 0
    """Lines, rows or files, usable or not, of the pieces before this one."""
    rejected: int = 0

    def after_rows(self, rows: int, utf8_bytes: int) -> _Position:
        """Further on in the same piece."""
        counts = {"documents": self.documents + rows, "utf8_bytes": self.utf8_bytes + utf8_bytes}
        return replace(self, rows=self.rows + rows, **counts)

    def after_piece(self, seen: int, rejected: int) -> _Position:
        """At the beginning of the next piece."""
        return replace(self, piece=self.piece + 1, rows=0, seen=self.seen + seen, rejected=self.rejected + rejected)


@dataclass
class _Target:
    """The folder of one source, and what its progress file says."""

    folder: Path
    key: str
    chunks: int = 0
    position: _Position = _Position()
    is_finished: bool = False

    def save(self) -> None:
        """Write the progress file."""
        disk.write_json(self.folder / PROGRESS, {**asdict(self), "folder": ""})

    def chunk_path(self, number: int) -> Path:
        """Where a chunk lies."""
        return self.folder / f"chunk-{number:05}.jsonl"

    def counts(self) -> dict[str, int]:
        """For the one who asked."""
        names = ("documents", "utf8_bytes", "seen", "rejected")
        return {"chunks": self.chunks, **{name: getattr(self.position, name) for name in names}}


def _opened(resolved: Resolved, folder: Path, chunk_documents: int) -> _Target:
    """What lies in the folder of a source, or a beginning. Raises DataError if it is of something else."""
    # Files are known by their content, wherever they lie.
    fields = {name: value for name, value in asdict(resolved.source).items() if name not in _FREE_FIELDS}
    key = hash_json([fields, resolved.fingerprint, chunk_documents])
    kept = _read(folder)
    if kept is None:
        if folder.is_dir() and any(folder.glob("chunk-*.jsonl")):
            raise DataError(f"{folder} holds chunks, but no {PROGRESS} that says of what", "move the folder away")
        target = _Target(folder, key)
        target.save()
        return target
    if kept.key != key:
        raise DataError(
            f"{folder} holds chunks made with other settings, or of files that changed since",
            "move the folder away, or go on with what it was begun with",
        )
    return kept


@dataclass(frozen=True)
class _Lines:
    """A piece as lines in a file, with the length of each line and of each text."""

    path: Path
    line_bytes: array[int]
    text_bytes: array[int]
    is_whole: bool
    """Nothing of the piece was left out."""
    seen: int
    rejected: int


class _Writer:
    """Makes the chunks of one source."""

    def __init__(
        self, resolved: Resolved, target: _Target, cache_folder: Path, workers: int, chunk_documents: int, chunks: int | None
    ) -> None:
        self._source, self._files = resolved.source, resolved.files
        self._target, self._cache_folder, self._workers = target, cache_folder, workers
        self._chunk_documents, self._chunks = chunk_documents, chunks
        self._position = target.position
        self._in_chunk = 0
        self._reading = target.folder / _READING

    def run(self) -> None:
        """Write chunks until the source, its limits or the wanted number of chunks ends."""
        self._clear()
        target = self._target
        total = sum(file.size_bytes for file in self._files) or None
        try:
            with (
                console.progress(f"reading {self._source.name}", total, "bytes") as progress,
                contextlib.closing(self._pieces(progress)) as pieces,
            ):
                for lines, piece in pieces:
                    self._take(lines)
                    progress.advance(piece.size_bytes, f"{self._position.documents:,} documents")
                    if self._is_done:
                        break
            if self._in_chunk:
                self._publish()
            target.is_finished = self._chunks is None or target.chunks < self._chunks or self._left.exhausted
            target.position = self._position
            target.save()
        finally:
            disk.remove(self._reading)

    @property
    def _left(self) -> Limits:
        """What the source's limits still allow."""
        return limits_of(self._source).after(self._position.documents, self._position.utf8_bytes)

    @property
    def _is_done(self) -> bool:
        return self._left.exhausted or (self._chunks is not None and self._target.chunks >= self._chunks)

    def _wanted_rows(self) -> int | None:
        """No more rows than this can be used of what comes next; None: all."""
        wanted = [] if self._left.documents is None else [self._left.documents]
        if self._chunks is not None:
            wanted.append((self._chunks - self._target.chunks) * self._chunk_documents - self._in_chunk)
        return min(wanted, default=None)

    def _pieces(self, progress: console.Progress) -> Generator[tuple[_Lines, Piece]]:
        """The pieces from where we are, read side by side and given in order."""
        for number, files in enumerate(waves(self._source, self._files)):
            if number < self._position.wave:
                progress.advance(sum(file.size_bytes for file in files))
                continue
            here = localise(self._source, files, self._cache_folder, self._workers) if isinstance(self._source, FileSource) else files
            pieces = reading.cut_pieces(self._source, here)
            done = self._position.piece
            progress.advance(sum(piece.size_bytes for piece in pieces[:done]))
            yield from self._read_ahead(pieces[done:])
            self._position = replace(self._position, wave=number + 1, piece=0)

    def _read_ahead(self, pieces: Sequence[Piece]) -> Iterator[tuple[_Lines, Piece]]:
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="reader")
        waiting: deque[tuple[Future[_Lines], Piece]] = deque()
        # Where only a part is wanted, few pieces may hold it: do not begin with all readers at once.
        is_limited = self._chunks is not None or not self._left.endless
        ahead = 1 if is_limited else self._workers
        numbers = itertools.count()
        remaining = iter(pieces)
        try:
            while True:
                for piece in itertools.islice(remaining, ahead - len(waiting)):
                    wanted = self._wanted_rows()
                    rows = None if wanted is None else wanted + self._position.rows
                    path = self._reading / f"{next(numbers):06}.jsonl"
                    waiting.append((pool.submit(_write_lines, self._source, piece, path, rows, stop), piece))
                if not waiting:
                    return
                future, piece = waiting.popleft()
                lines = future.result()
                yield lines, piece
                disk.remove(lines.path)
                ahead = min(2 * ahead, self._workers)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _take(self, lines: _Lines) -> None:
        """Copy the rows of a piece that are still wanted into chunks."""
        ends = np.cumsum(np.frombuffer(lines.line_bytes, np.int64)) if lines.line_bytes else np.zeros(0, np.int64)
        texts = np.cumsum(np.frombuffer(lines.text_bytes, np.int64)) if lines.text_bytes else ends
        while (row := self._position.rows) < len(ends) and not self._is_done:
            before = int(texts[row - 1]) if row else 0
            left = self._left
            stop = min(len(ends), row + self._chunk_documents - self._in_chunk, row + (left.documents or len(ends)))
            if left.utf8_bytes is not None:
                stop = min(stop, int(np.searchsorted(texts, before + left.utf8_bytes)) + 1)
            for block in _blocks(lines.path, int(ends[row - 1]) if row else 0, int(ends[stop - 1])):
                disk.append_bytes(self._partial, block)
            self._position = self._position.after_rows(stop - row, int(texts[stop - 1]) - before)
            self._in_chunk += stop - row
            if self._in_chunk == self._chunk_documents:
                self._publish()
        if lines.is_whole and self._position.rows >= len(ends):
            self._position = self._position.after_piece(lines.seen, lines.rejected)

    @property
    def _partial(self) -> Path:
        return self._reading / "chunk"

    def _publish(self) -> None:
        disk.flush(self._partial)
        disk.move(self._partial, self._target.chunk_path(self._target.chunks))
        self._target.chunks += 1
        self._target.position = self._position
        self._target.save()
        self._in_chunk = 0

    def _clear(self) -> None:
        """What a killed run left: half pieces, half a chunk, and a chunk that its progress file does not know yet."""
        disk.remove(self._reading)
        disk.remove(self._target.chunk_path(self._target.chunks))
        disk.make_folder(self._reading)


def _write_lines(source: Source, piece: Piece, path: Path, rows: int | None, stop: threading.Event) -> _Lines:
    """A piece, or its first `rows` rows, as lines in a file. Raises what reading it raises."""
    rejects, line_bytes, text_bytes = Rejects(), array("q"), array("q")
    pending = bytearray()
    is_whole = True
    PAUSE.set(functools.partial(pause_until, stop))
    for row in reading.read_piece(source, piece, rejects, Splitter(0.0, 0)):
        if len(line_bytes) == rows:
            is_whole = False
            break
        if stop.is_set():
            raise Stopped
        assert isinstance(row, Document), "chunks are made of sources of documents"
        line = orjson.dumps({"text": row.text, "id": row.id}, option=orjson.OPT_APPEND_NEWLINE)
        line_bytes.append(len(line))
        text_bytes.append(len(row.text.encode("utf-8")))
        pending += line
        if len(pending) >= _BLOCK_BYTES:
            disk.append_bytes(path, bytes(pending))
            pending.clear()
    disk.append_bytes(path, bytes(pending))
    return _Lines(path, line_bytes, text_bytes, is_whole, rejects.seen[source.name], rejects.count(source.name))


def _blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end:
            block = file.read(min(_BLOCK_BYTES, end - start))
            assert block, "the file of a piece is as long as its lines"
            start += len(block)
            yield block


def _read(folder: Path) -> _Target | None:
    """What a progress file says; None if there is none that is whole."""
    try:
        found = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return _Target(folder, found["key"], found["chunks"], _Position(**found["position"]), found["is_finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
