"""Finds the local files of a source by path, folder or glob; what is missing or no UTF-8 text at all is named here."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fledge.core.errors import DataError
from fledge.corpus.sources.settings import PlacedSource

_COMPRESSED = ("", ".gz", ".zst")

SUFFIXES = {
    "text": tuple(f"{text}{packed}" for text in (".txt", ".md") for packed in _COMPRESSED),
    "jsonl": tuple(f".jsonl{packed}" for packed in _COMPRESSED),
    "json": tuple(f".json{packed}" for packed in _COMPRESSED),
    "csv": tuple(f".{table}{packed}" for table in ("csv", "tsv") for packed in _COMPRESSED),
    "parquet": (".parquet",),
}
"""What is taken from a folder; a path or a glob takes what it names."""

PARQUET_MAGIC = b"PAR1"
UTF8_BOM = b"\xef\xbb\xbf"

_HEAD_BYTES = 4_096
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257  # its first file may be text, so nothing else gives it away
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_UTF16_NUL_SHARE = 0.3  # Latin text in UTF-16 has a NUL in every second byte


@dataclass(frozen=True)
class SourceFile:
    """A file and its name relative to what the recipe gave."""

    path: Path
    name: str


def find_files(source: PlacedSource) -> list[SourceFile]:
    """The local files of a source, sorted by name, each once however many names lead to it. Raises DataError if there are none."""
    given = Path(source.path).expanduser()
    with data_errors(given):
        if given.is_file():
            return [SourceFile(given, _printable(Path(given.name)))]
        if given.is_dir():
            found = _files_below(given, SUFFIXES[source.kind])
        elif given.exists():
            raise DataError(
                f"source {source.name}: {given} is a pipe or a device, not a file", "write its content into a file and name that"
            )
        elif glob.has_magic(source.path):
            found = _files_matching(str(given))
        else:
            raise DataError(f"source {source.name}: there is no file or folder {given}", "give the path of a file, a folder or a glob")
    if not found:
        wanted = " or ".join(SUFFIXES[source.kind]) if given.is_dir() else "those it matches"
        others = [kind for kind, suffixes in SUFFIXES.items() if given.is_dir() and _files_below(given, suffixes)]
        raise DataError(
            f"source {source.name}: {given} has 0 usable files ({wanted}), at least 1 expected",
            f"it has files for kind: {' and kind: '.join(others)}; use that" if others else "complete the data, or name another path",
        )
    return found


def kind_of(name: str, head: bytes) -> str | None:
    """The kind of source for a file, by its first bytes or else by its name; None if neither tells."""
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    by_name = next((kind for kind in ("text", "jsonl") if name.lower().endswith(SUFFIXES[kind])), None)
    return "jsonl" if by_name is None and head.removeprefix(UTF8_BOM).lstrip().startswith(b"{") else by_name


@contextlib.contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """An OSError while reading becomes a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "mend its permissions or restore it") from error


def refuse_no_text(path: Path, head: bytes) -> None:
    """Raise DataError if the first bytes of a file are those of Parquet or of an archive, or look like UTF-16 or UTF-32, marked or not."""
    head = head[:_HEAD_BYTES]
    if head.startswith(PARQUET_MAGIC):
        raise DataError(f"{path} is a Parquet file", "use kind: parquet for this source")
    if head.startswith(_ZIP_MAGICS) or head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        raise DataError(f"{path} is an archive (zip or tar), which is never unpacked here", "unpack it yourself and name the folder")
    # A run of zeros is a hole that a crash left; UTF-32 has three in a row.
    head = head.replace(bytes(4), b"")
    if head.startswith(_UTF16_BOMS) or head.count(0) > _UTF16_NUL_SHARE * len(head):
        raise DataError(f"{path} looks like UTF-16, not UTF-8", f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}")


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Files with one of the suffixes at any depth; hidden ones and links to folders are not followed."""
    found = []
    for parent, subfolders, names in os.walk(folder, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
    return _named([path for path in found if path.is_file()], folder)


def _refuse(error: OSError) -> NoReturn:
    """A folder that cannot be listed: to leave it out in silence would be to lose data."""
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}", "mend its permissions, or name what to read by a glob")


def _files_matching(pattern: str) -> list[SourceFile]:
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = [path for path in map(Path, matches) if path.is_file()]
    parents = [str(path.parent) for path in found]
    return _named(found, Path(os.path.commonpath(parents)) if parents else Path())


def _named(paths: list[Path], root: Path) -> list[SourceFile]:
    """Sorted by name; of several names of one file (links, a glob that matches it twice) the first stays."""
    named = sorted((SourceFile(path, _printable(path.relative_to(root))) for path in paths), key=lambda file: file.name)
    first: dict[Path, SourceFile] = {}
    for file in named:
        first.setdefault(file.path.resolve(), file)
    return list(first.values())


def _printable(path: Path) -> str:
    """A file name as UTF-8 text: names on disk may be any bytes."""
    return os.fsencode(path.as_posix()).decode("utf-8", errors="backslashreplace")
