"""The corpus stage on small files: what is kept, what it needs from elsewhere, and what is made beside the corpus."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from fledge.core import artifact, disk
from fledge.core.errors import ArtifactError, ConfigError, DataError, MachineError
from fledge.corpus.document import read_documents
from fledge.corpus.engine.units import UNIT
from fledge.corpus.sources import transport
from fledge.corpus.sources.settings import Expect
from fledge.recipe import Recipe
from fledge.stages import corpus as stage
from fledge.stages.run import Run
from fledge.verbs import corpus as verbs

from ..corpus.corpus_assembly import (
    digests,
    lines_source,
    near_copy,
    settings,
    statistics_of,
    texts,
)
from .corpus_stage_assembly import ALL_UNITS, Make, corpus_of, kinds, require_fresh, snapshot


@pytest.fixture(autouse=True)
def memory_is_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that this process's memory stands in for what lies elsewhere."""
    monkeypatch.setattr(transport, "STORE_SCHEMES", transport.STORE_SCHEMES | {"memory"})


# ---- what is kept


@pytest.mark.parametrize("before", [True, False])
def test_intermediate_results_can_be_left_out(make: Make, made: list[str], before: bool) -> None:
    """Also afterwards, since they are no part of the corpus."""
    run = make(keep_work=before)
    expected = digests(corpus_of(run))
    made.clear()
    make(keep_work=False)
    assert not list((run.folder / stage.WORK).rglob(UNIT)) and made == []
    assert [entry.name for entry in (run.folder / stage.WORK).iterdir() if entry.is_dir()] == []
    assert digests(corpus_of(run)) == expected
    assert artifact.verify(artifact.open_artifact(corpus_of(run))) == []
    run = make(force=True)
    assert kinds(made) == ALL_UNITS
    assert digests(corpus_of(run)) == expected


