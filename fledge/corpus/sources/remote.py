"""Whole files out of attempts: a remote file is read in ranges as it is needed, or downloaded and continued where it broke off.

A download grows in `NAME.partial` and gets its name when all bytes are there and their hash is the one looked up. The name is made
of what the content is (`cache_path`), so a file under it is whole and right, and a partial file under it may be continued.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.corpus.sources.attempts import PAUSE, Attempts, Failure, Stopped, pause_until
from fledge.corpus.sources.files import data_errors
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.transport import HUB_ADDRESS, NoRanges, answer, ends_early, is_remote, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FIRST_FETCH_BYTES = 64 << 10
_LARGEST_FETCH_BYTES = 8 << 20
_APPEND_BYTES = 1 << 20
_READABLE_CHARACTERS = 100


def open_input(file: InputFile) -> BinaryIO:
    """A file for reading, seekable; a remote one is fetched in ranges as it is read, and nothing of it is kept.

    Reading raises MachineError when a server stays away, DataError when the file is gone or no longer the one looked up.
    """
    if not is_remote(file.address):
        path = Path(file.address)
        with data_errors(path):
            return path.open("rb")
    return io.BufferedReader(_RangeFile(file), _FIRST_FETCH_BYTES)


def download(file: InputFile, target: Path, advance: Callable[[int], None] = lambda size_bytes: None) -> None:
    """Bring a remote file to `target`, from the byte on to which an earlier attempt came; it appears whole and right or not at all.

    `target` must be a name of this content (`cache_path`). `advance` gets the number of bytes whenever some are there, less than 0 if
    they had to be thrown away; an exception from it stops the download, and what is there is kept. Raises DataError if the content
    is not what the fingerprint says, MachineError if it does not come or cannot be written.
    """
    partial = target.with_name(f"{target.name}{disk.PARTIAL_SUFFIX}")
    for is_last in (False, True):
        _complete(file, partial, advance)
        found = content_digest(partial, file.fingerprint)
        if found in {None, file.fingerprint}:
            break
        # What an earlier attempt left may be damaged, so a wrong hash is believed only of a file from one piece.
        disk.remove(partial)
        advance(-file.size_bytes)
        if is_last:
            raise DataError(
                f"{shown(file.address)} came twice with the hash {found}, not {file.fingerprint}",
                "check the sha256 of the recipe; if it is right, the server sends another file: take it from elsewhere",
            )
    disk.flush(partial)
    disk.move(partial, target)


def download_all(label: str, wanted: Mapping[Path, InputFile], workers: int) -> None:
    """Download files side by side, by place; the first failure, or Ctrl-C, ends the others at their next bytes."""
    stop, lock = threading.Event(), threading.Lock()

    def advance(size_bytes: int) -> None:
        if stop.is_set():
            raise Stopped
        with lock:
            progress.advance(size_bytes)

    def job(file: InputFile, place: Path) -> None:
        if stop.is_set():
            raise Stopped
        PAUSE.set(functools.partial(pause_until, stop))
        try:
            download(file, place, advance)
        except BaseException:  # whatever it is, the others must end; raised again
            stop.set()  # before this thread takes the next file
            raise

    pool = ThreadPoolExecutor(workers, thread_name_prefix="download")
    total = sum(file.size_bytes for file in wanted.values())
    with console.progress(label, total, "bytes") as progress:
        try:
            futures = [pool.submit(job, file, place) for place, file in wanted.items()]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    failures = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, Stopped)):
        raise error


def cache_path(file: InputFile, cache_folder: Path) -> Path:
    """Where a remote file lies once it is downloaded: one name per content, readable at its end."""
    hub = HUB_ADDRESS.fullmatch(file.address)
    parts = urlsplit(shown(file.address))
    place = ["hub", *hub[2].split("/")] if hub else [parts.scheme, parts.netloc]
    where = hub[4] if hub else f"{parts.netloc}{parts.path}"
    content = f"{where}\0{file.fingerprint}\0{file.size_bytes}".encode("utf-8", errors="surrogateescape")
    folder = cache_folder.joinpath(*map(_readable, place))
    return folder / f"{hashlib.sha256(content).hexdigest()[:16]}-{_readable(where.rpartition('/')[2])}"


def is_whole(path: Path, file: InputFile) -> bool:
    """Whether a downloaded file is there with all its bytes; its name says which they are."""
    return path.is_file() and path.stat().st_size == file.size_bytes


def content_digest(path: Path, fingerprint: str) -> str | None:
    """The hash of a file of the kind the fingerprint is; None if that is no hash of the content."""
    if re.fullmatch("[0-9a-f]{64}", fingerprint):
        return disk.digest_file(path).sha256
    if not re.fullmatch("[0-9a-f]{40}", fingerprint):
        return None
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_APPEND_BYTES):
            digest.update(piece)
    return digest.hexdigest()


class _RangeFile(io.RawIOBase):
    """A remote file of which about what is read is fetched.

    A fetch that goes on where the last one ended is twice as large as that: whoever reads on and on (lines) soon waits for few
    answers, and whoever jumps (to a footer, to the chunk of a column) fetches at most as much again as was needed.
    """

    def __init__(self, file: InputFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self._fetched = b""
        self._fetched_start = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size_bytes}[whence]
        if target < 0:
            raise ValueError(f"byte {target} lies before the beginning of the file")
        self._position = target
        return target

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._fetched_start <= self._position < self._fetched_start + len(self._fetched):
            self._fetch(len(view))
        start = self._position - self._fetched_start
        piece = memoryview(self._fetched)[start : start + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self, wanted_bytes: int) -> None:
        goes_on = self._position == self._fetched_start + len(self._fetched)
        ahead_bytes = min(2 * len(self._fetched), _LARGEST_FETCH_BYTES) if goes_on else 0
        end = self._position + max(wanted_bytes, ahead_bytes, _FIRST_FETCH_BYTES)
        self._fetched = b"".join(_range(self._file, self._position, min(end, self._file.size_bytes)))
        self._fetched_start = self._position

    def readall(self) -> bytes:
        # The one inherited asks for 8 kB at a time.
        rest = b"".join(_range(self._file, self._position, self._file.size_bytes))
        self._position += len(rest)
        return rest


def _range(file: InputFile, position: int, end: int) -> Iterator[bytes]:
    attempts = Attempts()
    while position < end:
        before = position
        try:
            for piece in answer(file, position, end):
                position += len(piece)
                yield piece
            _require_end(file, position, end)
        except Failure as failure:
            attempts.failed(failure, gained=position > before)
        except NoRanges as error:
            problem = f"the server of {shown(file.address)} sends whole files only"
            raise DataError(problem, "set cache: raw for this source, so that it is downloaded") from error


def _complete(file: InputFile, partial: Path, advance: Callable[[int], None]) -> None:
    """Append to the partial file until all bytes are there; begin anew where it cannot be continued."""
    attempts = Attempts()
    takes_ranges = True
    position = _usable_bytes(file, partial)
    advance(position)
    if file.size_bytes == 0:
        disk.write_bytes(partial, b"")
    while position < file.size_bytes:
        before = position
        try:
            for block in _blocks(answer(file, position, file.size_bytes)):
                disk.append_bytes(partial, block)
                position += len(block)
                advance(len(block))
            _require_end(file, position, file.size_bytes)
        except Failure as failure:
            attempts.failed(failure, gained=takes_ranges and position > before)
        except NoRanges:
            takes_ranges = False
        if not takes_ranges and position < file.size_bytes:
            disk.remove(partial)
            advance(-position)
            position = 0


def _usable_bytes(file: InputFile, partial: Path) -> int:
    """How much of a partial file may stay: all of it, unless nothing says that it is the same file."""
    found = partial.stat().st_size if partial.is_file() else 0
    if found > file.size_bytes or file.fingerprint.startswith("size:"):
        disk.remove(partial)
        return 0
    return found


def _blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in larger pieces; what came before a failure comes before it."""
    pending = bytearray()
    try:
        for piece in pieces:
            pending += piece
            if len(pending) >= _APPEND_BYTES:
                yield bytes(pending)
                pending.clear()
    except Failure:
        if pending:
            yield bytes(pending)
        raise
    if pending:
        yield bytes(pending)


def _require_end(file: InputFile, position: int, end: int) -> None:
    if position < end:
        raise ends_early(file, position)


def _readable(name: str) -> str:
    """The end of a name as a file name of any system."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-_READABLE_CHARACTERS:].lstrip(".") or "_"
