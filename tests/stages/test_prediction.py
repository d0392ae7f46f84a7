"""A training stage says before its first step what it will take, and afterwards what it took."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fledge.core import artifact
from fledge.model.llama import Llama
from fledge.stages.making import prediction
from fledge.stages.making.prediction import PREDICTION, Prediction, forget_seconds, predicted
from fledge.stages.run import Run
from fledge.training.batches import Batch
from fledge.training.objectives import Objective
from fledge.training.optimizer import Optimizer
from fledge.training.parallel import Machine, open_world
from fledge.training.probe import StepSeconds


def test_a_stage_expects_before_and_measures_after(make_run: Callable[..., Run], walk: Callable[..., None]) -> None:
    run = make_run("sft=null", "dpo=null")
    walk(run, "pretrain")
    stats = artifact.open_artifact(run.folder / "pretrain").stats
    expected = predicted(run.folder / "pretrain")
    assert expected is not None
    assert expected.seconds is not None
    assert (stats["planned_seconds"], stats["planned_peak_bytes"]) == (expected.seconds, expected.peak_bytes)
    assert 0 < stats["planned_seconds"] < 60
    assert 50_000_000 < stats["planned_peak_bytes"] < 4_000_000_000
    assert 0.5 < stats["planned_peak_bytes"] / stats["peak_bytes"] < 2


def test_a_curriculum_is_expected_to_take_what_its_longest_rows_take(
    make_run: Callable[..., Run], walk: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(model: Llama, objective: Objective, optimizer: Optimizer, machine: Machine, batch: Batch, runs: int) -> StepSeconds:
        measured.append(tuple(batch.tokens.shape))
        return StepSeconds(1.0, 0.0)

    monkeypatch.setattr(prediction, "measure", measure)
    phases = "[{until_tokens: 128, sequence_length: 8}, {until_tokens: 384, sequence_length: 32}, {until_tokens: 512, sequence_length: 16}]"
    run = make_run("pretrain.steps=null", f"pretrain.phases={phases}", "sft=null", "dpo=null")
    walk(run, "pretrain")
    expected = predicted(run.folder / "pretrain")
    # Four batches of 4 rows at a second a row, and the validation.
    assert measured == [(4, 32)]
    assert expected is not None and expected.seconds is not None and 16 <= expected.seconds < 48


def test_what_goes_on_expects_no_time(make_run: Callable[..., Run]) -> None:
    folder = make_run().folder
    assert predicted(folder) is None
    folder.mkdir()
    (folder / PREDICTION).write_text(json.dumps({"peak_bytes": 5, "seconds": 2.0}))
    with open_world("cpu") as world:
        forget_seconds(folder, world)
    assert predicted(folder) == Prediction(5, None)
