"""The whole road with each kind of tokenizer, from text to an answer, and what decides whether one is made anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError, DataError
from fledge.evaluation.generations import answer_question
from fledge.stages import run_stage
from fledge.stages.run import Run
from fledge.tokens.settings import TokenizerKind
from fledge.tokens.tokenizer import open_tokenizer

from ..tokens.conftest import open_in_transformers
from ..tokens.kinds import write_gpt2, write_llama

MakeRun = Callable[..., Run]
Walk = Callable[..., None]

SIZE = "tokenizer.vocabulary_size=340"
TEXT = "The bird by the river is like a stone. caf\u00e9 \U0001f642"


def _import(path: Path) -> list[str]:
    return ["tokenizer.kind=import", f"tokenizer.path={path}"]


def _check_road(run: Run) -> None:
    frozen = open_tokenizer(run.folder / "tokenizer")
    for checkpoint in sorted((run.folder / "dpo" / "checkpoints").iterdir()):
        assert open_tokenizer(checkpoint).sha256 == frozen.sha256
        assert open_in_transformers(checkpoint)(TEXT)["input_ids"] == frozen.encode(TEXT)
        assert open_tokenizer(checkpoint).decode(frozen.encode(TEXT)) == TEXT
        answer_question(checkpoint, "What is a bird?", maximum_new_tokens=4)
    assert all(artifact.open_artifact(run.folder / stage).manifest for stage in ("evaluate", "report"))


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "unigram"])
def test_the_road_of_a_trained_kind(make_run: MakeRun, walk: Walk, kind: TokenizerKind) -> None:
    run = make_run(f"tokenizer.kind={kind}", SIZE)
    walk(run)
    assert artifact.open_artifact(run.folder / "tokenizer").stats["kind"] == kind
    _check_road(run)


def test_the_road_of_an_imported_tokenizer(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tokenizer.model", [TEXT, "What is it?"], vocab_size=300)
    run = make_run(*_import(path), "tokenizer.turn_tokens=true")
    walk(run)
    _check_road(run)
    assert artifact.open_artifact(run.folder / "tokenizer").manifest.inputs == {}


def test_one_without_turns_learns_from_documents_only(
    make_run: MakeRun, walk: Walk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(*_import(write_gpt2(tmp_path / "tokenizer.json", [TEXT])), "sft=null", "dpo=null")
    with pytest.raises(DataError, match="no tokens for the turns"):
        walk(run, "pack")
    shutil.rmtree(run.folder / "corpus" / "conversations")
    shutil.rmtree(run.folder / "corpus" / "preferences")
    for stage in ("pack", "pretrain", "evaluate", "report"):
        run_stage(stage, run)
    with pytest.raises(DataError, match=r"tokenizer\.turn_tokens=true"):
        answer_question(next(iter((run.folder / "pretrain" / "checkpoints").iterdir())), "What is a bird?", maximum_new_tokens=4)
    assert "answer" not in artifact.open_artifact(run.folder / "report").stats
    assert "no tokens for the turns" in capsys.readouterr().err


def test_the_content_of_an_imported_file_decides_not_its_place(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    path = write_gpt2(tmp_path / "tokenizer.json", [TEXT])
    run = make_run(*_import(path))
    walk(run, "tokenizer")
    made = artifact.open_artifact(run.folder / "tokenizer").id
    moved = shutil.copy(path, tmp_path / "elsewhere.json")
    walk(make_run(*_import(Path(moved))), "tokenizer")
    assert artifact.open_artifact(run.folder / "tokenizer").id == made
    write_gpt2(path, [TEXT, "more and more and more of it"])
    with pytest.raises(ArtifactError):
        walk(run, "tokenizer")


def test_sources_have_the_shares_that_are_asked_for(make_run: MakeRun, walk: Walk) -> None:
    run = make_run("tokenizer.sources={text: 2}", "tokenizer.maximum_bytes=4000")
    walk(run, "tokenizer")
    stats = artifact.open_artifact(run.folder / "tokenizer").stats
    assert stats["source_shares"] == {"text": 1.0}
    assert stats["text_bytes"] == pytest.approx(4_000, rel=0.4) and stats["available_bytes"] > 6_000
    with pytest.raises(DataError, match="'web', and no document"):
        walk(make_run("tokenizer.sources={web: 1}", name="other"), "tokenizer")
