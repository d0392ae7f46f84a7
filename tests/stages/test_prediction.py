"""A training stage says before its first step what it will take, and afterwards what it took."""

from __future__ import annotations

import json
from collections.abc import Callable

from fledge.core import artifact
from fledge.stages.making.prediction import PREDICTION, Prediction, forget_seconds, predicted
from fledge.stages.run import Run
from fledge.training.parallel import open_world


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


def test_what_goes_on_expects_no_time(make_run: Callable[..., Run]) -> None:
    folder = make_run().folder
    assert predicted(folder) is None
    folder.mkdir()
    (folder / PREDICTION).write_text(json.dumps({"peak_bytes": 5, "seconds": 2.0}))
    with open_world("cpu") as world:
        forget_seconds(folder, world)
    assert predicted(folder) == Prediction(5, None)
