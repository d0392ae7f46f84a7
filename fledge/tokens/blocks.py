"""Checked blocks: an array on disk in blocks of 1 MiB, each with its CRC-32, computed while it is written and compared when it is read.

A block is compared at its first touch by a reader, and what is handed out then is what was compared. Later reads of the same block
trust it: they find a file that became shorter, not a byte that changed meanwhile. Elements are read with `pread`, never mapped: a
mapped file that is cut short while it is used kills the process (SIGBUS), a short read is an error with a name. From the page cache
a row of 1,024 ids takes 11 to 14 microseconds (a mapped one 8), a block 0.5 ms to read and compare (zlib's CRC-32), once.

CRC-32 finds every change within 32 bits, and misses one in four billion of others. It is against accidents, not forgers; for
the whole bytes of a finished set there is its manifest's SHA-256 (`fledge verify`).
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fledge.core.errors import DataError
from fledge.tokens.shard_format import REMEDY

BLOCK_BYTES = 1 << 20
_LONGEST_READ_BYTES = 1 << 30

Checksums = NDArray[np.uint32]


class BlockChecksums:
    """CRC-32 of every block of a stream of bytes that comes in pieces."""

    def __init__(self) -> None:
        self._finished: list[int] = []
        self._crc32, self._filled = 0, 0

    def update(self, content: bytes) -> None:
        """The next bytes."""
        rest = memoryview(content)
        while rest:
            piece = rest[: BLOCK_BYTES - self._filled]
            self._crc32 = zlib.crc32(piece, self._crc32)
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._finish_block()

    def finish(self) -> bytes:
        """All checksums as they lie on disk, little-endian; the last block may be short."""
        if self._filled:
            self._finish_block()
        return np.array(self._finished, dtype="<u4").tobytes()

    def _finish_block(self) -> None:
        self._finished.append(self._crc32)
        self._crc32, self._filled = 0, 0


class CheckedArray:
    """(N,) elements of a file behind its header. Reads what is asked for, and compares each block when it is first touched.

    Indexing gives read-only arrays and raises DataError, naming file, block and offset, for a block that is not what was written or
    not there any more.
    """

    def __init__(self, path: Path, element_type: np.dtype[Any], count: int, checksums: Checksums, first_byte: int) -> None:
        assert len(checksums) == -(-count * element_type.itemsize // BLOCK_BYTES)
        self.path = path
        self.dtype = element_type
        self._count = count
        self._checksums = checksums
        self._first_byte = first_byte
        self._size_bytes = count * element_type.itemsize
        self._unchecked = np.ones(len(checksums), dtype=bool)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Any: ...

    @overload
    def __getitem__(self, place: slice) -> NDArray[Any]: ...

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(self._count)
            assert step == 1, "elements are read in one piece"
            return self._read(start, max(start, stop))
        index = range(self._count)[place]
        return self._read(index, index + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def damages(self) -> Iterator[str]:
        """Compare every block; yields a line for each that is damaged."""
        for block in range(len(self._checksums)):
            try:
                self._read_blocks(block, block + 1)
            except DataError as error:
                yield error.problem

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        if start == stop:
            return np.empty(0, self.dtype)
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        first, last = begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        if self._unchecked[first:last].any():
            offset = begin - first * BLOCK_BYTES
            content = memoryview(self._read_blocks(first, last))[offset : offset + end - begin]
        else:
            content = memoryview(self._pread(begin, end))
        return np.frombuffer(content, self.dtype)

    def _read_blocks(self, first: int, last: int) -> bytes:
        content = self._pread(first * BLOCK_BYTES, min(last * BLOCK_BYTES, self._size_bytes))
        for block in range(first, last):
            place = (block - first) * BLOCK_BYTES
            piece = memoryview(content)[place : place + BLOCK_BYTES]
            found, written = zlib.crc32(piece), int(self._checksums[block])
            if found != written:
                begin = self._first_byte + block * BLOCK_BYTES
                raise DataError(
                    f"{self.path} is damaged: block {block}, bytes {begin:,} to {begin + len(piece):,}, "
                    f"has the CRC-32 {found:08x}, written was {written:08x}",
                    REMEDY,
                )
        self._unchecked[first:last] = False
        return content

    def _pread(self, begin: int, end: int) -> bytes:
        pieces = []
        while begin < end:
            try:
                piece = os.pread(self._descriptor, min(end - begin, _LONGEST_READ_BYTES), self._first_byte + begin)
            except OSError as error:
                raise DataError(f"{self.path} cannot be read at byte {self._first_byte + begin:,}: {error.strerror}", REMEDY) from error
            if not piece:
                raise DataError(
                    f"{self.path} was cut short while it was used: it ends at byte {self._first_byte + begin:,}, "
                    f"and had {self._first_byte + self._size_bytes:,} bytes",
                    REMEDY,
                )
            pieces.append(piece)
            begin += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