def test_they_are_left_out_only_when_the_corpus_is_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill in the last second would cost all the work."""
    seen = []

    def note(operation: str, path: Path) -> None:
        if operation == "rename" and path.name == "documents":
            seen.append(len(list(path.parents[1].glob(f"{stage.WORK}/*/{UNIT}"))))

    monkeypatch.setattr(disk, "fail_point", note)
    make(keep_work=False)
    assert seen == [sum(ALL_UNITS.values())]


def test_a_corpus_whose_sources_are_gone_is_kept(make: Make, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make()
    before = snapshot(run.folder)
    (inputs / "b.jsonl").rename(inputs / "moved")
    capsys.readouterr()
    make()
    assert "corpus/documents: already done; its sources cannot be read any more (source b: there is no file" in capsys.readouterr().err
    assert snapshot(run.folder) == before
    elsewhere = [lines_source(inputs / "a.jsonl"), lines_source(inputs / "typo.jsonl", "b"), lines_source(inputs / "c.jsonl")]
    with pytest.raises(DataError, match=r"source b: there is no file or folder .*typo"):
        make(sources=elsewhere)
    for changes in ({"seed": 1}, {"sources": [lines_source(inputs / "b.jsonl")]}):
        with pytest.raises(DataError, match=r"source b: there is no file or folder"):
            make(**changes)
    with pytest.raises(DataError, match=r"source b: there is no file or folder"):
        make("other")
    (corpus_of(run) / "train-00000.parquet").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        make()
    assert not list(run.folder.glob("corpus/*~*")), "nothing is moved aside that cannot be made again"


def test_sources_that_fell_short_are_not_gone(make: Make, inputs: Path) -> None:
    """A corpus stands without its sources, but what the recipe expects of them is asked for as long as they are there."""
    run = make(sources=[lines_source(inputs, "web")])
    before = snapshot(run.folder)
    for files, names in ((4, "abc"), (3, "ab")):
        for gone in set("abc") - set(names):
            (inputs / f"{gone}.jsonl").unlink()
        with pytest.raises(DataError, match=f"should have at least {files} files"):
            make(sources=[lines_source(inputs, "web", expect=Expect(files=files))])
    with pytest.raises(ArtifactError, match="was made differently"):
        make(sources=[lines_source(inputs, "web")])
    assert snapshot(run.folder) == before


def test_what_came_from_elsewhere_needs_no_network_again(make: Make, tmp_path: Path, made: list[str]) -> None:
    store = fsspec.filesystem("memory")
    try:
        for number, name in enumerate("xy"):
            content = "".join(json.dumps({"text": text}) + "\n" for text in texts(20, seed=number))
            store.pipe(f"/far/{name}.jsonl", content.encode())
        options = {
            "sources": [lines_source(tmp_path / "unused", "far")], "cache_folder": str(tmp_path / "cache"), "validation_fraction": 0.0
        }  # fmt: skip
        options["sources"] = [replace(options["sources"][0], path="memory://far")]  # type: ignore[index]
        run = make(**options)
        assert [row.text for row in read_documents(corpus_of(run), "train")] == [*texts(20), *texts(20, seed=1)]
        told = statistics_of(corpus_of(run))["provenance"][0]
        assert (told["address"], told["files"]) == ("memory://far", 2)
    finally:
        store.store.clear()
    made.clear()
    make(**options)
    assert made == []
    before = digests(corpus_of(run))
    for path in (run.folder / stage.WORK).glob("*/documents.arrow"):
        path.unlink()
    make(force=True, **options)
    assert kinds(made) == {"source": 1} and digests(corpus_of(run)) == before


def test_files_behind_a_limit_are_not_even_downloaded(make: Make, tmp_path: Path, inputs: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        for number in range(20):
            store.pipe(f"/far/{number:02}.jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts(10, seed=number)))
        far = replace(lines_source(inputs, "far", maximum_documents=25), path="memory://far")
        run = make(sources=[far], cache_folder=str(tmp_path / "cache"))
    finally:
        store.store.clear()
    assert artifact.open_artifact(corpus_of(run)).stats["read"] == 25
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1_000]) == 1 + 2


# ---- several contents


def test_contents_are_made_apart(make: Make, made: list[str], inputs: Path) -> None:
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A bird."}]
    (inputs / "talks.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{**turn, "content": f"{number} {turn['content']}"} for turn in talk]}) + "\n" for number in range(30)
        )
    )
    sources = [lines_source(inputs / "a.jsonl"), lines_source(inputs / "talks.jsonl", content="conversations")]
    run = make(sources=sources)
    documents = artifact.open_artifact(corpus_of(run)).id
    assert artifact.open_artifact(run.folder / "corpus" / "conversations").stats["rows"]["train"] > 10
    made.clear()
    (inputs / "talks.jsonl").unlink()
    make(sources=sources)
    assert made == [] and artifact.open_artifact(corpus_of(run)).id == documents


# ---- the card alone


def test_the_analysis_writes_the_card_and_nothing_else(make: Make, tmp_path: Path, made: list[str], inputs: Path) -> None:
    run = make()
    before = snapshot(run.folder)
    made.clear()
    assert stage.analyze(run) == run.folder / "analysis"
    assert made == [], "what the corpus was made of serves the card too"
    after = snapshot(run.folder)
    assert {Path(name).relative_to(run.folder).as_posix() for name in after.keys() - before.keys()} == {
        "analysis/stats.json",
        "analysis/DATA_CARD.md",
        "analysis/card.html",
    }
    assert {name: after[name] for name in before} == before
    assert sorted(entry.name for entry in run.folder.iterdir()) == ["analysis", "corpus", "work"]
    whole, alone = statistics_of(corpus_of(run)), statistics_of(run.folder / "analysis")
    assert {name: whole[name] for name in alone} == alone
    assert set(whole) - set(alone) == {"rows", "sources", "groups"}
    new = Run(run.recipe, tmp_path / "new", "recipe.yaml")
    stage.analyze(new)
    assert kinds(made).keys() == {"source", "duplicates", "clusters"}, "no shard is written"
    stage.analyze(new)
    assert [entry.name for entry in new.folder.iterdir()] == ["analysis"]
    assert digests(new.folder / "analysis") == digests(run.folder / "analysis")


def test_an_interrupted_analysis_continues(make: Make, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(make().recipe, tmp_path / "new", "recipe.yaml")
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr("fledge.corpus.factory.statistics", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.analyze(run)
    before = list(made)
    stage.analyze(run)
    assert made == before, "nothing is made a second time"
    assert [entry.name for entry in run.folder.iterdir()] == ["analysis"]


def test_an_analysis_that_a_machine_stopped_continues(make: Make, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(make().recipe, tmp_path / "new", "recipe.yaml")
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr("fledge.corpus.factory.statistics", lambda *given: (_ for _ in ()).throw(MachineError("no space left", "make some")))
        with pytest.raises(MachineError, match="no space left"):
            stage.analyze(run)
    before = list(made)
    stage.analyze(run)
    assert made == before != []
    assert [entry.name for entry in run.folder.iterdir()] == ["analysis"]


def test_an_analysis_keeps_no_work_that_the_recipe_does_not_want(make: Make) -> None:
    run = make(keep_work=False)
    stage.analyze(run)
    assert not list((run.folder / stage.WORK).rglob(UNIT)) and list((run.folder / stage.WORK).glob("*.json"))


def test_raw_chunks_are_of_the_files_that_the_corpus_was_made_of(make: Make, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        far = replace(lines_source(tmp_path / "unused", "far"), path="memory://far", cache="none")
        store.pipe("/far/x.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts(20)).encode())
        run = make(sources=[far])
        store.pipe("/far/y.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts(20, seed=1)).encode())
        new = Run(run.recipe, tmp_path / "new", "recipe.yaml")
        for one in (run, new):
            verbs.download(one, 2, 15, False)
    finally:
        store.store.clear()
    chunks = [len(list(one.folder.glob("raw/far/chunk-*.jsonl"))) for one in (run, new)]
    assert chunks == [2, 3], "20 documents of one file; 40 of two"


def test_an_analysis_shows_what_the_rules_leave_nothing_of(make: Make, tmp_path: Path, inputs: Path) -> None:
    quality = replace(settings(lines_source(inputs / "a.jsonl")).quality, preset="web", thresholds={"gopher_minimum_words": 10_000})
    with pytest.raises(DataError, match="gives 0 documents"):
        make("strict", quality=quality)
    strict = Run(Recipe(corpus=settings(lines_source(inputs / "a.jsonl"), quality=quality)), tmp_path / "new", "recipe.yaml")
    stage.analyze(strict)
    told = statistics_of(strict.folder / "analysis")
    assert told["kept"] == 0 and sum(told["filters"]["a"]["dropped"].values()) == told["filters"]["a"]["read"]["documents"]


def test_an_analysis_that_fails_leaves_nothing(make: Make, tmp_path: Path, inputs: Path) -> None:
    broken = Run(Recipe(corpus=settings(lines_source(inputs / "nowhere.jsonl"))), tmp_path / "new", "recipe.yaml")
    with pytest.raises(DataError, match="there is no file"):
        stage.analyze(broken)
    talks = Run(Recipe(corpus=settings(lines_source(inputs / "a.jsonl", content="conversations"))), tmp_path / "new", "recipe.yaml")
    with pytest.raises(DataError, match="no source of documents"):
        stage.analyze(talks)
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []


# ---- ranks


def test_another_rank_has_nothing_to_do_for_a_finished_corpus(make: Make, made: list[str]) -> None:
    before = snapshot(make().folder)
    made.clear()
    run = make(rank=1, world=2)
    assert (made, snapshot(run.folder)) == ([], before)


def test_a_rank_alone_makes_all_but_the_corpus(make: Make, made: list[str], inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in inputs.iterdir():
        os.utime(path, (1, 1))  # what was changed just now is hashed every time
    monkeypatch.setattr("fledge.corpus.engine.ranks._PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("fledge.corpus.engine.ranks.RankExecutor.__init__.__defaults__", (0.0, 0.01))
    run = make(rank=1, world=2)
    assert kinds(made) == ALL_UNITS
    assert not corpus_of(run).exists()
    assert not (run.folder / stage.WORK / "fingerprints.json").exists(), "only rank 0 writes what all share"
    made.clear()
    make(rank=0, world=2, keep_work=False)
    assert made == [] and (run.folder / stage.WORK / "fingerprints.json").exists()
    assert len(list((run.folder / stage.WORK).glob(f"*/{UNIT}"))) == sum(ALL_UNITS.values()), "another rank may still read them"
    require_fresh(make, run)


# ---- what a model is evaluated on


def test_files_of_the_evaluation_are_kept_out_by_default(make: Make, tmp_path: Path, inputs: Path) -> None:
    from fledge.evaluation.settings import EvaluateSettings

    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "one.txt").write_text(texts(1, words=60)[0])
    (tmp_path / "exam" / "two.md").write_text("A question that nobody else asks: " + texts(3, seed=1, words=60)[2])
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": texts(6, seed=1, words=60)[5]}) + "\n")
    evaluate = EvaluateSettings(files=(str(tmp_path / "exam"),))
    decontaminate = settings(lines_source(inputs)).decontaminate
    found = {}
    for name, changes in {
        "by default": {},
        "turned off": {"decontaminate": replace(decontaminate, evaluated=False)},
        "more": {"decontaminate": replace(decontaminate, files=(str(other),))},
        "only others": {"decontaminate": replace(decontaminate, files=(str(other),), evaluated=False)},
    }.items():
        run = make(name, evaluate=evaluate, **changes)
        counts = [counts.get("contaminated", {}) for counts in statistics_of(corpus_of(run))["filters"].values()]
        found[name] = {file: count for one in counts for file, count in one.items()}
    assert found == {
        # One document of the first source, and its near copy in the third.
        "by default": {"one.txt": 1, "two.md": 1},
        "turned off": {},
        "more": {"one.txt": 1, "two.md": 1, "other.jsonl": 1},
        "only others": {"other.jsonl": 1},
    }
    kept = {
        row.text for split in ("train", "validation") for row in read_documents(corpus_of(Run(run.recipe, tmp_path / "more", "")), split)
    }
    assert len(kept) == 120 - 3
    assert not {texts(1, words=60)[0], f"{near_copy(texts(1, words=60)[0])} Or so.", texts(3, seed=1, words=60)[2]} & kept


def test_an_edited_evaluation_file_is_another_corpus(make: Make, made: list[str], tmp_path: Path) -> None:
    from fledge.evaluation.settings import EvaluateSettings

    exam = tmp_path / "exam.txt"
    exam.write_text("Nobody asks this question of at least eight words.")
    evaluate = EvaluateSettings(files=(str(exam),))
    make(evaluate=evaluate)
    made.clear()
    exam.write_text("Nobody asks this question of at least ten words or so.")
    with pytest.raises(ArtifactError, match="evaluation_files"):
        make(evaluate=evaluate)
    run = make(evaluate=evaluate, force=True)
    assert kinds(made)["source"] == 3
    require_fresh(make, run, evaluate=evaluate)
    exam.unlink()
    with pytest.raises(DataError, match="evaluation files"):
        make(evaluate=evaluate)


def test_a_recipe_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no section 'corpus'"):
        stage.run(Run(Recipe(), tmp_path / "run", "recipe.yaml"))
