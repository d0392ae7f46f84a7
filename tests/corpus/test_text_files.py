from __future__ import annotations

from pathlib import Path

import pytest

from fledge.core.errors import DataError
from fledge.corpus.rejects import Rejects
from fledge.corpus.settings import TextSource
from fledge.corpus.text_files import read_text_files


def texts(path: Path) -> list[str]:
    return [document.text for document in read_text_files(TextSource(name="a", path=str(path)), Rejects())]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path: Path, ends: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(ends.join(["One.", "", "Tw\u00f6."]).encode(encoding))
    assert texts(path) == ["One.\n\nTw\u00f6."]


def test_a_long_file_becomes_several_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"Paragraph {number}." for number in range(100)))
    source = TextSource(name="books", path=str(path), maximum_document_characters=200)
    documents = list(read_text_files(source, Rejects()))
    assert len(documents) > 5
    assert all(len(document.text) <= 200 and document.text.startswith("Paragraph") for document in documents)
    assert [document.id for document in documents[:2]] == ["books:a.txt#0", "books:a.txt#1"]
    assert "\n\n".join(document.text for document in documents) == path.read_text()


def test_equal_texts_share_a_group(tmp_path: Path) -> None:
    for name, text in (("a", "The same."), ("b", "the  same"), ("c", "Another.")):
        (tmp_path / f"{name}.txt").write_text(text)
    groups = [document.group for document in read_text_files(TextSource(name="a", path=str(tmp_path)), Rejects())]
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize("offset", [0, 5, (1 << 16) - 1, 1 << 16, 100_000])
def test_a_file_that_is_not_utf8_is_a_reject_with_its_place(tmp_path: Path, offset: int) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"x" * offset + b"\xe4ffchen")
    rejects = Rejects()
    source = TextSource(name="a", path=str(tmp_path), maximum_reject_share=0.5)
    assert [document.text for document in read_text_files(source, rejects)] == ["good"]
    assert [(reject.file, reject.byte_offset, reject.reason) for reject in rejects.kept] == [
        (str(tmp_path / "bad.txt"), offset, "not UTF-8")
    ]


def test_a_file_that_ends_inside_a_character_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ab\u20ac".encode()[:-1])
    with pytest.raises(DataError, match=r"source a: 1 of 1 files cannot be used .*a\.txt:0: not UTF-8"):
        texts(path)


def test_utf16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words", encoding="utf-16")
    with pytest.raises(DataError, match="looks like UTF-16"):
        texts(path)


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert texts(path) == []
