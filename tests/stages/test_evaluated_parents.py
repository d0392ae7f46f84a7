"""What a stage started from is measured beside it, and every checkpoint says something to the recipe's prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fledge.core import artifact
from fledge.stages import run_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.evaluate import _checkpoints
from fledge.stages.run import Run

PROMPTS = 'evaluate.prompts=["What is a bird?", "The river by the"]'


def evaluations(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run.folder / "evaluate" / "results.json").read_text())["evaluations"]
    return found


def test_a_parent_from_elsewhere_stands_beside_its_child(
    make_run: Callable[..., Run], walk: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_run("sft=null", "dpo=null", name="base")
    walk(base, "pretrain")
    parent = f"{base.folder / 'pretrain'}@final"
    tuned = ("pretrain=null", f"sft.start_from={parent}", f"pack.tokenizer={base.folder / 'tokenizer'}", "tokenizer=null", PROMPTS)
    run = make_run(*tuned, "dpo=null", name="tuned")
    walk(run)
    before, sft = evaluations(run)
    assert (before["name"], sft["name"]) == (f"{parent} (before sft)", "sft")
    for one in (before, sft):
        assert [reply["prompt"] for reply in one["replies"]] == ["What is a bird?", "The river by the"]
        assert "answer_perplexity" in {score["name"] for score in one["scores"]}
    assert "format_rate" in {score["name"] for score in sft["scores"]}
    inputs = artifact.open_artifact(run.folder / "evaluate").manifest.inputs
    assert inputs[f"checkpoint.{before['name']}"].id == artifact.open_artifact(find_checkpoint(parent)).id
    assert "\n> What is a bird?\n" in (run.folder / "evaluate" / "results.txt").read_text()
    page = (run.folder / "report" / "report.html").read_text()
    assert ">Prompts</h2>" in page and "The river by the" in page
    assert "what they say to the prompts" in capsys.readouterr().out
    base.folder.rename(base.folder.with_name("elsewhere"))
    assert list(_checkpoints(run, run.recipe.section("evaluate"))) == ["sft"]
    assert f"the checkpoint {parent} is not measured" in capsys.readouterr().err


def test_a_parent_is_measured_once_and_only_if_it_is_the_one(
    make_run: Callable[..., Run], walk: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("dpo=null")
    walk(run, "sft")

    def measured(start_from: str) -> list[str]:
        same = make_run("dpo=null", f"sft.start_from={start_from}")
        return list(_checkpoints(same, same.recipe.section("evaluate")))

    assert measured(f"{run.folder / 'pretrain'}@final") == ["pretrain", "sft"]
    capsys.readouterr()
    assert measured(f"{run.folder / 'pretrain'}@4") == ["pretrain", "sft"]
    assert "it is another than the one" in capsys.readouterr().err
    run_stage("evaluate", run)
    assert [one["replies"] for one in evaluations(run)] == [[], []]
