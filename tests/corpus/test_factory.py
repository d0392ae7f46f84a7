"""The phases together, on real files and with real worker processes: the same corpus whoever makes it, and nothing lost on the way."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import DataError
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.document import read_documents
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.filters.settings import DecontaminateSettings, QualitySettings
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.settings import ParquetSource, PythonDocsSource, TextSource

from .corpus_assembly import (
    WORDS,
    built,
    cut_small,
    digests,
    lines_source,
    near_copy,
    settings,
    spy_on_units,
    spy_on_workers,
    statistics_of,
    texts,
    write_lines,
)

NO_DUPLICATES = DeduplicateSettings(kind="none")

BAD_LINES: tuple[tuple[bytes, str], ...] = (
    (b'{"text": "cut off', "not JSON"),
    (b"plain text", "not JSON"),
    (b"{'text': 'single quotes'}", "not JSON"),
    (b'{"text": "two"} {"text": "objects"}', "not JSON"),
    (b'{"text": "a trailing comma",}', "not JSON"),
    (b'["a", "list"]', "a list, not an object"),
    (b"17", "a number, not an object"),
    (b'"a string"', "a string, not an object"),
    (b"null", "null, not an object"),
    (b'{"body": "another key"}', "no key 'text'"),
    (b"{}", "no key 'text'"),
    (b'{"text": null}', "text is null, not a string"),
    (b'{"text": 5}', "text is a number, not a string"),
    (b'{"text": ["a"]}', "text is a list, not a string"),
    (b'{"text": ""}', "text is empty"),
    (b'{"text": " \\n\\t "}', "text is empty"),
    (b'{"text": "\xff\xfe"}', "not UTF-8"),
    (b'{"text": "half a pair \\ud800"}', "text holds half a surrogate pair"),
    (b'{"text": "deep", "x": ' + b"[" * 2_000 + b"]" * 2_000 + b"}", "nested too deep"),
    (b'{"text": "long", "x": NaN}', "NaN is no JSON number"),
)


# ---- 10,000 lines, of which 500 are bad


@pytest.fixture(scope="module")
def bad_lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[tuple[int, int, str]]]:
    """A folder of two files; the texts of the good lines; line, offset and reason of the bad ones, of one file after the other."""
    assert len(BAD_LINES) == 20
    folder = tmp_path_factory.mktemp("lines")
    good, bad = [], []
    for part in range(2):
        offset = 0
        with (folder / f"part-{part}.jsonl").open("wb") as file:
            for number in range(5_000):
                if number % 20 == (7 + number // 20) % 20:
                    line, reason = BAD_LINES[number // 20 % 20]
                    bad.append((number + 1, offset, reason))
                else:
                    text = f"{WORDS[number % 40]} document number {part}-{number}."
                    good.append(text)
                    line = json.dumps({"text": text}).encode()
                offset += file.write(line + b"\n")
    assert (len(good), len(bad)) == (9_500, 500)
    return folder, good, bad


def require_exactly(folder: Path, good: list[str], bad: list[tuple[int, int, str]]) -> None:
    documents = list(read_documents(folder / "corpus", "train"))
    assert [document.text for document in documents] == good
    rejects = [json.loads(line) for line in (folder / "corpus" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["line"], one["byte_offset"], one["reason"].partition(" (")[0]) for one in rejects] == bad
    assert [one["file"] for one in rejects] == ["part-0.jsonl"] * 250 + ["part-1.jsonl"] * 250
    ids = [int(document.id.rpartition(":")[2]) for document in documents]
    assert ids[:4750] == sorted(ids[:4750]) and ids[4750:] == sorted(ids[4750:])


def test_no_good_line_is_lost_to_a_bad_neighbour(
    tmp_path: Path, bad_lines: tuple[Path, list[str], list[tuple[int, int, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, good, bad = bad_lines
    wanted = settings(lines_source(folder, "lines"), validation_fraction=0.0, deduplicate=NO_DUPLICATES)
    stats = built(tmp_path / "whole", wanted)
    require_exactly(tmp_path / "whole", good, bad)
    reasons = stats["rejects"]["lines"]
    assert (reasons["seen"], reasons["rejected"]) == (10_000, 500)
    assert reasons["reasons"] == dict(Counter(reason for _, _, reason in bad).most_common())
    expected = digests(tmp_path / "whole" / "corpus")
    for piece_bytes in (100_000, 7_777):
        cut_small(monkeypatch, piece_bytes)
        built(tmp_path / str(piece_bytes), wanted)
        assert digests(tmp_path / str(piece_bytes) / "corpus") == expected
    cut_small(monkeypatch, 100_000, worth_bytes=100_000)
    started = spy_on_workers(monkeypatch)
    for workers in (2, 4):
        built(tmp_path / str(workers), wanted, executor=LocalExecutor(workers))
        assert digests(tmp_path / str(workers) / "corpus") == expected
    assert len(started) == 2 + 4


# ---- the same bytes


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusSettings, Path]:
    """Sources of every format with duplicates within and between them, every filter on, and a file to be evaluated on."""
    folder = tmp_path_factory.mktemp("everything")
    web, books, table = texts(90, words=110), texts(40, seed=1, words=90), texts(60, seed=2, words=80)
    secret = web[5].split()
    (folder / "exam.txt").write_text(" ".join(secret[10:40]))
    web += [near_copy(text) for text in web[:20]] + ["Buy now!"] * 5 + [text.upper() for text in books[:5]]
    lines = [*(json.dumps({"body": text}) for text in web), "{bad line", json.dumps({"body": 3})]
    (folder / "web").mkdir()
    (folder / "web" / "a.jsonl").write_text("\n".join(lines[:60]) + "\n")
    with gzip.open(folder / "web" / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines[60:]) + "\n")
    (folder / "books").mkdir()
    for number in range(8):
        (folder / "books" / f"{number}.txt").write_text("\n\n".join(books[5 * number : 5 * number + 5]) + "\r\n")
    pq.write_table(pa.table({"content": [*table, *web[20:30]]}), folder / "table.parquet", row_group_size=16)
    sources = (
        lines_source(folder / "web", "web", fields={"text": "body"}),
        TextSource(name="books", path=str(folder / "books"), maximum_document_characters=1_500),
        ParquetSource(name="table", path=str(folder / "table.parquet"), fields={"text": "content"}),
    )
    wanted = CorpusSettings(
        sources=sources,
        cleaning=("unicode", "control_characters", "mojibake", "whitespace", "boilerplate", "email", "ip", "phone"),
        quality=QualitySettings(preset="docs", skip=("gopher_stop_words",)),
        deduplicate=DeduplicateSettings(keep="longest"),
        decontaminate=DecontaminateSettings(),
        validation_fraction=0.2,
        shard_documents=50,
        shard_bytes=40_000,
    )
    return wanted, folder / "exam.txt"


@pytest.fixture(scope="module")
def alone(everything: tuple[CorpusSettings, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that one worker makes, with pieces of 8 kB."""
    folder = tmp_path_factory.mktemp("alone")
    wanted, exam = everything
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, 8_000)
        stats = built(folder, wanted, evaluation=[exam])
    assert stats["rows"]["train"] > 100 and stats["rows"]["validation"] > 10
    assert stats["dropped"]["contaminated"] >= 1 and stats["dropped"]["gopher_minimum_words"] >= 5
    assert stats["duplicates"]["exact"] >= 5 and stats["duplicates"]["near"] >= 15
    assert stats["rejects"]["web"]["rejected"] == 2
    return digests(folder / "corpus")


