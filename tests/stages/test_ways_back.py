"""A stage that goes back behind its trouble is one run: what it counts goes on."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.metrics import read_metrics
from fledge.stages import run_stage
from fledge.stages.run import Run
from fledge.training.batches import Batch
from fledge.training.trainer import Trainer


def test_saves_that_failed_are_counted_through_a_way_back(
    make_run: Callable[..., Run], walk: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("pretrain.save_every_steps=1", "pretrain.guard.maximum_bad_steps=2", "pretrain.log_every_steps=1")
    walk(run, "pack")
    accumulate = Trainer._accumulate_gradients

    def poisoned(self: Trainer, given: Sequence[Batch], step: int) -> Any:
        if step in (3, 4) and not self.progress.left_out:
            given = [replace(batch, token_weight=batch.token_weight * math.nan) for batch in given]
        return accumulate(self, given, step)

    def full(operation: str, path: Path) -> None:
        if operation == "create" and "step-000001" in str(path):
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Trainer, "_accumulate_gradients", poisoned)
    monkeypatch.setattr(disk, "fail_point", full)
    run_stage("pretrain", run)
    counted = {
        record["step"]: record.get("checkpoint_failures") for record in read_metrics(run.folder / "pretrain") if "train/loss" in record
    }
    assert list(counted) == [1, 2, 3, 6], "the two steps of the trouble are left out"
    assert (counted[1], counted[2], counted[6]) == (None, 1, 1)
