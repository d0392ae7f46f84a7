"""The corpus stage on small files: made once, and after an edit exactly what depends on it. Kills are in test_corpus_kills.py."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError
from fledge.corpus.engine.units import UNIT
from fledge.stages import corpus as stage

from ..corpus.corpus_assembly import (
    cut_small,
    digests,
    lines_source,
    settings,
    texts,
    write_lines,
)
from .corpus_stage_assembly import ALL_UNITS, Make, corpus_of, kinds, require_fresh, snapshot

# ---- once


def test_a_corpus_is_made_once(make: Make, made: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in inputs.iterdir():
        os.utime(path, (1, 1))  # what was changed just now is hashed every time, and its hash written down later
    run = make()
    assert kinds(made) == ALL_UNITS
    said = capsys.readouterr().out
    assert re.search(r"corpus/documents: \d+ documents \(.* kB\) to train on, \d+ held out, 5 duplicates, 1 rejected \(see rejects", said)
    manifest = artifact.open_artifact(corpus_of(run), "corpus")
    assert artifact.verify(manifest) == []
    assert manifest.stats["read"] == 125 and manifest.stats["duplicates"] == {"exact": 0, "near": 5}
    assert set(manifest.manifest.files) == {*digests(corpus_of(run))}
    made.clear()
    before = snapshot(run.folder)
    make()
    assert (made, snapshot(run.folder)) == ([], before)
    make(workers=2, keep_work=True, cache_folder="elsewhere")
    assert (made, snapshot(run.folder)) == ([], before), "how it is made is no other corpus"


def test_a_second_run_makes_the_same_bytes(make: Make) -> None:
    first, second = make("first"), make("second")
    assert digests(corpus_of(first)) == digests(corpus_of(second))
    assert artifact.open_artifact(corpus_of(first)).id == artifact.open_artifact(corpus_of(second)).id


def test_another_corpus_in_the_same_place_is_refused(make: Make) -> None:
    before = snapshot(make().folder)
    with pytest.raises(ArtifactError, match=r"seed: 0 -> 1") as caught:
        make(seed=1)
    assert "--force" in caught.value.remedy
    assert before.items() <= snapshot(make().folder).items()


# ---- after an edit: exactly what depends on it, and the result of a fresh build


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quality": "web_less"}, ALL_UNITS),
        ({"cleaning": ("unicode",)}, ALL_UNITS),
        ({"keep": "longest"}, {"clusters": 1, "shard": 6}),
        ({"validation_fraction": 0.4}, {"clusters": 1, "shard": 6}),
        ({"shard_documents": 60}, {"shard": 3}),
        ({"format": "jsonl"}, {"shard": 6}),
        ({"license": "MIT"}, {}),
    ],
    ids=["rule", "cleaning", "keep", "validation_fraction", "shard_documents", "format", "license"],
)
def test_an_edited_setting_makes_again_what_depends_on_it(
    make: Make, made: list[str], inputs: Path, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    make()
    made.clear()
    defaults = settings(lines_source(inputs / "a.jsonl"))
    if "quality" in changes:
        changes = {"quality": replace(defaults.quality, add=("gopher_minimum_words",), thresholds={"gopher_minimum_words": 30})}
    if "keep" in changes:
        changes = {"deduplicate": replace(defaults.deduplicate, bands=4, keep="longest")}
    if "license" in changes:
        changes = {"sources": [lines_source(inputs / f"{name}.jsonl", license="MIT") for name in "abc"]}
    run = make(force=True, **changes)
    assert kinds(made) | {"shard": 0} == expected | {"shard": 0}
    assert bool(expected.get("shard")) == bool(kinds(made).get("shard"))
    assert kinds(made).get("shard", 0) <= expected.get("shard", 0) + 1
    require_fresh(make, run, **changes)
    made.clear()
    make(force=True, **changes)
    assert made == []


def test_an_edited_rule_of_ones_own_makes_again_what_it_judged(make: Make, made: list[str], tmp_path: Path, inputs: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("def short(document):\n    return len(document.text) > 10\n")
    quality = replace(settings(lines_source(inputs)).quality, own_rules=(f"{rules}:short",))
    make(quality=quality)
    made.clear()
    make(quality=quality)
    assert made == []
    rules.write_text("def short(document):\n    return len(document.text) % 3 > 0\n")
    with pytest.raises(ArtifactError, match="own_rules"):
        make(quality=quality)
    run = make(quality=quality, force=True)
    assert kinds(made)["source"] == 3
    require_fresh(make, run, quality=quality)


def test_an_edited_input_makes_again_what_was_read_from_it(make: Make, made: list[str], inputs: Path) -> None:
    make()
    made.clear()
    write_lines(inputs / "b.jsonl", texts(41, seed=1, words=60))
    with pytest.raises(ArtifactError, match=r"sources\.1\.fingerprint: "):
        make()
    run = make(force=True)
    assert kinds(made) == {**ALL_UNITS, "source": 1, "shard": kinds(made)["shard"]}
    assert [label for label in made if label.startswith("source")] == ["source b, b.jsonl"]
    assert "shard train-00000.parquet" not in made, "it holds only documents of the first source"
    require_fresh(make, run)


def test_of_a_source_of_several_files_only_the_pieces_of_the_edited_one_are_read_again(
    make: Make, made: list[str], inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_small(monkeypatch, 20_000)
    sources = [lines_source(inputs, "web")]
    make(sources=sources)
    assert [label for label in made if label.startswith("source")] == [f"source web, {name}.jsonl" for name in "abc"]
    made.clear()
    write_lines(inputs / "b.jsonl", texts(41, seed=1, words=60))
    run = make(sources=sources, force=True)
    assert [label for label in made if label.startswith("source")] == ["source web, b.jsonl"]
    require_fresh(make, run, sources=sources)


def test_a_limit_is_found_again_without_reading(make: Make, made: list[str], inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece in which the limit lies was read twice; neither time is repeated."""
    cut_small(monkeypatch, 8_000)
    sources = [lines_source(inputs, "web", maximum_documents=70)]
    make(sources=sources)
    made.clear()
    run = make(sources=sources, force=True, shard_documents=10)
    assert kinds(made).keys() == {"shard"}
    require_fresh(make, run, sources=sources, shard_documents=10)


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"?")


