"""A file of a source as the bytes that were packed into it: .gz and .zst are decompressed, whoever reads it sees one plain stream.

Compressed data decides what it costs to read it, so the costs are bounded here: compressed bytes are fed in pieces so small that
none can expand to more than 64 MiB, the window of zstd is limited, and a file that expands as no text does is given up. Members in
a row, as pigz and Common Crawl write them, are one stream, as for `gzip -d`.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import zstandard

from fledge.core.errors import DataError, FledgeError
from fledge.corpus.sources.files import data_errors, kind_of, refuse_no_text
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import open_input
from fledge.corpus.sources.transport import is_remote, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ZSTD_WINDOW_BYTES = 128 << 20
"""What `zstd --long` needs at most; the format allows 2 GiB and more, which every reader would have to hold in memory."""

EXPANSION = 100
EXPANSION_FROM_BYTES = 2 << 30
"""Text packs to a third or a fifth, with duplicates to a twentieth. A file that is worse, and longer than this, is given up there: a
line of a gigabyte costs its neighbours nothing, and a bomb no more than a few seconds."""

GIVEN_UP = "the rest of the file"
"""How the reason of such a reject begins."""

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 4_096
_TRAILING_BYTES = 1 << 16
_ZSTD_HEADER_BYTES = 18
_SKIPPABLE_MAGICS = tuple(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))


class Damaged(Exception):
    """A compressed file breaks off or is not what it should be."""


class GivenUp(Exception):
    """A compressed file expands without end."""


@dataclass(frozen=True)
class _Packing:
    suffix: str
    magics: tuple[bytes, ...]
    feed_bytes: int
    """Deflate expands at most 1,032-fold; 4 bytes of zstd become up to 128 KiB."""
    begin: Callable[[], Any]


_PACKINGS = (
    _Packing(".gz", (b"\x1f\x8b",), 16 << 10, lambda: zlib.decompressobj(wbits=31)),
    _Packing(
        ".zst",
        (b"\x28\xb5\x2f\xfd", *_SKIPPABLE_MAGICS),
        2 << 10,
        lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj(),
    ),
)


class Unpacked(io.BufferedReader):
    """Plain bytes. Reading raises Damaged or GivenUp, of a compressed file."""

    @property
    def left_out(self) -> str:
        """Why the end of the file was not read, "" if it was; known once everything before it has been read."""
        return self.raw.left_out if isinstance(self.raw, _Members) else ""


def is_packed(name: str) -> bool:
    """Whether a file is compressed as a whole, by its name."""
    return _packing(name) is not None


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[BinaryIO]:
    """A file as it lies. Raises DataError if it cannot be read, or is another one than was looked up at the beginning or at the end."""
    path = Path(file.address)
    if is_remote(file.address):
        with open_input(file) as stored:
            yield stored
        return
    with data_errors(path), open_input(file) as stored:
        before = _stamp(stored)
        if before[0] != file.size_bytes:
            raise changed(file)
        yield stored
        if _stamp(stored) != before:
            raise changed(file)


@contextlib.contextmanager
def unpacked(file: InputFile, start: int = 0) -> Iterator[Unpacked]:
    """The plain bytes of a file, from byte `start` on (0 if it is compressed).

    Raises DataError as `opened` does, and if they are Parquet, an archive or UTF-16.
    """
    packing = _packing(file.name)
    with opened(file) as stored:
        stored.seek(start)
        raw = cast(io.RawIOBase, stored) if packing is None else _Members(stored, packing, shown(file.address))
        stream = Unpacked(raw, _BUFFER_BYTES)
        try:
            if start == 0:
                _refuse_no_text(file, stream)
            yield stream
        finally:
            # Closing it would close what `opened` still looks at.
            stream.detach()


def remedy_for_no_parquet(file: InputFile) -> str:
    """What to do about a file that cannot be read as Parquet: it is of another kind, or damaged."""
    head = b""
    with contextlib.suppress(FledgeError), opened(file) as stored:
        head = stored.read(_HEAD_BYTES)
    kind = kind_of(file.name, head)
    return "restore the file from its source" if kind in {None, "parquet"} else f"use kind: {kind} for this source"


def changed(file: InputFile) -> DataError:
    """The error for a file that is another one than was looked up."""
    return DataError(f"{shown(file.address)} changed while it was read", "run the same command again when nothing writes to it")


def _stamp(stored: BinaryIO) -> tuple[int, int]:
    found = os.fstat(stored.fileno())
    return found.st_size, found.st_mtime_ns


def _refuse_no_text(file: InputFile, stream: Unpacked) -> None:
    # Whoever reads a damaged file meets the failure again, and knows the line.
    with contextlib.suppress(Damaged, GivenUp):
        refuse_no_text(Path(shown(file.address)), stream.peek(_HEAD_BYTES))


def _packing(name: str) -> _Packing | None:
    return next((packing for packing in _PACKINGS if name.lower().endswith(packing.suffix)), None)


class _Members(io.RawIOBase):
    """The content of the compressed members of a file, one after another."""

    def __init__(self, stored: BinaryIO, packing: _Packing, address: str) -> None:
        super().__init__()
        self._stored, self._packing, self._address = stored, packing, address
        self._decompressor: Any = None
        self._members = 0
        self._pending = b""
        self._ready = memoryview(b"")
        self._packed_bytes = self._unpacked_bytes = 0
        self._failure: Damaged | GivenUp | None = None
        self.left_out = ""

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._unpacked_bytes - len(self._ready)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """At least one byte, or 0 at the end. A failure is raised again at every further call."""
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            try:
                if not self._advance():
                    return 0
            except (zlib.error, zstandard.ZstdError) as error:
                self._failure = Damaged(str(error))
            except (Damaged, GivenUp) as error:
                self._failure = error
        view = memoryview(buffer).cast("B")
        size_bytes = min(len(view), len(self._ready))
        view[:size_bytes] = self._ready[:size_bytes]
        self._ready = self._ready[size_bytes:]
        return size_bytes

    def _advance(self) -> bool:
        """Decompress a little more; False at the end."""
        packed = self._pending or self._stored.read(self._packing.feed_bytes)
        self._pending = b""
        if self._decompressor is None:
            packed = self._next_member(packed)
            if not packed:
                return False
        elif not packed:
            raise Damaged("it ends inside a compressed member")
        output = self._decompressor.decompress(packed)
        if self._decompressor.eof:
            self._pending, self._decompressor = self._decompressor.unused_data, None
        self._packed_bytes += len(packed) - len(self._pending)
        self._unpacked_bytes += len(output)
        if self._unpacked_bytes > max(EXPANSION_FROM_BYTES, EXPANSION * self._packed_bytes):
            raise GivenUp(f"{GIVEN_UP}: it expands more than {EXPANSION}-fold")
        self._ready = memoryview(output)
        return True

    def _next_member(self, packed: bytes) -> bytes:
        """Begin the next member; returns its first bytes, none at the end of the file."""
        if self._members:
            # Tapes and block devices pad with zeros, as gzip knows.
            while not (packed := packed.lstrip(b"\0")):
                if not (packed := self._stored.read(self._packing.feed_bytes)):
                    return b""
        if len(packed) < _ZSTD_HEADER_BYTES:
            packed += self._stored.read(_ZSTD_HEADER_BYTES - len(packed))
        if not packed:
            return b""
        if not packed.startswith(self._packing.magics):
            return self._refuse(packed)
        if packed.startswith(b"\x28\xb5\x2f\xfd"):
            self._require_small_window(packed)
        self._decompressor = self._packing.begin()
        self._members += 1
        return packed

    def _refuse(self, packed: bytes) -> bytes:
        """A few bytes that are no member are left out; more may be members whose beginning is damaged."""
        if not self._members:
            raise Damaged(f"it is no {self._packing.suffix} file")
        packed += self._stored.read(_TRAILING_BYTES)
        if len(packed) > _TRAILING_BYTES:
            raise Damaged("what follows a compressed member is none")
        self.left_out = f"bytes behind the last compressed member ({len(packed):,})"
        return b""

    def _require_small_window(self, header: bytes) -> None:
        window_bytes = zstandard.get_frame_parameters(header).window_size
        if window_bytes > ZSTD_WINDOW_BYTES:
            raise DataError(
                f"{self._address} needs a window of {window_bytes:,} bytes to be decompressed, {ZSTD_WINDOW_BYTES:,} are allowed",
                "compress it again without --ultra and --long above 27",
            )
