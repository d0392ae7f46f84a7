from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from fledge.core.errors import DataError
from fledge.corpus.filters import evaluation_files
from fledge.corpus.filters.evaluation_files import find_evaluation_files, records, strings

ROWS: list[Any] = [
    {"question": "who?", "n": 3, "deep": {"choices": ["one", "two", {"a": "three"}], "none": None}},
    "plain",
    ["in", ["a list"]],
]
TEXTS = {"who?", "one", "two", "three", "plain", "in", "a list"}
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
COLUMNS = {
    "question": pa.array(["who?", None]),
    "choices": pa.array([["one", "two"], []]),
    "deep": pa.array([{"a": "three", "n": 1}, {"a": "plain", "n": 2}]),
    "source": pa.array(["in", "a list"]).dictionary_encode(),
    "number": pa.array([1, 2]),
    "image": pa.array([b"\xff\xd8", b""]),
}


@pytest.fixture
def store(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes a file below tmp_path."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def texts_of(path: Path) -> set[str]:
    (file,) = find_evaluation_files([path])
    return set(strings(file))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.jsonl", LINES + b"\n\n"),
        ("test.JSONL", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
        ("test.jsonl.gz", gzip.compress(LINES[:20]) + gzip.compress(LINES[20:])),
        ("test.jsonl.zst", zstandard.compress(LINES[:20]) + zstandard.compress(LINES[20:])),
        ("test.json", json.dumps(ROWS, indent=2).encode()),
    ],
)
def test_every_string_of_json_counts(store: Callable[[str, bytes], Path], name: str, content: bytes) -> None:
    assert texts_of(store(name, content)) == TEXTS


def test_every_string_of_a_parquet_file_counts(tmp_path: Path) -> None:
    pq.write_table(pa.table(COLUMNS), tmp_path / "test.parquet", row_group_size=1)
    assert texts_of(tmp_path / "test.parquet") == TEXTS
    pq.write_table(pa.table({"number": COLUMNS["number"]}), tmp_path / "numbers.parquet")
    assert texts_of(tmp_path / "numbers.parquet") == set()


def test_a_text_file_is_one_text(store: Callable[[str, bytes], Path]) -> None:
    assert texts_of(store("test.txt", "\ufeffone\ntwo é\n".encode())) == {"one\ntwo é\n"}
    assert texts_of(store("test.md", b"# title\n")) == {"# title\n"}


def test_paths_folders_and_globs_in_their_order_each_file_once(store: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    for name in ("b/test.jsonl", "a/test.jsonl", "a/.hidden/test.txt", "a/.secret.txt", "a/image.png", "a/deep/z.md", "last.txt"):
        store(name, name.encode())
    (tmp_path / "link.txt").symlink_to(tmp_path / "last.txt")
    given = [tmp_path / "last.txt", tmp_path / "a", str(tmp_path / "*" / "*.jsonl"), tmp_path / "link.txt"]
    found = find_evaluation_files(given)
    assert [file.name for file in found] == ["last.txt", "z.md", "a/test.jsonl", "b/test.jsonl"]
    assert found == find_evaluation_files(given)
    assert len({file.sha256 for file in found}) == 4
    assert find_evaluation_files([]) == ()


def test_a_link_keeps_its_own_name(store: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    """As in the cache of the hub, where names are links to files named by their hash."""
    blob = store("blobs/0123456789abcdef", LINES)
    (tmp_path / "test.jsonl").symlink_to(blob)
    assert find_evaluation_files([tmp_path / "test.jsonl"])[0].name == "test.jsonl"
    assert texts_of(tmp_path / "test.jsonl") == TEXTS


def test_a_name_that_is_not_text_is_escaped(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.write_text("text", encoding="utf-8")
    assert find_evaluation_files([path])[0].name == "\\xff.txt"


@pytest.mark.parametrize("name", ["missing.jsonl", "empty", "*.jsonl"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.pdf").write_bytes(b"")
    with pytest.raises(DataError, match="there is no") as caught:
        find_evaluation_files([tmp_path / name])
    assert "decontaminate.files" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("test.jsonl", b'{"a": 1}\n{"a": }\n', "line 2, is not JSON"),
        ("test.jsonl", b"[" * 100_000, "line 1, is not JSON: nested too deep"),
        ("test.json", b"", None),
        ("test.txt", b"caf\xe9", "not UTF-8 text \\(byte 3\\)"),
        ("test.jsonl.gz", gzip.compress(LINES)[:-10], "is damaged"),
        ("test.jsonl.gz", LINES, "is damaged"),
        ("test.jsonl.zst", LINES, "is damaged"),
        ("test.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_an_error(store: Callable[[str, bytes], Path], name: str, content: bytes, problem: str | None) -> None:
    path = store(name, content)
    if problem is None:
        assert texts_of(path) == set()
        return
    with pytest.raises(DataError, match=problem) as caught:
        texts_of(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_an_unknown_kind_is_refused(store: Callable[[str, bytes], Path]) -> None:
    with pytest.raises(DataError, match=r"test\.csv ends in none of \.txt"):
        find_evaluation_files([store("test.csv", b"a,b")])


def test_a_file_that_changes_is_noticed(store: Callable[[str, bytes], Path]) -> None:
    (file,) = find_evaluation_files([store("test.txt", b"before")])
    assert list(strings(file)) == ["before"]
    store("test.txt", b"after")
    with pytest.raises(DataError, match="has changed"):
        list(strings(file))
    file.path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(strings(file))


def test_a_file_that_is_or_unpacks_too_large(store: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = 4_000
    monkeypatch.setattr(evaluation_files, "MAXIMUM_BYTES", limit)
    fits, exceeds = json.dumps("a" * (limit - 2)).encode(), json.dumps("a" * (limit - 1)).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
    for suffix, pack in packers.items():
        assert len(texts_of(store(f"fits.jsonl{suffix}", pack(fits)))) == 1
        with pytest.raises(DataError, match="holds more than 4,000 bytes"):
            texts_of(store(f"exceeds.jsonl{suffix}", pack(exceeds)))
    repeated = pa.table({"text": ["a" * 3_000] * 10})
    pq.write_table(repeated, tmp_path / "exceeds.parquet", use_dictionary=False, write_statistics=False, compression="zstd")
    assert (tmp_path / "exceeds.parquet").stat().st_size < limit
    with pytest.raises(DataError, match="holds more than 4,000 bytes"):
        texts_of(tmp_path / "exceeds.parquet")


def test_records_are_numbered_as_they_stand(store: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    """Lines that are empty are not counted as records, but as lines."""
    store("a.jsonl", b'{"n": 1}\n\n{"n": 2}\n')
    store("b.json", b'[{"n": 1}, "x"]')
    store("c.json", b'{"n": 1}')
    store("d.txt", b"a text\nof two lines")
    pq.write_table(pa.table({"n": [1, 2], "deep": [{"a": ["x"]}, {"a": []}]}), tmp_path / "e.parquet")
    found = {file.name: list(records(file)) for file in find_evaluation_files([tmp_path])}
    assert found == {
        "a.jsonl": [(1, {"n": 1}), (3, {"n": 2})],
        "b.json": [(1, {"n": 1}), (2, "x")],
        "c.json": [(1, {"n": 1})],
        "d.txt": [(1, "a text\nof two lines")],
        "e.parquet": [(1, {"n": 1, "deep": {"a": ["x"]}}), (2, {"n": 2, "deep": {"a": []}})],
    }
