"""The corpus stage on small files: what is made again after which edit, what is kept, what is told. Kills are in test_corpus_kills.py."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fledge.core import artifact, disk
from fledge.core.errors import ArtifactError, ConfigError, DataError
from fledge.corpus.document import read_documents
from fledge.corpus.engine.units import UNIT
from fledge.corpus.sources.settings import Expect
from fledge.recipe import Recipe
from fledge.stages import corpus as stage
from fledge.stages.run import Run, set_aside

from ..corpus.corpus_assembly import (
    cut_small,
    digests,
    lines_source,
    near_copy,
    settings,
    spy_on_units,
    statistics_of,
    texts,
    write_lines,
)
from ..corpus.corpus_assembly import settings as corpus_settings

Make = Callable[..., Run]

OPTIONS: dict[str, Any] = {"validation_fraction": 0.2, "shard_documents": 25, "workers": 1}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three files of 40 documents, each for a source of its own; the last has near copies of the first."""
    for number, name in enumerate("abc"):
        write_lines(tmp_path / "inputs" / f"{name}.jsonl", texts(40, seed=number, words=60))
    with (tmp_path / "inputs" / "c.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": f"{near_copy(text)} Or so."}) + "\n" for text in texts(5, words=60))
        file.write("bad\n")
    return tmp_path / "inputs"


@pytest.fixture
def make(tmp_path: Path, inputs: Path) -> Make:
    """Runs the stage on the three files, in a folder of that name; settings may differ."""

    def make(name: str = "run", force: bool = False, evaluate: Any = None, rank: int = 0, world: int = 1, **changes: Any) -> Run:
        sources = [lines_source(inputs / f"{source}.jsonl") for source in "abc"]
        deduplicate = settings(*sources).deduplicate
        values = {"deduplicate": replace(deduplicate, bands=4), **OPTIONS, **changes}
        wanted = corpus_settings(*values.pop("sources", sources), **values)
        run = Run(Recipe(corpus=wanted, evaluate=evaluate), tmp_path / name, "recipe.yaml")
        if force:
            set_aside(run, ["corpus"])
        stage.run(run, rank, world)
        return run

    return make


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the units that are run, in order, found ones left out."""
    return spy_on_units(monkeypatch)


def corpus_of(run: Run) -> Path:
    return run.folder / "corpus" / "documents"


def kinds(labels: list[str]) -> dict[str, int]:
    """How many units of each phase."""
    found: dict[str, int] = {}
    for label in labels:
        kind = label.partition(" ")[0].rstrip(",")
        found[kind] = found.get(kind, 0) + 1
    return found


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with the numbers and times by which a file that was written again is known."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


ALL_UNITS = {"source": 3, "duplicates": 5, "clusters": 1, "shard": 6}


# ---- once


def test_a_corpus_is_made_once(make: Make, made: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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


def require_fresh(make: Make, run: Run, **changes: Any) -> None:
    """A build of the same in another folder gives the same files."""
    assert digests(corpus_of(run)) == digests(corpus_of(make("fresh", **changes)))


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
    with pytest.raises(ArtifactError, match="sources: "):
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
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1_000]) == 8


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
    assert kinds(made).keys() == {"source", "duplicates", "clusters"}, "no shard is written"
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
    stage.analyze(new)
    assert [entry.name for entry in new.folder.iterdir()] == ["analysis"]
    assert digests(new.folder / "analysis") == digests(run.folder / "analysis")


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