def test_two_runs_make_the_same_bytes(
    tmp_path: Path, everything: tuple[CorpusSettings, Path], alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 8_000)
    built(tmp_path, everything[0], evaluation=[everything[1]])
    assert digests(tmp_path / "corpus") == alone
    assert len([name for name in alone if name.startswith("train-")]) > 2


@pytest.mark.parametrize(
    ("workers", "worth_bytes"),
    [(2, 30_000), (4, 60_000), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(4, 0, marks=pytest.mark.slow)],
)
def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path,
    everything: tuple[CorpusSettings, Path],
    alone: dict[str, str],
    workers: int,
    worth_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From 30,000 bytes on: pieces of the first source, and shards, are left to the workers; from 60,000 the pieces alone."""
    cut_small(monkeypatch, 8_000, worth_bytes)
    started = spy_on_workers(monkeypatch)
    built(tmp_path, everything[0], evaluation=[everything[1]], executor=LocalExecutor(workers))
    assert digests(tmp_path / "corpus") == alone
    assert len(started) >= {60_000: 4, 30_000: 4, 0: 6}[worth_bytes]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst"])
def test_every_form_holds_the_same_documents(
    tmp_path: Path, everything: tuple[CorpusSettings, Path], form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 8_000)
    for name, wanted in (("lines", replace(everything[0], format=form)), ("parquet", everything[0])):
        built(tmp_path / name, wanted, evaluation=[everything[1]])
    for split in ("train", "validation"):
        rows = list(read_documents(tmp_path / "lines" / "corpus", split))
        assert rows == list(read_documents(tmp_path / "parquet" / "corpus", split))
        assert rows


def test_pieces_leave_no_trace(tmp_path: Path, everything: tuple[CorpusSettings, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    built(tmp_path / "whole", everything[0], evaluation=[everything[1]])
    cut_small(monkeypatch, 3_000)
    built(tmp_path / "small", everything[0], evaluation=[everything[1]])
    assert digests(tmp_path / "small" / "corpus") == digests(tmp_path / "whole" / "corpus")


def test_the_web_rules_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = texts(12, words=120)
    javascript = good[0] + "\nPlease enable javascript to see this page well."
    write_lines(tmp_path / "a.jsonl", [*good[1:], javascript, "Buy now!", "word " * 200, "{ " + good[3]])
    wanted = settings(lines_source(tmp_path / "a.jsonl"), quality=QualitySettings(preset="web", skip=("fineweb_newlines",)))
    cut_small(monkeypatch, 2_000)
    stats = built(tmp_path, wanted)
    assert sum(stats["rows"].values()) == 12
    assert set(stats["dropped"]) >= {"c4_curly_bracket", "gopher_repetition_top_2_gram"}
    counts = statistics_of(tmp_path / "corpus")["filters"]["a"]
    assert counts["removed_lines"]["c4_javascript"] == 1
    assert good[0] in {row.text for split in ("train", "validation") for row in read_documents(tmp_path / "corpus", split)}


# ---- limits


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """200 different documents of different lengths in three files; every tenth line is bad."""
    given = [" ".join(WORDS[(7 * number + step) % 40] for step in range(5 + number % 11)) + f" {number}" for number in range(200)]
    for part, name in enumerate(("a", "b", "c")):
        write_lines(tmp_path / "lines" / f"{name}.jsonl", given[part::3])
        with (tmp_path / "lines" / f"{name}.jsonl").open("a") as file:
            file.write("bad\n" * 7)
    return tmp_path / "lines"


LIMITS: list[dict[str, int]] = [
    {"maximum_documents": 1},
    {"maximum_documents": 66},
    {"maximum_documents": 67},
    {"maximum_documents": 150},
    {"maximum_documents": 10_000},
    {"maximum_bytes": 1},
    {"maximum_bytes": 3_000},
    {"maximum_bytes": 6_500},
    {"maximum_tokens_estimate": 1_234},
    {"maximum_documents": 100, "maximum_bytes": 4_000},
]


@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: "-".join(f"{name[8:]}={value}" for name, value in limits.items()))
def test_limits_take_what_reading_in_order_would_take(
    tmp_path: Path, lines: Path, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = lines_source(lines, "lines", maximum_reject_share=0.3, **limits)
    wanted = settings(source, validation_fraction=0.0, deduplicate=NO_DUPLICATES)
    built(tmp_path / "whole", wanted)
    rows = list(read_documents(tmp_path / "whole" / "corpus", "train"))
    if "maximum_documents" in limits and "maximum_bytes" not in limits:
        assert len(rows) == min(limits["maximum_documents"], 200)
    size_limit = min(limits.get("maximum_bytes", 10**9), 4 * limits.get("maximum_tokens_estimate", 10**9))
    assert sum(len(row.text) for row in rows[:-1]) < size_limit
    assert len(rows) in {200, limits.get("maximum_documents")} or sum(len(row.text) for row in rows) >= size_limit
    for piece_bytes in (2_000, 300):
        cut_small(monkeypatch, piece_bytes)
        built(tmp_path / str(piece_bytes), wanted)
        assert digests(tmp_path / str(piece_bytes) / "corpus") == digests(tmp_path / "whole" / "corpus")


def test_limits_hold_for_workers_who_run_ahead(tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = lines_source(lines, "lines", maximum_reject_share=0.3, maximum_documents=80)
    wanted = settings(source, validation_fraction=0.0, deduplicate=NO_DUPLICATES)
    built(tmp_path / "one", wanted)
    cut_small(monkeypatch, 1_000, worth_bytes=1_000)
    started = spy_on_workers(monkeypatch)
    built(tmp_path / "two", wanted, executor=LocalExecutor(2))
    assert started
    assert digests(tmp_path / "two" / "corpus") == digests(tmp_path / "one" / "corpus")
    assert len(list(read_documents(tmp_path / "two" / "corpus", "train"))) == 80


def test_what_lies_behind_a_limit_is_not_read(tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 1_000)
    made = spy_on_units(monkeypatch)
    wanted = settings(lines_source(lines, "lines", maximum_documents=3))
    built(tmp_path / "few", wanted)
    assert [label for label in made if label.startswith("source")] == ["source lines, a.jsonl"]
    made.clear()
    built(tmp_path / "more", settings(lines_source(lines, "lines", maximum_documents=40)))
    pieces = [label for label in made if label.startswith("source")]
    assert 2 < len(pieces) < 8 and pieces[-1] == pieces[-2], "the last piece is read again, up to the limit"


# ---- duplicates and the split


def test_duplicates_of_all_kinds_and_which_of_them_stays(tmp_path: Path) -> None:
    original, other = texts(2, words=60)
    copies = [original, other, original.upper(), near_copy(original) + " And a few more words."]
    path = write_lines(tmp_path / "a.jsonl", copies)
    expected = {("none", "first"): copies, ("exact", "first"): [copies[0], copies[1], copies[3]], ("near", "first"): copies[:2]}
    expected["near", "longest"] = [copies[1], copies[3]]
    for (kind, keep), kept in expected.items():
        wanted = settings(lines_source(path), deduplicate=DeduplicateSettings(kind=kind, keep=keep), validation_fraction=0.0)  # type: ignore[arg-type]
        stats = built(tmp_path / f"{kind}-{keep}", wanted)
        assert [row.text for row in read_documents(tmp_path / f"{kind}-{keep}" / "corpus", "train")] == kept
        told = statistics_of(tmp_path / f"{kind}-{keep}" / "corpus")["duplicates"]
        assert (told["kind"], told["keep"], len(told["samples"])) == (kind, keep, int(len(kept) < 4))
        assert sum(stats["duplicates"].values()) == 4 - len(kept)


def test_no_duplicate_straddles_the_split(tmp_path: Path) -> None:
    originals = texts(80, words=40)
    write_lines(tmp_path / "a.jsonl", originals)
    write_lines(tmp_path / "b.jsonl", [text.upper() for text in originals])
    wanted = settings(lines_source(tmp_path / "a.jsonl"), lines_source(tmp_path / "b.jsonl"), validation_fraction=0.5)
    built(tmp_path, replace(wanted, deduplicate=NO_DUPLICATES))
    train, validation = (list(read_documents(tmp_path / "corpus", split)) for split in ("train", "validation"))
    assert len(train) + len(validation) == 160 and len(validation) > 40
    assert not {row.text.lower() for row in train} & {row.text.lower() for row in validation}
    assert not {row.group for row in train} & {row.group for row in validation}


def test_groups_of_the_embedded_documentation_survive(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "stdlib_folder", lambda: library)
    python_docs.stdlib_entries.cache_clear()
    built(tmp_path, settings(PythonDocsSource(), validation_fraction=0.4, deduplicate=NO_DUPLICATES))
    rows = [(split, row) for split in ("train", "validation") for row in read_documents(tmp_path / "corpus", split)]
    sides: dict[str, set[str]] = {}
    for split, row in rows:
        sides.setdefault(row.group, set()).add(split)
    named = {row.id: row.group for row in python_docs.documents("python-docs", python_docs.stdlib_entries(library))}
    assert {row.id: row.group for _, row in rows} == named
    assert len(sides) < len(rows) and all(len(found) == 1 for found in sides.values())
    assert {split for split, _ in rows} == {"train", "validation"}


def test_a_source_that_holds_nothing_new_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "a.jsonl", texts(10))
    write_lines(tmp_path / "b.jsonl", texts(5))
    stats = built(tmp_path, settings(lines_source(tmp_path / "a.jsonl"), lines_source(tmp_path / "b.jsonl")))
    assert stats["sources"]["b"] == {}
    assert "nothing is left of source b: all its documents occur in the sources before it" in capsys.readouterr().err


# ---- what is refused


def test_a_source_of_which_nothing_is_left_is_an_error_with_counts(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ["Too short.", "And this one too.", *texts(1, words=60)])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("bad\n")
    (tmp_path / "exam.txt").write_text(texts(1, words=60)[0])
    wanted = settings(lines_source(tmp_path / "a.jsonl", maximum_reject_share=0.5), quality=QualitySettings(preset="docs"))
    with pytest.raises(DataError) as caught:
        built(tmp_path, wanted, evaluation=[tmp_path / "exam.txt"])
    assert caught.value.problem == ("source a gives 0 documents (4 read, 1 rejected; dropped: contaminated 1, gopher_minimum_words 2)")
    assert "corpus.quality" in caught.value.remedy
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("piece_bytes", [10**6, 1_000])
def test_too_many_rejects_are_an_error(tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "a.jsonl", texts(94))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"body": 1}\n' * 6)
    cut_small(monkeypatch, piece_bytes)
    with pytest.raises(DataError, match=r"(?s)source a: 6 of 100 lines cannot be used \(5% may be malformed\): a\.jsonl:95: no key 'text'"):
        built(tmp_path, settings(lines_source(tmp_path / "a.jsonl")))
    stats = built(tmp_path, settings(lines_source(tmp_path / "a.jsonl", maximum_reject_share=0.06)))
    assert stats["rejects"]["a"]["rejected"] == 6
