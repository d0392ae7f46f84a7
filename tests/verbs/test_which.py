"""`fledge which`: what it prints of a step and of a text, with steps that are done, to come and left out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from token_artifacts import make_conversations, make_documents, make_tokenizer

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import CheckpointError, ConfigError, DataError
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import copy_tokenizer, open_tokenizer
from fledge.training.batches import open_rows
from fledge.training.checkpoint import STATE
from fledge.training.checkpoint_folders import checkpoint_folder
from fledge.training.phases import make_plan
from fledge.training.settings import TrainingSettings
from fledge.verbs.which import which

STEPS, DONE = 40, 25


def make_checkpoint(run: Path, stage: str, tokens: Artifact, tokenizer: Artifact, left_out: list[tuple[int, int]]) -> None:
    sources = open_rows([open_token_set(tokens.path)], "train", None if stage == "sft" else 32).sources
    settings = TrainingSettings(steps=STEPS, batch_rows=2, sequence_length=None if stage == "sft" else 32)
    plan = make_plan(sources, settings, 1)
    asked = Request("checkpoint", {"stage": "training", "step": 7, "settings": {"stage": stage}}, {"tokens.0": tokens.as_input()})
    with artifact.build(checkpoint_folder(run / stage, DONE), asked) as (partial, stats):
        copy_tokenizer(open_tokenizer(tokenizer.path), stage == "sft", partial, maximum_tokens=64)
        disk.write_json(partial / "config.json", {})
        disk.write_json(partial / STATE, {"step": DONE, "plan": plan.identity(), "left_out": left_out})
        stats["step"] = DONE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    tokenizer = make_tokenizer(run / "tokenizer")
    make_checkpoint(run, "pretrain", make_documents(run / "pack" / "documents", tokenizer), tokenizer, [(10, 12)])
    make_checkpoint(run, "sft", make_conversations(run / "pack" / "conversations", tokenizer), tokenizer, [])
    return run


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("stage", "step", "fate"), [("pretrain", 3, "done"), ("pretrain", 11, "left out"), ("sft", 40, "to come")])
def test_a_step_lists_its_documents(made: Path, stage: str, step: int, fate: str, capsys: pytest.CaptureFixture[str]) -> None:
    which(str(made), stage, step, None, False)
    head, *lines = told(capsys)
    assert head.startswith(f"step {step} of {stage} ({fate}")
    assert {line.split()[1] for line in lines} == {"0", "1"}
    assert all(re.match(r"  row [01]  tokens \d+ to \d+  (books|web|talk) id-\d+", line) for line in lines)


def test_a_text_tells_its_steps_and_they_list_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = open_token_set(made / "pack" / "documents").shards("train")[0]
    text = open_tokenizer(made / "tokenizer").decode(shard.tokens[1 : int(shard.lengths[0])].tolist())
    which(str(made), "pretrain", None, text, False)
    head, *lines = told(capsys)
    assert re.match(r"\d+ documents of pretrain hold this text; the newest checkpoint is of step 25", head)
    name = f"{shard.source} {shard.document_ids[0].as_py()}"
    (line,) = (line for line in lines if line.startswith(f"  {name}:"))
    seen, to_come = (
        [int(step) for step in re.findall(r"\d+", part[0])] if (part := re.findall(rf"{words} ([\d, ]+)", line)) else []
        for words in ("seen in step", "to come in step")
    )
    assert seen and to_come and max(seen) <= 25 < min(to_come) and not {11, 12} & {*seen, *to_come}
    for step in range(1, STEPS + 1):
        which(str(made), "pretrain", step, None, False)
        listed = {re.sub(r", .*", "", row.split("  ")[3]) for row in told(capsys)[1:]}
        assert (name in listed) is (step in {*seen, *to_come}) or step in (11, 12)


def test_the_last_stage_is_meant_and_a_foreign_text_is_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    which(str(made), None, None, "nobody ever wrote this", False)
    assert told(capsys) == ["no document of sft holds this text as it was tokenized"]


def test_what_cannot_be_told(made: Path, tmp_path: Path) -> None:
    for step, text in ((None, None), (1, "text"), (None, "")):
        with pytest.raises(ConfigError, match="which documents"):
            which(str(made), None, step, text, False)
    with pytest.raises(ConfigError, match="pretrain has no step 41"):
        which(str(made), "pretrain", 41, None, False)
    with pytest.raises(CheckpointError, match="there is no run"):
        which(str(tmp_path / "nowhere"), None, 1, None, False)
    moved = tmp_path / "moved"
    shutil.copytree(made, moved)
    state = checkpoint_folder(moved / "pretrain", DONE) / STATE
    digest = json.loads(state.read_text())["plan"]["sources"]["books"]["content"]
    state.write_text(state.read_text().replace(digest, "0" * len(digest)))
    with pytest.raises(DataError, match="is not what"):
        which(str(moved), "pretrain", 1, None, False)
