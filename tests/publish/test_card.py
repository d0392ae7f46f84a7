"""A model card says what manifests say: lineage, licences, scores of these very weights; and nothing of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact
from fledge.evaluation.checkpoint import CheckpointEvaluation
from fledge.evaluation.statistics import share_score
from fledge.publish.card import find_scores, model_card
from fledge.publish.source import Source, open_source

MakeSource = Callable[..., Source]

SOURCES: list[dict[str, Any]] = [
    {"source": "web", "kind": "hub", "address": "hub:owner/web/*.parquet", "revision": "abc", "license": "ODC-By v1.0"},
    {"source": "own", "kind": "text", "address": "local files", "revision": "", "license": "CC BY-SA 4.0"},
]


def head_of(card: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return head


@pytest.fixture
def with_lineage(make_source: MakeSource, tmp_path: Path) -> Callable[..., Source]:
    """A checkpoint made from a corpus with these sources."""

    def make(sources: list[dict[str, Any]]) -> Source:
        source = make_source()
        with artifact.build(tmp_path / "corpus", artifact.request("corpus", {"content": "documents"})) as (partial, _):
            disk.write_json(partial / "stats.json", {"provenance": sources})
        corpus = artifact.open_artifact(tmp_path / "corpus")
        folder = source.artifact.path.with_name("step-000002")
        with artifact.build(folder, artifact.request("checkpoint", {}, {"corpus.0": corpus})) as (partial, _):
            for path in source.artifact.path.iterdir():
                if path.is_file() and path.name != "manifest.json":
                    (partial / path.name).write_bytes(path.read_bytes())
        return open_source(artifact.open_artifact(folder))

    return make


def evaluated(checkpoint: Artifact, scored: str) -> None:
    """An evaluation in the run's folder that measured the checkpoint with this id under the name `sft`."""
    run = checkpoint.path.parents[2]
    given = artifact.Input("checkpoint", scored, str(checkpoint.path))
    wanted = artifact.Request("evaluation", {}, {"checkpoint.sft": given})
    scores = (share_score("last_word", 30, 100, chance=0.01),)
    with artifact.build(run / "evaluate", wanted) as (partial, _):
        results = [asdict(CheckpointEvaluation("pretrain", ())), asdict(CheckpointEvaluation("sft", scores))]
        disk.write_json(partial / "results.json", {"evaluations": results})


def test_the_card_names_licences_ancestors_and_how_to_use_it(with_lineage: Callable[..., Source], tmp_path: Path) -> None:
    source = with_lineage(SOURCES)
    card = model_card(source, "name", "hf", "bf16")
    assert head_of(card) == {
        "license": "other",
        "license_name": "ODC-By v1.0, CC BY-SA 4.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fledge", "llama", "conversational"],
        "datasets": ["owner/web"],
    }
    corpus = artifact.open_artifact(tmp_path / "corpus")
    for part in (source.artifact.id, corpus.id, "`ODC-By v1.0`", "stored in bf16", "apply_chat_template", "`web`"):
        assert part in card, part
    assert str(tmp_path) not in card and "## Scores" not in card
    assert model_card(source, "name", "hf", "bf16") == card


def test_one_licence_is_the_models(with_lineage: Callable[..., Source]) -> None:
    assert head_of(model_card(with_lineage(SOURCES[1:]), "name", "hf", "f32"))["license"] == "cc-by-sa-4.0"


def test_without_a_known_corpus_the_licence_is_unknown(make_source: MakeSource) -> None:
    head = head_of(model_card(make_source(), "name", "gguf", "f16"))
    assert head["license"] == "unknown" and head["library_name"] == "gguf" and "datasets" not in head


def test_scores_are_shown_only_if_they_are_of_these_weights(make_source: MakeSource) -> None:
    source = make_source()
    evaluated(source.artifact, "0" * 64)
    assert find_scores(source.artifact) is None
    disk.remove(source.artifact.path.parents[2] / "evaluate")
    evaluated(source.artifact, source.artifact.id)
    found = find_scores(source.artifact)
    assert found is not None and found.name == "sft"
    card = model_card(source, "name", "hf", "f32")
    assert "## Scores" in card and "30.0" in card and "before the cast" not in card
    assert "Measured in fp32, before the cast to q8_0." in model_card(source, "name", "gguf", "q8_0")
    path = source.artifact.path.parents[2] / "evaluate" / "results.json"
    path.write_text(json.dumps({"evaluations": {}}).ljust(path.stat().st_size))
    assert find_scores(source.artifact) is None


@pytest.mark.parametrize(("target", "part"), [("gguf", "llama-cli -m model.gguf"), ("ollama", "ollama create name -f Modelfile")])
def test_each_target_is_used_in_its_own_way(target: Any, part: str, make_source: MakeSource) -> None:
    assert part in model_card(make_source(), "name", target, "q8_0")


def test_a_name_cannot_break_the_card(make_source: MakeSource) -> None:
    card = model_card(make_source(), "a`|<script>\n# b", "hf", "f32")
    assert "\n# b" not in card.split("## How")[0]
