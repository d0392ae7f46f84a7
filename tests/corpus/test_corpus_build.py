from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus import build
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.document import Row, read_conversations, read_documents, read_preferences
from fledge.corpus.filters.evaluation_files import find_evaluation_files
from fledge.corpus.filters.settings import DecontaminateSettings, QualitySettings
from fledge.corpus.request import contents, corpus_identity
from fledge.corpus.resolve import resolve_sources
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.settings import Content, JsonLinesSource, PythonDocsSource, TextSource

from .corpus_assembly import built, cut_small, digests, lines_source, near_copy, settings, statistics_of, texts, write_lines


@pytest.fixture
def lines(tmp_path: Path) -> JsonLinesSource:
    """1,000 documents, of which 100 say the same as one of the others."""
    path = write_lines(tmp_path / "data.jsonl", (f"Document number {number % 900}." for number in range(1_000)))
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


def talks(path: Path, count: int) -> JsonLinesSource:
    """A source of so many different conversations."""
    with path.open("w") as file:
        for number in range(count):
            turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Answer {number}."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return JsonLinesSource(name="talks", content="conversations", path=str(path))


# ---- documents


def test_rows_are_split_by_group_into_shards(tmp_path: Path, lines: JsonLinesSource) -> None:
    stats = built(tmp_path, settings(lines, validation_fraction=0.1, shard_documents=300))
    train, validation = (list(read_documents(tmp_path / "corpus", split)) for split in ("train", "validation"))
    assert stats["rows"] == {"train": len(train), "validation": len(validation)}
    assert len(train) + len(validation) == 900 and 50 < len(validation) < 130
    assert stats["groups"] == {"train": len(train), "validation": len(validation)}
    assert not {row.group for row in train} & {row.group for row in validation}
    assert [row.id for row in train] == sorted((row.id for row in train), key=lambda name: int(name.rpartition(":")[2]))
    counts = stats["sources"]["numbers"]["validation"]
    assert counts == {"rows": len(validation), **dict.fromkeys(("characters", "utf8_bytes"), sum(len(row.text) for row in validation))}
    shards = [path.name for path in sorted((tmp_path / "corpus").glob("train-*"))]
    assert shards == [f"train-{number:05d}.parquet" for number in range(-(-len(train) // 300))]
    assert pq.ParquetFile(tmp_path / "corpus" / "train-00000.parquet").metadata.num_rows == 300
    assert (stats["read"], stats["dropped"], stats["duplicates"]) == (1_000, {}, {"exact": 100, "near": 0})


def test_a_group_of_which_all_rows_are_kept_counts_once(tmp_path: Path, lines: JsonLinesSource) -> None:
    wanted = settings(lines, validation_fraction=0.1, deduplicate=DeduplicateSettings(kind="none"))
    stats = built(tmp_path, wanted)
    assert sum(stats["rows"].values()) == 1_000
    groups = {split: {row.group for row in read_documents(tmp_path / "corpus", split)} for split in ("train", "validation")}
    assert stats["groups"] == {split: len(found) for split, found in groups.items()}
    assert sum(stats["groups"].values()) == 900


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, embedded: CorpusSettings, lines: JsonLinesSource) -> None:
    for content in contents(embedded):
        made = []
        for attempt in (1, 2):
            python_docs.stdlib_entries.cache_clear()
            built(tmp_path / f"{content}-{attempt}", embedded, content)
            made.append(digests(tmp_path / f"{content}-{attempt}" / "corpus"))
        assert made[0] == made[1] and made[0]


def test_at_most_so_many_rows_of_a_source(tmp_path: Path, lines: JsonLinesSource) -> None:
    for maximum, rows in ((10, 10), (1_000, 900), (5_000, 900)):
        few = replace(lines, maximum_documents=maximum)
        assert sum(built(tmp_path / str(maximum), settings(few))["rows"].values()) == rows


def test_rejects_are_written_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n' + b'{"text": "two"}\n' * 20)
    stats = built(tmp_path, settings(JsonLinesSource(name="a", path=str(path))))
    assert stats["rejects"] == {"a": {"seen": 22, "rejected": 1, "reasons": {"not UTF-8": 1}}}
    rejects = [json.loads(line) for line in (tmp_path / "corpus" / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [{"source": "a", "file": "data.jsonl", "line": 2, "byte_offset": 16, "reason": "not UTF-8"}]


def test_without_rejects_there_is_no_file_of_them(tmp_path: Path, lines: JsonLinesSource) -> None:
    stats = built(tmp_path, settings(lines))
    assert stats["rejects"] == {}
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == [
        "DATA_CARD.md",
        "card.html",
        "stats.json",
        "train-00000.parquet",
        "validation-00000.parquet",
    ]


@pytest.mark.parametrize("text", ["One document.", "One kilobyte. " * 73])
def test_a_tiny_corpus_lies_in_train_with_a_warning(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(text)
    stats = built(tmp_path, settings(TextSource(name="a", path=str(tmp_path / "a.txt")), validation_fraction=0.999_999, cleaning=()))
    assert stats["rows"] == {"train": 1, "validation": 0}
    assert "no validation documents" in capsys.readouterr().err
    assert [document.text for document in read_documents(tmp_path / "corpus", "train")] == [text]
    assert list(read_documents(tmp_path / "corpus", "validation")) == []


def test_nothing_held_out_on_purpose_is_no_warning(tmp_path: Path, lines: JsonLinesSource, capsys: pytest.CaptureFixture[str]) -> None:
    assert built(tmp_path, settings(lines, validation_fraction=0.0))["rows"] == {"train": 900, "validation": 0}
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["documents", "conversations"])
def test_no_rows_are_an_error_with_counts(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "empty.jsonl"
    source = JsonLinesSource(name="none", path=str(path), content=content, maximum_reject_share=1.0)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match=rf"source none gives 0 {content} \(0 read, 0 rejected\)"):
        built(tmp_path, settings(source), content)
    assert not (tmp_path / "corpus").exists()
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(DataError, match=rf"source none gives 0 {content} \(2 read, 2 rejected\)"):
        built(tmp_path, settings(source), content)


def test_a_failed_build_leaves_no_open_file(tmp_path: Path, lines: JsonLinesSource) -> None:
    broken = TextSource(name="gone", path=str(tmp_path / "gone.txt"))
    with pytest.raises(DataError, match=r"there is no file or folder .*gone\.txt"):
        built(tmp_path, settings(lines, broken, shard_documents=100))
    assert not list(tmp_path.glob("corpus*"))


def test_shards_are_second_names_of_the_results_of_their_units(tmp_path: Path, lines: JsonLinesSource) -> None:
    """So that the intermediate results do not need the disk twice."""
    built(tmp_path, settings(lines))
    for shard in (tmp_path / "corpus").glob("*.parquet"):
        assert shard.stat().st_nlink == 2
        assert shard.samefile(next((tmp_path / "work").glob(f"*/{shard.name}")))


# ---- what is told


def test_the_statistics_tell_what_became_of_every_document(tmp_path: Path) -> None:
    good = texts(8, words=60)
    write_lines(
        tmp_path / "a.jsonl", [*good, "Too short.", near_copy(good[0]), good[1].replace(".", "!"), "Ünicode\u0301   " + good[2][::-1]]
    )
    (tmp_path / "exam.txt").write_text(good[3])
    wanted = settings(lines_source(tmp_path / "a.jsonl", license="MIT"), quality=QualitySettings(preset="docs"), validation_fraction=0.3)
    headline = built(tmp_path, wanted, evaluation=[tmp_path / "exam.txt"])
    stats = statistics_of(tmp_path / "corpus")
    counts = stats["filters"]["a"]
    read, kept = counts["read"]["documents"], counts["kept"]["documents"]
    assert read == 12 == kept + sum(counts["dropped"].values())
    assert kept == stats["kept"] + stats["duplicates"]["exact"] + stats["duplicates"]["near"]
    assert stats["kept"] == sum(stats["rows"].values()) == sum(sides["rows"] for sides in stats["sources"]["a"].values())
    assert (stats["duplicates"]["exact"], stats["duplicates"]["near"], counts["dropped"]["contaminated"]) == (1, 1, 1)
    assert {pair["exact"] for pair in stats["duplicates"]["samples"]} == {True, False}
    assert stats["evaluation_files"] == ["exam.txt"]
    assert [(one["source"], one["license"], one["files"]) for one in stats["provenance"]] == [("a", "MIT", 1)]
    assert stats["settings"]["quality"]["preset"] == "docs"
    assert "sources" not in stats["settings"]
    assert (headline["rows"], headline["dropped"]) == (stats["rows"], counts["dropped"])


def test_the_card_tells_nothing_of_this_machine_and_is_always_the_same(tmp_path: Path) -> None:
    made = []
    for place in ("one", "two/deeper"):
        folder = tmp_path / place
        good = texts(6, words=60)
        write_lines(folder / "a.jsonl", [*good, near_copy(good[0]), "Too short."])
        (folder / "b.txt").write_text(texts(1, seed=5, words=60)[0])
        (folder / "rules.py").write_text("def keep(document):\n    return 'too short' if len(document.text) < 20 else True\n")
        (folder / "exam.txt").write_text(good[2])
        wanted = settings(
            lines_source(folder / "a.jsonl"),
            TextSource(name="b", path=str(folder / "b.txt")),
            quality=QualitySettings(own_rules=(f"{folder / 'rules.py'}:keep",)),
        )
        built(folder, wanted, evaluation=[folder / "exam.txt"])
        for name in (build.STATS, build.DATA_CARD, build.CARD_PAGE):
            told = (folder / "corpus" / name).read_text(encoding="utf-8")
            assert str(tmp_path) not in told and tmp_path.name not in told, name
        assert "rules.py:keep" in (folder / "corpus" / build.DATA_CARD).read_text()
        made.append(digests(folder / "corpus"))
    assert made[0] == made[1]


# ---- conversations and preference pairs


def test_conversations_are_split_by_group_into_shards(tmp_path: Path) -> None:
    stats = built(tmp_path, settings(talks(tmp_path / "t.jsonl", 250), validation_fraction=0.2, shard_documents=60), "conversations")
    train, validation = (list(read_conversations(tmp_path / "corpus", split)) for split in ("train", "validation"))
    assert stats["rows"] == {"train": len(train), "validation": len(validation)} and len(train) + len(validation) == 250
    assert 20 < len(validation) < 80
    assert not {row.group for row in train} & {row.group for row in validation}
    shards = sorted((tmp_path / "corpus").glob("train-*"))
    assert [pq.ParquetFile(path).metadata.num_rows for path in shards[:3]] == [60, 60, 60]
    card = (tmp_path / "corpus" / build.DATA_CARD).read_text(encoding="utf-8")
    assert "This corpus holds 250 conversations" in card and "conversations of 2 messages: 250 (100.0" in card
    assert "250 conversations" in (tmp_path / "corpus" / build.CARD_PAGE).read_text(encoding="utf-8")


def test_pieces_row_groups_and_limits_leave_conversations_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = talks(tmp_path / "t.jsonl", 250)
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write("bad\n" * 3)
    built(tmp_path / "few", settings(source), "conversations")
    monkeypatch.setattr(build, "_ROW_GROUP_ROWS", 7)
    cut_small(monkeypatch, 1_000)
    stats = built(tmp_path / "many", settings(source), "conversations")
    assert list(read_conversations(tmp_path / "few" / "corpus", "train")) == list(read_conversations(tmp_path / "many" / "corpus", "train"))
    rejects = [(tmp_path / name / "corpus" / "rejects.jsonl").read_text() for name in ("few", "many")]
    assert rejects[0] == rejects[1] and rejects[0].count("\n") == 3 == stats["rejects"]["talks"]["rejected"]
    few = built(tmp_path / "limited", settings(replace(source, maximum_documents=77)), "conversations")
    assert sum(few["rows"].values()) == 77


def test_too_many_rejected_conversations_are_an_error(tmp_path: Path) -> None:
    source = talks(tmp_path / "t.jsonl", 10)
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write("bad\n")
    with pytest.raises(DataError, match="source talks: 1 of 11 lines cannot be used"):
        built(tmp_path, settings(source), "conversations")
    assert not (tmp_path / "corpus").exists()


def test_the_embedded_contents_agree(tmp_path: Path, embedded: CorpusSettings) -> None:
    assert contents(embedded) == ("documents", "conversations", "preferences")
    held: dict[str, set[str]] = {}
    for content in contents(embedded):
        stats = built(tmp_path / content, embedded, content)
        assert stats["python"]
    for split in ("train", "validation"):
        rows: list[Row] = [*read_documents(tmp_path / "documents" / "corpus", split)]
        rows += read_conversations(tmp_path / "conversations" / "corpus", split)
        rows += read_preferences(tmp_path / "preferences" / "corpus", split)
        held[split] = {row.group for row in rows}
    assert held["train"] and held["validation"] and not held["train"] & held["validation"]
    assert stats["damages"]["train"]


# ---- the identity


def identity_of(folder: Path, wanted: CorpusSettings, content: Content = "documents", evaluation: Sequence[Path] = ()) -> dict[str, Any]:
    sources = resolve_sources(wanted, content, folder / "work")
    return corpus_identity(wanted, content, sources, find_evaluation_files(evaluation))


def test_the_identity_follows_contents_and_settings_not_places(tmp_path: Path, lines: JsonLinesSource) -> None:
    before = identity_of(tmp_path, settings(lines))
    assert json.loads(json.dumps(before)) == before
    path = Path(lines.path)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / path.name
    copy.write_bytes(path.read_bytes())
    same = settings(
        JsonLinesSource(name="numbers", path=str(copy), maximum_reject_share=0.5, cache="none"),
        PythonDocsSource(name="q", content="conversations"),
        workers=7,
        executor="ray",
        keep_work=False,
        cache_folder="elsewhere",
        download_workers=1,
    )
    assert identity_of(tmp_path, same) == before
    others = [{"seed": 1}, {"validation_fraction": 0.1}, {"cleaning": ()}, {"format": "jsonl"}, {"shard_documents": 9}, {"shard_bytes": 9}]
    others += [{"quality": QualitySettings(preset="web")}, {"decontaminate": DecontaminateSettings(shingle_words=8)}]
    told = [before, *(identity_of(tmp_path, settings(lines, **changes)) for changes in others)]
    told.append(identity_of(tmp_path, settings(replace(lines, license="MIT"))))  # the data card tells it
    assert all(one != other for number, one in enumerate(told) for other in told[:number])
    path.write_text('{"text": "x"}\n')
    assert identity_of(tmp_path, settings(lines)) != before


def test_the_identity_of_rows_holds_only_what_decides_them(tmp_path: Path) -> None:
    source = talks(tmp_path / "t.jsonl", 3)
    before = identity_of(tmp_path, settings(source), "conversations")
    same = settings(source, cleaning=(), format="jsonl", shard_bytes=9, quality=QualitySettings(preset="web"))
    assert identity_of(tmp_path, same, "conversations") == before
    for changes in ({"seed": 1}, {"validation_fraction": 0.1}, {"shard_documents": 9}):
        assert identity_of(tmp_path, settings(source, **changes), "conversations") != before  # type: ignore[arg-type]


def test_the_identity_follows_evaluation_files_and_own_rules_by_content(tmp_path: Path, lines: JsonLinesSource) -> None:
    told = []
    for place, rule, exam in (("one", "True", "What is it?"), ("two", "True", "What is it?"), ("three", "1 < 2", "What is it?")):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "rules.py").write_text(f"def keep(document):\n    return {rule}\n")
        (folder / "exam.txt").write_text(exam)
        wanted = settings(lines, quality=QualitySettings(own_rules=(f"{folder / 'rules.py'}:keep",)))
        told.append(identity_of(tmp_path, wanted, evaluation=[folder / "exam.txt"]))
    assert told[0] == told[1] != told[2]
    (tmp_path / "two" / "exam.txt").write_text("What was it?")
    assert identity_of(tmp_path, wanted, evaluation=[tmp_path / "two" / "exam.txt"]) != told[2]


def test_a_full_disk_is_told_as_such(tmp_path: Path, lines: JsonLinesSource) -> None:
    def fill(operation: str, path: Path) -> None:
        if operation == "link":
            raise OSError(28, "No space left on device")

    disk.fail_point = fill
    try:
        with pytest.raises(disk.MachineError, match="no space left"):
            built(tmp_path, settings(lines))
    finally:
        disk.fail_point = None
    assert not list(tmp_path.glob("corpus*"))
    assert built(tmp_path, settings(lines))["rows"]["train"] > 800
