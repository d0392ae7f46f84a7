"""What a source is read from: the files it resolves to, and the pieces into which their reading is cut.

A piece is what one unit of work reads. Where it begins and ends depends on the files alone, never on how many processes work,
so the rows of all pieces, one after another, are always the same rows in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputFile:
    """One file of a source, wherever it lies."""

    address: str
    """A local path, or an address that fsspec opens: https://..., s3://..., hf://datasets/OWNER/NAME@COMMIT/PATH."""
    name: str
    """Its name within the source, printable: for row ids, rejects and messages. Equal wherever the file is read from."""
    size_bytes: int
    fingerprint: str
    """Changes when the content does: a SHA-256, the hub's blob id, an ETag with the size."""


@dataclass(frozen=True)
class Piece:
    """Some small files, or a stretch of a large one."""

    files: tuple[InputFile, ...] = ()
    """Empty for a source that has no files (the embedded documentation)."""
    start: int = 0
    """Of JSON Lines: the byte from which on lines begin that are ours; of Parquet: the first row group."""
    end: int | None = None
    """Behind the last such byte or row group; None reads to the end."""
    size_bytes: int = 0
    """Roughly what has to be read, for progress."""
