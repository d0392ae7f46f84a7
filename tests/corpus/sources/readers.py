"""Reads sources as the factory does: cut into pieces, each with its own rejects, which are merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.corpus.document import Row
from fledge.corpus.rejects import Reject, Rejects
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.reading import PIECE_BYTES, cut_pieces, read_piece
from fledge.corpus.sources.settings import Content, JsonLinesSource, Source
from fledge.corpus.split import Splitter

SPLITTER = Splitter(0.08, 0)


def input_file(path: Path, root: Path | None = None) -> InputFile:
    name = path.name if root is None else path.relative_to(root).as_posix()
    return InputFile(str(path), name, path.stat().st_size, f"fingerprint of {name}")


def input_files(folder: Path) -> list[InputFile]:
    return sorted((input_file(path, folder) for path in folder.rglob("*") if path.is_file()), key=lambda file: file.name)


def read_all(source: Source, files: Sequence[InputFile], piece_bytes: int = PIECE_BYTES) -> tuple[list[Row], Rejects]:
    """The rows of all pieces, and their rejects, which travel as JSON."""
    rows: list[Row] = []
    parts = []
    for piece in cut_pieces(source, files, piece_bytes):
        rejects = Rejects()
        rows += read_piece(source, piece, rejects, SPLITTER)
        parts.append(Rejects.from_json(json.loads(json.dumps(rejects.as_json()))))
    return rows, Rejects.merged(parts)


def places(rejects: Rejects) -> list[tuple[str, int, int, str]]:
    return [_place(reject) for reject in rejects.kept]


def _place(reject: Reject) -> tuple[str, int, int, str]:
    return reject.file, reject.line, reject.byte_offset, reject.reason


def json_lines_source(path: Path, content: Content = "documents", **settings: Any) -> JsonLinesSource:
    return JsonLinesSource(name="a", path=str(path), content=content, **{"maximum_reject_share": 1.0, **settings})


def read_json_lines(path: Path, content: Content = "documents", **settings: Any) -> tuple[list[Row], Rejects]:
    return read_all(json_lines_source(path, content, **settings), [input_file(path)])


def reasons(path: Path, content: Content = "documents", **settings: Any) -> list[str]:
    return [reject.reason for reject in read_json_lines(path, content, **settings)[1].kept]
