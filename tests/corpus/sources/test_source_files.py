from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fledge.core.errors import DataError
from fledge.corpus.sources.files import find_files, kind_of, refuse_no_text
from fledge.corpus.sources.settings import JsonLinesSource, ParquetSource, TextSource


def names(path: Path | str) -> list[str]:
    return [file.name for file in find_files(TextSource(name="a", path=str(path)))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "deep/c.TXT", "deep/er/d.txt.gz", "e.md.zst", ".hidden.txt", ".git/e.txt", "f.json"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in ("g.jsonl", "h.jsonl.gz", "i.jsonl.zst", "j.parquet", "k.json.gz"):
        (tmp_path / "data" / name).write_text(name)
    return tmp_path / "data"


def test_a_file_a_folder_and_a_glob(folder: Path) -> None:
    assert names(folder / "f.json") == ["f.json"]
    assert names(folder) == ["a.md", "b.txt", "deep/c.TXT", "deep/er/d.txt.gz", "e.md.zst"]
    assert names(f"{folder}/**/*.txt*") == ["b.txt", "deep/er/d.txt.gz"]
    found = find_files(JsonLinesSource(name="a", path=str(folder)))
    assert [file.name for file in found] == ["g.jsonl", "h.jsonl.gz", "i.jsonl.zst"]
    assert [file.name for file in find_files(JsonLinesSource(name="a", path=f"{folder}/*.json*"))] == [
        "f.json", "g.jsonl", "h.jsonl.gz", "i.jsonl.zst", "k.json.gz",
    ]  # fmt: skip
    assert [file.name for file in find_files(ParquetSource(name="a", path=str(folder)))] == ["j.parquet"]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*/nowhere"):
        names(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\*\.rst has 0 usable files"):
        names(f"{folder}/*.rst")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has 0 usable files \(\.txt or \.txt\.gz or \.txt\.zst or \.md"):
        names(tmp_path / "empty")


def test_a_circle_of_links_ends(folder: Path) -> None:
    (folder / "deep" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.txt").symlink_to(folder / "gone.txt")
    (folder / "self.txt").symlink_to(folder / "self.txt")
    assert len(names(folder)) == 5
    assert names(f"{folder}/**/b.txt") == ["b.txt"]


def test_a_file_of_several_names_counts_once(folder: Path) -> None:
    (folder / "aa.txt").symlink_to(folder / "b.txt")
    assert names(f"{folder}/*.txt") == ["aa.txt"]
    assert names(f"{folder}/**/**/b.txt") == ["b.txt"]


def test_what_may_not_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"deep cannot be listed: Permission denied"):
        names(folder)


def test_a_file_name_of_any_bytes_becomes_text(tmp_path: Path) -> None:
    (tmp_path / 'new\nline "quoted".txt').write_text("text")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert names(tmp_path) == ["\\xff.txt", 'new\nline "quoted".txt']


def test_a_folder_with_files_of_another_kind_says_so(folder: Path) -> None:
    for name in ("g.jsonl", "h.jsonl.gz", "i.jsonl.zst"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="has 0 usable files") as caught:
        find_files(JsonLinesSource(name="a", path=str(folder)))
    assert caught.value.remedy == "it has files for kind: text and kind: json and kind: parquet; use that"
    with pytest.raises(DataError, match="has 0 usable files") as caught:
        find_files(JsonLinesSource(name="a", path=f"{folder}/*.rst"))
    assert caught.value.remedy == "complete the data, or name another path"


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.jsonl", b"PAR1\x15", "parquet"),
        ("a.parquet", b'\xef\xbb\xbf {"text"', "jsonl"),
        ("a.JSONL.gz", b"\x1f\x8b", "jsonl"),
        ("a.txt", b'{"text"', "text"),
        ("a.parquet", b"PAR", None),
        ("a", b"", None),
    ],
)
def test_bytes_or_names_tell_the_kind(name: str, head: bytes, kind: str | None) -> None:
    assert kind_of(name, head) == kind


def test_parquet_is_no_text() -> None:
    with pytest.raises(DataError, match=r"file\.txt is a Parquet file") as caught:
        refuse_no_text(Path("file.txt"), b"PAR1\x15\x04")
    assert caught.value.remedy == "use kind: parquet for this source"
    refuse_no_text(Path("file.txt"), b"PAR for the course")


def test_utf16_is_recognised() -> None:
    path = Path("file.txt")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(DataError, match="looks like UTF-16"):
            refuse_no_text(path, "plain words".encode(encoding))
    refuse_no_text(path, "plain w\u00f6rds \x00".encode())
    refuse_no_text(path, b"")
