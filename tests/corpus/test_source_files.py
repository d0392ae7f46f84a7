from __future__ import annotations

import os
from pathlib import Path

import pytest

from fledge.core.errors import DataError
from fledge.corpus.files import files_fingerprint, find_files, refuse_utf16
from fledge.corpus.settings import JsonLinesSource, TextSource


def names(path: Path | str, expect_files: int | None = None) -> list[str]:
    return [file.name for file in find_files(TextSource(name="a", path=str(path), expect_files=expect_files))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "deep/c.TXT", "deep/er/d.txt", ".hidden.txt", ".git/e.txt", "f.json", "g.jsonl", "h.jsonl.gz"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


def test_a_file_a_folder_and_a_glob(folder: Path) -> None:
    assert names(folder / "f.json") == ["f.json"]
    assert names(folder) == ["a.md", "b.txt", "deep/c.TXT", "deep/er/d.txt"]
    assert names(f"{folder}/**/*.txt") == ["b.txt", "deep/er/d.txt"]
    found = find_files(JsonLinesSource(name="a", path=str(folder)))
    assert [file.name for file in found] == ["g.jsonl", "h.jsonl.gz"]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*/nowhere"):
        names(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\*\.rst has 0 usable files"):
        names(f"{folder}/*.rst")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has 0 usable files \(\.txt or \.md\)"):
        names(tmp_path / "empty")


def test_fewer_files_than_expected(folder: Path) -> None:
    assert len(names(folder, expect_files=4)) == 4
    with pytest.raises(DataError, match=r"has 4 usable files .*, at least 5 expected"):
        names(folder, expect_files=5)


def test_a_circle_of_links_ends(folder: Path) -> None:
    (folder / "deep" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.txt").symlink_to(folder / "gone.txt")
    assert len(names(folder)) == 4


def test_a_file_name_of_any_bytes_becomes_text(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert names(tmp_path) == ["\\xff.txt"]
    assert len(files_fingerprint(find_files(TextSource(name="a", path=str(tmp_path))))) == 64


def test_the_fingerprint_follows_names_and_contents_not_the_place(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path) -> str:
        return files_fingerprint(find_files(TextSource(name="a", path=str(path))))

    before = fingerprint(folder)
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == before
    (moved / "b.txt").write_text("other")
    changed = fingerprint(moved)
    assert changed != before
    (moved / "b.txt").rename(moved / "bb.txt")
    assert fingerprint(moved) not in {before, changed}


def test_utf16_is_recognised() -> None:
    path = Path("file.txt")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(DataError, match="looks like UTF-16"):
            refuse_utf16(path, "plain words".encode(encoding))
    refuse_utf16(path, "plain w\u00f6rds \x00".encode())
    refuse_utf16(path, b"")
