from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources import text_files
from fledge.corpus.sources.piece import Piece
from fledge.corpus.sources.reading import read_piece
from fledge.corpus.sources.settings import TextSource

from .readers import SPLITTER, input_file, input_files, places, read_all


def source_of(path: Path, **settings: Any) -> TextSource:
    return TextSource(name="a", path=str(path), **{"maximum_reject_share": 1.0, **settings})


def read(path: Path, **settings: Any) -> tuple[list[Document], Rejects]:
    files = input_files(path) if path.is_dir() else [input_file(path)]
    rows, rejects = read_all(source_of(path, **settings), files)
    return [row for row in rows if isinstance(row, Document)], rejects


def texts(path: Path) -> list[str]:
    return [document.text for document in read(path)[0]]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path: Path, ends: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(ends.join(["One.", "", "Tw\u00f6."]).encode(encoding))
    assert texts(path) == ["One.\n\nTw\u00f6."]


@pytest.mark.parametrize("block_bytes", [3, 4, 7])
def test_where_blocks_end_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffa\r\nb\r\r\n\u20ac \U0001f41f\ufeff\n".encode())
    assert texts(path) == ["a\nb\n\n\u20ac \U0001f41f\ufeff"]


def test_a_long_file_becomes_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Paragraph {number}." for number in range(100)))
    documents, _ = read(path, maximum_document_characters=200)
    assert len(documents) > 5
    assert all(len(document.text) <= 200 and document.text.startswith("Paragraph") for document in documents)
    assert [document.id for document in documents[:2]] == ["a:a.txt#0", "a:a.txt#1"]
    assert "\n\n".join(document.text for document in documents) == path.read_text()
    monkeypatch.setattr(text_files, "_HELD_CHARACTERS", 100)
    assert read(path, maximum_document_characters=200)[0] == documents


def test_files_of_a_folder_keep_their_order(tmp_path: Path) -> None:
    for name, text in (("b.md", "Second."), ("a.txt", "First."), ("deep/c.txt", "Third.")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    documents, _ = read(tmp_path)
    assert [(document.id, document.text, document.group) for document in documents] == [
        ("a:a.txt#0", "First.", ""),
        ("a:b.md#0", "Second.", ""),
        ("a:deep/c.txt#0", "Third.", ""),
    ]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.md.zst"])
def test_compressed_files(tmp_path: Path, name: str) -> None:
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    path = tmp_path / name
    path.write_bytes(pack(b"One.\r\n") + pack("Tw\u00f6.".encode()))
    assert texts(path) == ["One.\nTw\u00f6."]
    path.write_bytes(pack(b"One.") + b"garbage")
    documents, rejects = read(path)
    assert [document.text for document in documents] == ["One."]
    assert places(rejects) == [(name, 0, 4, "bytes behind the last compressed member (7)")]
    path.write_bytes(pack(b"One." * 100)[:-3])
    with pytest.raises(DataError, match=rf"{name} is damaged: it ends inside a compressed member"):
        read(path)


@pytest.mark.parametrize("offset", [0, 5, (1 << 16) - 1, 1 << 16, 100_000])
@pytest.mark.parametrize("name", ["bad.txt", "bad.txt.gz"])
def test_a_file_that_is_not_utf8_is_a_reject_with_its_place(tmp_path: Path, offset: int, name: str) -> None:
    (tmp_path / "good.txt").write_text("good")
    content = b"x" * offset + b"\xe4ffchen"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["good"]
    assert places(rejects) == [(name, 0, offset, "not UTF-8")]
    assert rejects.seen["a"] == 2


def test_a_file_that_ends_inside_a_character_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ab\u20ac".encode()[:-1])
    documents, rejects = read(path)
    assert not documents
    with pytest.raises(DataError, match=r"source a: 1 of 1 files cannot be used .*a\.txt:0: not UTF-8"):
        rejects.require_few("a", "files", 0.05, at_end=True)


def test_utf16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words", encoding="utf-16")
    with pytest.raises(DataError, match="looks like UTF-16"):
        texts(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\r\n", b" "])
def test_an_empty_file_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert texts(path) == []


@pytest.mark.parametrize("changed", [b"other \xff words.", b"longer than it was."])
def test_a_file_that_changes_between_two_looks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bytes) -> None:
    monkeypatch.setattr(text_files, "_HELD_CHARACTERS", 5)
    path = tmp_path / "a.txt"
    path.write_bytes(b"words and words.")
    checked = text_files._checked

    def check_and_change(file: Any) -> Any:
        found = checked(file)
        path.write_bytes(changed)
        return found

    monkeypatch.setattr(text_files, "_checked", check_and_change)
    with pytest.raises(DataError, match=r"a\.txt changed while it was read"):
        list(read_piece(source_of(path), Piece((input_file(path),)), Rejects(), SPLITTER))


def test_mostly_unusable_files_are_refused_after_a_thousand(tmp_path: Path) -> None:
    for number in range(1_001):
        (tmp_path / f"{number:04d}.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"1,000 of 1,000 files cannot be used"):
        read(tmp_path, maximum_reject_share=0.1)
