"""What a training block of a recipe refuses."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, identity, parse
from fledge.core.errors import ConfigError
from fledge.model.settings import LoraSettings
from fledge.training.settings import MuonSettings, PhaseSettings, PreferenceSettings, ScheduleSettings, TrainingSettings


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "steps, budget or phases must say how long the run is"),
        ({"steps": 5, "phases": [{"until_tokens": 9}]}, "steps and phases both say how long the run is"),
        ({"steps": 5, "budget": {"tokens": 9}}, "steps and budget both say how long the run is"),
        ({"budget": {"tokens": 9}, "phases": [{"until_tokens": 9}]}, "budget and phases both say"),
        ({"budget": {}}, "tokens or tokens_per_parameter must be given, and not both"),
        ({"budget": {"tokens": 9, "tokens_per_parameter": 20.0}}, "tokens or tokens_per_parameter must be given, and not both"),
        ({"budget": {"tokens": 0}}, "tokens must be above 0, not 0"),
        ({"budget": {"tokens_per_parameter": -1.0}}, "tokens_per_parameter must be above 0"),
        ({"phases": [{"until_tokens": 0}]}, "until_tokens must be at least 1"),
        ({"phases": [{"until_tokens": 9, "sequence_length": 7}]}, "sequence_length must be at least 8"),
        ({"phases": [{"until_tokens": 9, "batch_tokens": 0}]}, "batch_tokens must be at least 1"),
        ({"phases": [{"until_tokens": 9, "mixture": {"a": 0.0}}]}, "mixture weights"),
        ({"phases": [{"until_tokens": 9}, {"until_tokens": 9}]}, "phases must have rising until_tokens, not 9, 9"),
        ({"phases": [{"sequence_length": 8}]}, "until_tokens is required"),
        ({"steps": 5, "keep": ["weights"]}, "keep"),
        ({"steps": 5, "schedule": {"warmup_fraction": 1.1}}, "warmup_fraction must lie in"),
        ({"steps": 5, "schedule": {"warmup_fraction": 0.1, "warmup_steps": 1}}, "warmup_fraction and warmup_steps both say"),
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


@pytest.mark.parametrize(
    ("stage", "phases", "longest", "complete"),
    [
        (16, [], 16, True),
        (None, [], None, False),
        (16, [8, None], 16, True),
        (16, [8, 32], 32, True),
        (None, [8, 32], 32, True),
        (None, [8, None], 8, False),
        (None, [None], None, False),
    ],
)
def test_the_longest_phase_and_whether_all_have_a_length(
    stage: int | None, phases: list[int | None], longest: int | None, complete: bool
) -> None:
    parts = tuple(PhaseSettings(until_tokens=end, sequence_length=length) for end, length in enumerate(phases, 1))
    settings = TrainingSettings(sequence_length=stage, phases=parts, steps=None if parts else 5)
    assert (settings.longest_sequence_length, settings.has_sequence_length) == (longest, complete)


def test_preferences_know_no_dropout() -> None:
    preference = {"objective": PreferenceSettings()}
    assert TrainingSettings(steps=5, lora=LoraSettings(), **preference).lora is not None  # type: ignore[arg-type]
    assert TrainingSettings(steps=5, lora=LoraSettings(dropout=0.1)).lora is not None
    with pytest.raises(ValueError, match=r"lora\.dropout: preferences are compared with scores that know no dropout"):
        TrainingSettings(steps=5, lora=LoraSettings(dropout=0.1), **preference)  # type: ignore[arg-type]


def test_a_warm_up_is_a_number_or_a_share_of_steps() -> None:
    assert ScheduleSettings(warmup_steps=7).warmup_of(100) == 7
    assert ScheduleSettings(warmup_fraction=0.1).warmup_of(105) == 10
    assert ScheduleSettings().warmup_of(100) == 0
