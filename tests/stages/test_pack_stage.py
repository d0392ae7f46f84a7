"""The stage that packs: layouts, splits, what asks for another set and what does not, and token files of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError, ConfigError, DataError
from fledge.corpus.document import Document
from fledge.evaluation.statistics import Score
from fledge.stages import run_stage
from fledge.stages.making import evaluation
from fledge.stages.run import Run, set_aside
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer
from fledge.tokens.unpacking import unpacked_documents
from fledge.verbs import inspection
from fledge.verbs.export import export

MakeRun = Callable[..., Run]
Walk = Callable[..., None]

DOCUMENTS_ONLY = ("sft=null", "dpo=null")


def documents(run: Run) -> artifact.Artifact:
    return artifact.open_artifact(run.folder / "pack" / "documents")


def test_documents_in_rows_by_best_fit_are_trained_on_and_measured(make_run: MakeRun, walk: Walk) -> None:
    run = make_run("pack.document_layout=best_fit", "pack.sequence_length=128", "pretrain.sequence_length=null", *DOCUMENTS_ONLY)
    walk(run)
    packed = documents(run)
    assert packed.manifest.settings["row_tokens"] == 128
    assert 0 < packed.stats["train"]["padding_share"] < 0.4
    scores = json.loads((run.folder / "evaluate" / "results.json").read_text())["evaluations"][0]["scores"]
    assert {score["name"] for score in scores} >= {"bits_per_byte", "last_word"}


def test_the_split_may_be_made_when_packing(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run(), "tokenizer")
    fraction = make_run("pack.split={kind: fraction, validation_fraction: 0.4}")
    run_stage("pack", fraction)
    packed = documents(fraction)
    assert packed.manifest.settings["split"] == {"kind": "fraction", "validation_fraction": 0.4}
    assert 0.2 < packed.stats["validation"]["tokens"] / (packed.stats["train"]["tokens"] + packed.stats["validation"]["tokens"]) < 0.6
    set_aside(fraction, ["pack"])
    budget = ("pack.split={kind: budget, train_tokens: 600, validation_tokens: 300}", "pack.shuffle=true")
    run_stage("pack", make_run(*budget))
    stats = documents(fraction).stats
    assert 600 <= stats["train"]["tokens"] < 750 and 300 <= stats["validation"]["tokens"] < 450
    with pytest.raises(ArtifactError, match="seed: 0 -> 7"):
        run_stage("pack", make_run(*budget, "pack.seed=7"))


def test_evaluation_measures_on_what_packing_held_out(make_run: MakeRun, walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus's own validation split may have been trained on when packing divides anew."""
    run = make_run("pack.split={kind: fraction, validation_fraction: 0.3}", *DOCUMENTS_ONLY)
    walk(run, "pretrain")
    seen: list[Document] = []

    def measure(model: object, tokenizer: object, token_set: object, documents: list[Document], *_: object, **__: object) -> list[Score]:
        seen.extend(documents)
        return []

    monkeypatch.setattr(evaluation, "evaluate_base", measure)
    run_stage("evaluate", run)
    folder = run.folder / "pack" / "documents"
    tokenizer = open_tokenizer(run.folder / "tokenizer")
    assert [one.text for one in seen] == [text for _, text in unpacked_documents(open_token_set(folder), tokenizer, "validation")]
    assert {one.text for one in seen}.isdisjoint(text for _, text in unpacked_documents(open_token_set(folder), tokenizer, "train"))


def test_what_means_nothing_to_a_stream_asks_for_no_other_one(make_run: MakeRun, walk: Walk) -> None:
    run = make_run(*DOCUMENTS_ONLY, "corpus.sources=[]", "corpus=null")
    walk(make_run(), "pack")
    before = documents(run).id
    for override in ("pack.seed=3", "pack.allow_shared_documents=true"):
        run_stage("pack", make_run(override))
        assert documents(run).id == before


def test_a_document_on_both_sides_stops_the_packing(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "tokenizer")
    other = make_run("corpus.seed=1", name="other")
    run_stage("corpus", other)
    # The same text under another name, divided by another seed.
    both = f"pack.corpus=[{run.folder / 'corpus' / 'documents'}, {other.folder / 'corpus' / 'documents'}]"
    with pytest.raises(DataError, match="documents of the validation split are also in the training split") as caught:
        run_stage("pack", make_run(both))
    assert caught.value.exit_code == 3
    assert not (run.folder / "pack" / "documents").exists()
    run_stage("pack", make_run(both, "pack.allow_shared_documents=true"))
    assert documents(run).stats["train"]["duplicate_share"] > 0


@pytest.mark.parametrize("from_hub", [False, True])
def test_plain_files_of_others_are_trained_on(
    make_run: MakeRun, walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_hub: bool
) -> None:
    first = make_run(name="first")
    walk(first, "pack")
    plain = tmp_path / "plain"
    export(str(first.folder), plain, "bin", None, small=False)
    asked: list[tuple[str, str, str]] = []

    def download(repository: str, *, repo_type: str, revision: str, **_: object) -> str:
        asked.append((repo_type, repository, revision))
        return str(plain)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    second = make_run(
        *("corpus=null", "tokenizer=null", "sft=null", "dpo=null", "evaluate=null"),
        f"pack.tokenizer={first.folder / 'tokenizer'}",
        f"pack.import_bin={'hub:someone/tokens@v1' if from_hub else plain}",
        name="second",
    )
    walk(second, "pretrain")
    assert asked == ([("dataset", "someone/tokens", "v1")] if from_hub else [])
    for split in ("train", "validation"):
        for figure in ("tokens", "documents"):
            assert documents(first).stats[split][figure] == documents(second).stats[split][figure]
    assert documents(second).manifest.inputs["import"].kind == "bin"
    inspection.verify(str(second.folder), small=False)


def test_a_hub_name_must_have_an_owner(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="import_bin is 'hub:tokens'") as caught:
        run_stage("pack", make_run("pack.import_bin=hub:tokens"))
    assert "hub:OWNER/NAME" in caught.value.remedy
