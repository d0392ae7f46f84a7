"""What a training block of a recipe refuses."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, identity, parse
from fledge.core.errors import ConfigError
from fledge.training.settings import MuonSettings, TrainingSettings


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "steps is required"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 5, "batch_rows": 0}, "batch_rows must be at least 1"),
        ({"steps": 5, "save_every_steps": 0}, "save_every_steps must be at least 1 or unset"),
        ({"steps": 5, "sequence_length": 7}, "sequence_length must be at least 8"),
        ({"steps": 5, "learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"steps": 5, "gradient_clip": 0.0}, "gradient_clip must be above 0"),
        ({"steps": 5, "weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"steps": 5, "mixture": {"a": 0.0}}, "mixture weights"),
        ({"steps": 5, "schedule": {"warmup_steps": 6}}, r"schedule.warmup_steps \(6\) is more than steps \(5\)"),
        ({"steps": 5, "schedule": {"final_fraction": 1.5}}, "final_fraction must lie in"),
        ({"steps": 5, "schedule": {"decay_fraction": 0.0}}, "decay_fraction must lie in"),
        ({"steps": 5, "objective": {"kind": "preference", "beta": 0.0}}, "beta must be above 0"),
        ({"steps": 5, "objective": {"kind": "next_token", "z_weight": -1.0}}, "z_weight must not be negative"),
        ({"steps": 5, "objective": {"kind": "next_token", "beta": 1.0}}, "unknown key objective.beta"),
        ({"steps": 5, "optimizer": {"kind": "muon", "momentum": 1.0}}, "momentum must lie in"),
        ({"steps": 5, "optimizer": {"kind": "adamw", "beta2": 1.0}}, "beta2 must lie in"),
        ({"steps": 5, "optimizer": {"kind": "sgd"}}, "optimizer"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(TrainingSettings, Tree(values, {}))


def test_what_can_be_is_taken() -> None:
    values = {"steps": 5, "optimizer": {"kind": "muon"}, "schedule": {"warmup_steps": 5}, "mixture": {"a": 0.0, "b": 1.0}}
    assert parse(TrainingSettings, Tree(values, {})).optimizer == MuonSettings()


def test_cadence_and_machine_are_no_part_of_the_identity() -> None:
    settings = TrainingSettings(steps=5)
    others = TrainingSettings(steps=5, device="cpu", threads=1, micro_batch_rows=2, save_every_steps=3, validation_rows=5)
    assert identity(settings) == identity(others)
    assert identity(settings) != identity(TrainingSettings(steps=5, isolate_documents=False))
