from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fledge.corpus import batches, clean
from fledge.corpus.clean import CleanUnit, Steps, group_names
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.filters.evaluation_files import find_evaluation_files
from fledge.corpus.filters.settings import CleaningStep, QualitySettings
from fledge.corpus.limits import Limits
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources import json_lines, python_docs
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.settings import JsonLinesSource, PythonDocsSource, Source
from fledge.corpus.split import Splitter

from .corpus_assembly import texts, write_lines

STEPS = Steps(("unicode", "control_characters", "whitespace"), QualitySettings(), DeduplicateSettings(bands=3), (), 13, Splitter(0.1, 0))
SOURCE = JsonLinesSource(name="web", path="unused")


def unit_of(path: Path, steps: Steps = STEPS, source: Source = SOURCE, limits: Limits = Limits()) -> CleanUnit:  # noqa: B008
    file = InputFile(str(path), path.name, path.stat().st_size, "fingerprint")
    return CleanUnit(source, "fingerprint", Piece((file,), size_bytes=file.size_bytes), limits, steps)


def run(unit: CleanUnit, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The counts, and the documents that stay."""
    folder.mkdir()
    counts = unit.run(folder)
    assert json.loads(json.dumps(counts)) == counts
    with pa.ipc.open_file(folder / clean.DOCUMENTS) as file:
        return counts, file.read_all().to_pylist()


def array(folder: Path, name: str) -> Any:
    return np.load(folder / name, allow_pickle=False)


# ---- what a unit writes


def test_what_stays_is_written_with_its_hashes(tmp_path: Path) -> None:
    given = [*texts(3), "Ünïcode  \n", texts(1)[0].upper()]
    counts, rows = run(unit_of(write_lines(tmp_path / "a.jsonl", given)), tmp_path / "unit")
    assert [row["text"] for row in rows] == [*given[:3], "Ünïcode", given[4]]
    offset = len(json.dumps({"text": given[0]})) + 1
    assert [row["id"] for row in rows][:2] == ["web:a.jsonl:0", f"web:a.jsonl:{offset}"]
    assert {(row["source"], row["group"]) for row in rows} == {("web", "")}
    exact, bands = array(tmp_path / "unit", clean.EXACT), array(tmp_path / "unit", clean.BANDS)
    assert (exact.shape, exact.dtype, bands.shape, bands.dtype) == ((5, 2), np.uint64, (3, 5), np.uint64)
    assert (exact[0] == exact[4]).all(), "case does not count"
    assert len({tuple(row) for row in exact.tolist()}) == 4
    assert array(tmp_path / "unit", clean.CHARACTERS).tolist() == [len(row["text"]) for row in rows]
    assert array(tmp_path / "unit", clean.UTF8_BYTES).tolist() == [len(row["text"].encode()) for row in rows]
    splitter = Splitter(0.1, 0)
    assert array(tmp_path / "unit", clean.DRAWS).tolist() == [splitter.draw(name) for name in group_names(exact)]
    assert not array(tmp_path / "unit", clean.GIVEN).any()
    assert array(tmp_path / "unit", clean.BATCH_ROWS).tolist() == [5]
    assert counts["read"]["documents"] == counts["kept"]["documents"] == 5
    assert counts["changed"] == {"whitespace": 1}
    arrays = {clean.EXACT, clean.BANDS, clean.CHARACTERS, clean.UTF8_BYTES, clean.DRAWS, clean.GIVEN, clean.BATCH_ROWS}
    assert {path.name for path in (tmp_path / "unit").iterdir()} == {clean.DOCUMENTS, clean.REJECTS, *arrays}


@pytest.mark.parametrize("kind", ["exact", "none"])
def test_without_near_duplicates_there_are_no_keys_of_bands(tmp_path: Path, kind: Any) -> None:
    steps = replace(STEPS, deduplicate=DeduplicateSettings(kind=kind))
    run(unit_of(write_lines(tmp_path / "a.jsonl", texts(3)), steps), tmp_path / "unit")
    assert array(tmp_path / "unit", clean.BANDS).shape == (0, 3)
    assert array(tmp_path / "unit", clean.EXACT).shape == (3, 2)


def test_a_piece_of_which_nothing_stays_is_written_too(tmp_path: Path) -> None:
    counts, rows = run(unit_of(write_lines(tmp_path / "a.jsonl", ["\u0007\u0000", "\u0001"])), tmp_path / "unit")
    assert rows == []
    assert counts["dropped"] == {clean.EMPTY: 2}
    assert counts["kept"].get("documents", 0) == 0
    assert array(tmp_path / "unit", clean.BANDS).shape == (3, 0)
    (tmp_path / "b.jsonl").write_bytes(b"")
    counts, rows = run(unit_of(tmp_path / "b.jsonl"), tmp_path / "none")
    assert rows == [] and counts["read"] == {}
    assert array(tmp_path / "none", clean.BATCH_ROWS).tolist() == []


def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": 1}\nnot JSON\n{"text": "two"}\n')
    _, rows = run(unit_of(tmp_path / "a.jsonl", source=replace(SOURCE, maximum_reject_share=1.0)), tmp_path / "unit")
    assert [row["text"] for row in rows] == ["one", "two"]
    rejects = Rejects.read(tmp_path / "unit" / clean.REJECTS)
    assert [(reject.line, reject.byte_offset) for reject in rejects.kept] == [(2, 16), (3, 28)]
    assert rejects.seen == {"web": 4}


def test_batches_and_records_leave_no_trace_in_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*texts(40), *texts(10, seed=1, words=80)])
    steps = replace(STEPS, quality=QualitySettings(preset="docs"))
    expected = run(unit_of(path, steps), tmp_path / "one")
    assert expected[0]["dropped"] == {"gopher_minimum_words": 40}
    for module, name, value in (
        (clean, "_RECORD_ROWS", 3),
        (batches, "BATCH_DOCUMENTS", 7),
        (json_lines, "_BLOCK_BYTES", 700),
        (batches, "BATCH_BYTES", 900),
    ):
        monkeypatch.setattr(module, name, value)
        assert run(unit_of(path, steps), tmp_path / name) == expected
        for array_name in (clean.EXACT, clean.BANDS, clean.CHARACTERS, clean.UTF8_BYTES, clean.DRAWS, clean.GIVEN):
            assert (tmp_path / name / array_name).read_bytes() == (tmp_path / "one" / array_name).read_bytes()
    assert array(tmp_path / "_RECORD_ROWS", clean.BATCH_ROWS).max() == 3


def test_groups_that_the_source_names_decide_the_draw(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "stdlib_folder", lambda: library)
    unit = CleanUnit(PythonDocsSource(), "fingerprint", Piece(), Limits(), STEPS)
    assert unit.label == "source python-docs"
    _, rows = run(unit, tmp_path / "unit")
    assert all(row["group"] for row in rows)
    assert array(tmp_path / "unit", clean.GIVEN).all()
    assert array(tmp_path / "unit", clean.DRAWS).tolist() == [Splitter(0.1, 0).draw(row["group"]) for row in rows]


# ---- the steps, in their order


def test_cleaning_comes_first_then_rules_then_contamination(tmp_path: Path) -> None:
    good, secret, short = *texts(2, words=80), "Too short."
    (tmp_path / "exam.txt").write_text(" ".join(secret.split()[20:50]))
    (tmp_path / "rules.py").write_text("def no_companies(document):\n    return 'address' if 'company' in document.text else True\n")
    steps = replace(
        STEPS,
        cleaning=("email", "whitespace"),
        quality=QualitySettings(preset="docs", own_rules=(f"{tmp_path / 'rules.py'}:no_companies",)),
        evaluation_files=find_evaluation_files([tmp_path / "exam.txt"]),
    )
    given = [good, secret, short, good + " No company.", f"{good} Write to someone@company.org.", short + " " + secret]
    counts, rows = run(unit_of(write_lines(tmp_path / "a.jsonl", given), steps), tmp_path / "unit")
    assert len(rows) == 2
    assert rows[0]["text"] == good
    assert rows[1]["text"].endswith("Write to email@example.com."), "the rule saw the mask, not the address"
    assert counts["changed"] == {"email": 1}
    assert counts["dropped"] == {"gopher_minimum_words": 1, "own:no_companies: address": 1, clean.CONTAMINATED: 2}
    assert counts["contaminated"] == {"exam.txt": 2}
    assert counts["failed"]["gopher_minimum_words"] == 1
    examples = {rule: [example["text"][:9] for example in shown] for rule, shown in counts["examples"].items()}
    assert examples["gopher_minimum_words"] == ["Too short"]
    assert set(examples) == set(counts["dropped"])
    assert counts["dropped_bytes"]["gopher_minimum_words"] == len(short)
    assert sum(counts["lengths"].values()) == counts["kept"]["documents"] == 2


def test_a_document_whose_lines_are_all_removed_is_empty(tmp_path: Path) -> None:
    quality = QualitySettings(add=("c4_javascript",))
    path = write_lines(tmp_path / "a.jsonl", ["Please enable javascript.", "Please enable javascript.\nA second line stays here."])
    counts, rows = run(unit_of(path, replace(STEPS, quality=quality)), tmp_path / "unit")
    assert [row["text"] for row in rows] == ["A second line stays here."]
    assert counts["dropped"] == {clean.EMPTY: 1}
    assert counts["removed_lines"]["c4_javascript"] >= 1


def test_languages_of_what_stays_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    english = (
        "The committee will meet again in the spring, when the report about the harbour has been written and read by all of its members."
    )
    german = "Der Ausschuss wird im Frühling wieder zusammentreten, wenn der Bericht über den Hafen geschrieben und gelesen worden ist."
    path = write_lines(tmp_path / "a.jsonl", [english, german, english.replace("spring", "summer")])
    counts, rows = run(unit_of(path, replace(STEPS, quality=QualitySettings(languages=("en",)))), tmp_path / "unit")
    assert len(rows) == 2
    assert (counts["languages"], counts["dropped"]) == ({"en": 2}, {"language": 1})


@pytest.mark.parametrize(("limits", "expected"), [(Limits(3, None), 3), (Limits(None, 1), 1), (Limits(0, None), 0), (Limits(99, 10**6), 5)])
def test_limits_count_what_is_read(tmp_path: Path, limits: Limits, expected: int) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["Short.", *texts(4, words=60)])
    steps = replace(STEPS, quality=QualitySettings(preset="docs"))
    counts, rows = run(unit_of(path, steps, limits=limits), tmp_path / "unit")
    assert counts["read"].get("documents", 0) == expected
    assert len(rows) == max(0, expected - 1)


# ---- the key


def test_the_key_holds_what_decides_the_result_and_nothing_else(tmp_path: Path) -> None:
    unit = unit_of(write_lines(tmp_path / "a.jsonl", texts(2)))
    changed = {
        "fingerprint": replace(unit, fingerprint="other"),
        "piece": replace(unit, piece=replace(unit.piece, start=5)),
        "limits": replace(unit, limits=Limits(7, None)),
        "name": replace(unit, source=replace(SOURCE, name="other")),
        "fields": replace(unit, source=replace(SOURCE, fields={"text": "body"})),
    }
    steps = {
        "cleaning": replace(STEPS, cleaning=("unicode",)),
        "quality": replace(STEPS, quality=QualitySettings(preset="web")),
        "threshold": replace(STEPS, quality=QualitySettings(preset="web", thresholds={"gopher_minimum_words": 49})),
        "bands": replace(STEPS, deduplicate=DeduplicateSettings(bands=4)),
        "kind": replace(STEPS, deduplicate=DeduplicateSettings(bands=3, kind="exact")),
        "seed": replace(STEPS, splitter=Splitter(0.1, 1)),
    }
    keys = [unit.key, *(one.key for one in changed.values()), *(replace(unit, steps=one).key for one in steps.values())]
    assert len(set(keys)) == len(keys)
    same: dict[str, CleanUnit] = {
        "where it lies": replace(unit, piece=replace(unit.piece, files=(replace(unit.piece.files[0], address="elsewhere"),))),
        "what may be rejected": replace(unit, source=replace(SOURCE, maximum_reject_share=0.5, path="elsewhere", license="MIT")),
        "limits of the source": replace(unit, source=replace(SOURCE, maximum_documents=5)),
        "which duplicate stays": replace(unit, steps=replace(STEPS, deduplicate=DeduplicateSettings(bands=3, keep="longest"))),
        "memory": replace(unit, steps=replace(STEPS, deduplicate=DeduplicateSettings(bands=3, memory_bytes=1 << 20))),
        "share held out": replace(unit, steps=replace(STEPS, splitter=Splitter(0.2, 0))),
        "order of cleaning": replace(unit, steps=replace(STEPS, cleaning=STEPS.cleaning[::-1])),
        "another process": pickle.loads(pickle.dumps(unit)),
    }
    assert {name: one.key == unit.key for name, one in same.items()} == dict.fromkeys(same, True)


def test_the_key_follows_own_rules_and_evaluation_files_by_content(tmp_path: Path) -> None:
    rules, exam = tmp_path / "rules.py", tmp_path / "exam.txt"
    path = write_lines(tmp_path / "a.jsonl", texts(2))

    def key() -> str:
        quality = QualitySettings(own_rules=(f"{rules}:keep",))
        return unit_of(path, replace(STEPS, quality=quality, evaluation_files=find_evaluation_files([exam]))).key

    rules.write_text("def keep(document):\n    return True\n")
    exam.write_text("Which word comes next in this sentence of ten words?")
    before = key()
    assert key() == before
    rules.write_text("def keep(document):\n    return bool(document.text)\n")
    edited = key()
    exam.write_text("Which word comes next in this sentence of eleven other words?")
    assert len({before, edited, key()}) == 3


def test_mojibake_depends_on_the_version_of_what_mends_it() -> None:
    steps: tuple[CleaningStep, ...] = ("mojibake",)
    assert version("ftfy") in json.dumps(replace(STEPS, cleaning=steps).identity)
    assert "ftfy" not in json.dumps(STEPS.identity)


def test_labels_name_the_place(tmp_path: Path) -> None:
    unit = unit_of(write_lines(tmp_path / "a.jsonl", texts(1)))
    assert unit.label == "source web, a.jsonl"
    assert replace(unit, piece=replace(unit.piece, start=64 << 20)).label == "source web, a.jsonl from 67,108,864"
    assert unit.size_bytes == (tmp_path / "a.jsonl").stat().st_size
