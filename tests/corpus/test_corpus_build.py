from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus import build, python_docs
from fledge.corpus.document import Row, read_conversations, read_documents, read_preferences
from fledge.corpus.settings import Content, CorpusSettings, JsonLinesSource, PythonDocsSource, Source, TextSource


def settings(*sources: Source, **values: Any) -> CorpusSettings:
    return CorpusSettings(sources=sources, **values)


@pytest.fixture
def lines(tmp_path: Path) -> JsonLinesSource:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document number {number % 900}."}) + "\n" for number in range(1_000)))
    return JsonLinesSource(name="numbers", path=str(path))


@pytest.fixture
def embedded(library: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusSettings:
    """All three contents of the small library."""
    monkeypatch.setattr(python_docs, "stdlib_folder", lambda: library)
    return settings(
        PythonDocsSource(name="pairs", content="preferences"),
        PythonDocsSource(name="docs"),
        PythonDocsSource(name="questions", content="conversations"),
        validation_fraction=0.3,
    )


def built(folder: Path, wanted: CorpusSettings, content: Content = "documents") -> dict[str, Any]:
    with disk.staging(folder) as partial:
        return build.build_corpus(wanted, content, partial)


def test_rows_are_split_by_group_into_shards(tmp_path: Path, lines: JsonLinesSource) -> None:
    stats = built(tmp_path / "c", settings(lines, validation_fraction=0.1, shard_documents=300))
    train, validation = (list(read_documents(tmp_path / "c", split)) for split in ("train", "validation"))
    assert stats["rows"] == {"train": len(train), "validation": len(validation)}
    assert len(train) + len(validation) == 1_000 and 60 < len(validation) < 140
    assert stats["groups"]["train"] + stats["groups"]["validation"] == 900
    assert not {row.group for row in train} & {row.group for row in validation}
    assert [row.id for row in train] == sorted((row.id for row in train), key=lambda name: int(name.rpartition(":")[2]))
    counts = stats["sources"]["numbers"]["validation"]
    assert counts == {"rows": len(validation), **dict.fromkeys(("characters", "utf8_bytes"), sum(len(row.text) for row in validation))}
    shards = [path.name for path in sorted((tmp_path / "c").glob("train-*"))]
    assert shards == [f"train-{number:05d}.parquet" for number in range(-(-len(train) // 300))]
    assert pq.ParquetFile(tmp_path / "c" / "train-00000.parquet").metadata.num_rows == 300
    assert pq.ParquetFile(tmp_path / "c" / "train-00000.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, embedded: CorpusSettings, lines: JsonLinesSource) -> None:
    for content in build.contents(embedded):
        folders = [tmp_path / f"{content}-{attempt}" for attempt in (1, 2)]
        for folder in folders:
            python_docs.stdlib_entries.cache_clear()
            built(folder, embedded, content)
        first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
        assert first == second and first


def test_at_most_so_many_rows_of_a_source(tmp_path: Path, lines: JsonLinesSource) -> None:
    for maximum, rows in ((10, 10), (1_000, 1_000), (5_000, 1_000)):
        few = JsonLinesSource(name="numbers", path=lines.path, maximum_documents=maximum)
        assert sum(built(tmp_path / str(maximum), settings(few))["rows"].values()) == rows


def test_many_row_groups_equal_few(tmp_path: Path, lines: JsonLinesSource, monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path / "few", settings(lines))
    monkeypatch.setattr(build, "_ROW_GROUP_ROWS", 7)
    built(tmp_path / "many", settings(lines))
    assert list(read_documents(tmp_path / "few", "train")) == list(read_documents(tmp_path / "many", "train"))


def test_the_embedded_contents_agree(tmp_path: Path, embedded: CorpusSettings) -> None:
    assert build.contents(embedded) == ("documents", "conversations", "preferences")
    held: dict[str, set[str]] = {}
    for content in build.contents(embedded):
        stats = built(tmp_path / content, embedded, content)
        assert stats["python"]
    for split in ("train", "validation"):
        rows: list[Row] = [*read_documents(tmp_path / "documents", split), *read_conversations(tmp_path / "conversations", split)]
        rows += read_preferences(tmp_path / "preferences", split)
        held[split] = {row.group for row in rows}
    assert held["train"] and held["validation"] and not held["train"] & held["validation"]
    assert stats["damages"]["train"]


def test_rejects_are_written_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n' + b'{"text": "two"}\n' * 20)
    stats = built(tmp_path / "c", settings(JsonLinesSource(name="a", path=str(path))))
    assert stats["rejects"] == {"a": {"seen": 22, "rejected": 1, "reasons": {"not UTF-8": 1}}}
    rejects = [json.loads(line) for line in (tmp_path / "c" / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [{"source": "a", "file": str(path), "line": 2, "byte_offset": 16, "reason": "not UTF-8"}]


@pytest.mark.parametrize("text", ["One document.", "One kilobyte. " * 73])
def test_a_tiny_corpus_lies_in_train_with_a_warning(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(text)
    stats = built(tmp_path / "c", settings(TextSource(name="a", path=str(tmp_path / "a.txt")), validation_fraction=0.999_999))
    assert stats["rows"] == {"train": 1, "validation": 0}
    assert "no validation documents" in capsys.readouterr().err
    assert [document.text for document in read_documents(tmp_path / "c", "train")] == [text]
    assert list(read_documents(tmp_path / "c", "validation")) == []


def test_nothing_held_out_on_purpose_is_no_warning(tmp_path: Path, lines: JsonLinesSource, capsys: pytest.CaptureFixture[str]) -> None:
    assert built(tmp_path / "c", settings(lines, validation_fraction=0.0))["rows"] == {"train": 1_000, "validation": 0}
    assert "warning" not in capsys.readouterr().err


def test_no_documents_are_an_error_with_counts(tmp_path: Path, lines: JsonLinesSource) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"source none gives 0 documents \(0 read, 0 rejected\)"):
        built(tmp_path / "c", settings(lines, JsonLinesSource(name="none", path=str(path))))
    assert not (tmp_path / "c").exists()
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(DataError, match=r"source none gives 0 documents \(2 read, 2 rejected\)"):
        built(tmp_path / "c", settings(JsonLinesSource(name="none", path=str(path), maximum_reject_share=1.0)))


def test_the_identity_follows_contents_and_settings_not_places(tmp_path: Path, lines: JsonLinesSource) -> None:
    before = build.identity_with_fingerprints(settings(lines), "documents")
    assert json.loads(json.dumps(before)) == before
    path = Path(lines.path)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / path.name
    copy.write_bytes(path.read_bytes())
    assert build.identity_with_fingerprints(settings(JsonLinesSource(name="numbers", path=str(copy))), "documents") == before
    assert build.identity_with_fingerprints(settings(lines, seed=1), "documents") != before
    other = PythonDocsSource(name="q", content="conversations")
    assert build.identity_with_fingerprints(settings(lines, other), "documents") == before
    path.write_text('{"text": "x"}\n')
    assert build.identity_with_fingerprints(settings(lines), "documents") != before


def test_a_failed_build_leaves_no_open_file(tmp_path: Path, lines: JsonLinesSource) -> None:
    broken = TextSource(name="gone", path=str(tmp_path / "gone.txt"))
    with pytest.raises(DataError, match=r"there is no file or folder .*gone\.txt"):
        built(tmp_path / "c", settings(lines, broken, shard_documents=100))
    assert not list(tmp_path.glob("c*"))