EDITS: dict[str, Callable[[Path], Any]] = {
    "in place": lambda path: path.write_bytes(b"?" + path.read_bytes()[1:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "gone": Path.unlink,
    "replaced": replaced,
}


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        *(("train-00001.parquet", edit) for edit in EDITS),
        ("validation-00000.parquet", "cut"),
        ("stats.json", "in place"),
        ("DATA_CARD.md", "gone"),
        ("manifest.json", "in place"),
        ("manifest.json", "cut"),
    ],
)
def test_an_edited_output_is_made_again_and_the_edited_one_kept(
    make: Make, made: list[str], name: str, edit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make()
    before = digests(corpus_of(run))
    made.clear()
    EDITS[edit](corpus_of(run) / name)
    aside = snapshot(corpus_of(run))
    make()
    assert "was changed after it was made: moved aside" in capsys.readouterr().err
    assert digests(corpus_of(run)) == before
    assert artifact.verify(artifact.open_artifact(corpus_of(run))) == []
    # An edit in place also reached the result of the unit, of which the shard is a second name.
    assert made == ([f"shard {name}"] if name.endswith("parquet") and edit in {"in place", "cut"} else [])
    moved = corpus_of(run).with_name("documents~edited")
    assert list(snapshot(moved).values()) == list(aside.values()), "nothing is lost"
    made.clear()
    make()
    assert made == []


def test_a_touched_output_is_left_alone(make: Make, made: list[str]) -> None:
    run = make()
    made.clear()
    os.utime(corpus_of(run) / "train-00000.parquet")
    make()
    assert made == [] and not corpus_of(run).with_name("documents~edited").exists()


@pytest.mark.parametrize("phase", ["documents.arrow", "exact.npy", "edges.npy", "first.npy", "train-00000.parquet", UNIT])
def test_an_edited_intermediate_result_is_made_again_alone(make: Make, made: list[str], phase: str) -> None:
    run = make()
    before = digests(corpus_of(run))
    made.clear()
    path = min((run.folder / stage.WORK).glob(f"*/{phase}"))
    content = path.read_bytes()
    path.unlink()  # a shard is the same file as that of the corpus
    path.write_bytes(content[:-3] + b"???")
    make()
    assert made == [], "what is finished does not look at how it was made"
    make(force=True)
    assert len(made) == 1
    assert digests(corpus_of(run)) == before


def test_results_that_no_longer_count_are_removed(make: Make) -> None:
    run = make()
    names = {path.parent.name for path in (run.folder / stage.WORK).glob(f"*/{UNIT}")}
    make(force=True, seed=1)
    others = {path.parent.name for path in (run.folder / stage.WORK).glob(f"*/{UNIT}")}
    assert len(others) == len(names) and not names & others
