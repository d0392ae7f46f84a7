"""How long and how large a stage is, and every warning on both of its sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fledge.model.settings import ModelConfig, ModelSettings
from fledge.training.forecast import (
    StageLength,
    checkpoint_bytes,
    largest_checkpoint_bytes,
    loss_by_law,
    saves,
    stage_length,
    stage_seconds,
    stage_warnings,
    times,
    vocabulary_warnings,
)
from fledge.training.settings import BudgetSettings, MuonSettings, PhaseSettings, ScheduleSettings, TrainingSettings


def settings(**changes: Any) -> TrainingSettings:
    given = {"steps": 100, "batch_rows": 8, "schedule": ScheduleSettings(warmup_steps=10), "save_every_steps": 10, **changes}
    return TrainingSettings(**given)


def said(epochs: float | None = None, seconds: float | None = None, **changes: Any) -> list[str]:
    chosen = settings(**changes)
    found = list(stage_warnings("pretrain", chosen, stage_length(chosen, 64, 1_000), seconds, epochs))
    assert all(warned.change in warned.text for warned in found)
    return [warned.text for warned in found]


def test_the_length_follows_from_the_settings_or_the_packed_rows() -> None:
    assert stage_length(settings(), 64, 1_000) == StageLength(100, 8, 64, 51_200)
    assert stage_length(settings(sequence_length=32), 64, 1_000) == StageLength(100, 8, 32, 25_600)
    budget = BudgetSettings(tokens_per_parameter=20)
    assert stage_length(settings(steps=None, budget=budget), 64, 1_000) == StageLength(40, 8, 64, 20_480)
    phases = (PhaseSettings(until_tokens=10_240, sequence_length=32), PhaseSettings(until_tokens=20_480))
    by_phases = settings(steps=None, phases=phases, sequence_length=64, mixture={"web": 0.5, "books": 0.5})
    assert stage_length(by_phases, 64, 1_000) == StageLength(40, 8, 64, 20_480)


def test_nothing_is_said_of_a_sound_stage() -> None:
    assert said(epochs=4.0, seconds=18_000.0, micro_batch_rows=4) == []


def test_a_short_warm_up_is_named() -> None:
    [warning] = said(schedule=ScheduleSettings(warmup_steps=9))
    assert "9 of 100 steps (9.0%)" in warning
    assert "pretrain.schedule.warmup_steps=10" in warning
    [warning] = said(schedule=ScheduleSettings(warmup_fraction=0.05))
    assert "pretrain.schedule.warmup_fraction=0.1" in warning


def test_rare_saving_is_named() -> None:
    [warning] = said(seconds=18_001.0)
    assert "30 min" in warning
    assert "pretrain.save_every_steps=9 " in warning
    [at_the_end] = said(seconds=3_600.0, save_every_steps=None)
    assert "save_every_steps=50 " in at_the_end
    assert said(seconds=1_800.0, save_every_steps=None) == []


def test_a_batch_that_does_not_divide_is_named() -> None:
    [warning] = said(micro_batch_rows=3)
    assert "8 rows" in warning
    assert "micro-batches of 3" in warning


def test_many_epochs_are_named() -> None:
    [warning] = said(epochs=4.1)
    assert "4.1 times" in warning


@pytest.mark.parametrize(("vocabulary_size", "share"), [(1_280, None), (1_920, "65%")])
def test_a_large_vocabulary_is_named(vocabulary_size: int, share: str | None) -> None:
    shape = ModelSettings(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256)
    found = [warned.text for warned in vocabulary_warnings(ModelConfig(shape, vocabulary_size))]
    assert len(found) == (share is not None)
    assert all(share in warning for warning in found if share)


@pytest.mark.parametrize(("every", "count"), [(None, 1), (50, 2), (40, 3), (100, 1), (200, 1)])
def test_what_happens_every_so_many_steps_happens_at_the_end_too(every: int | None, count: int) -> None:
    assert times(100, every) == count


def test_seconds_are_steps_and_validation_and_saving() -> None:
    chosen = settings(validate_every_steps=50, validation_rows=30, save_every_steps=50)
    length = stage_length(chosen, 64, 1_000)
    without = stage_seconds(chosen, length, 2.0, 0.25, 0, validation_rows=0)
    assert without == 200.0
    assert stage_seconds(chosen, length, 2.0, 0.25, 0, validation_rows=1_000) == pytest.approx(200.0 + 2 * 30 * 0.25 / 3)
    assert stage_seconds(chosen, length, 2.0, 0.25, 25_000_000, validation_rows=0) == pytest.approx(202.0)


def test_checkpoints_are_counted_at_their_largest_moment() -> None:
    chosen = settings(keep_checkpoints=2)
    assert checkpoint_bytes(chosen, 1_000) == 12_000
    assert checkpoint_bytes(replace(chosen, optimizer=MuonSettings()), 1_000) == 8_000
    assert largest_checkpoint_bytes(chosen, stage_length(chosen, 64, 1_000), 1_000, None) == 4 * 12_000
    seldom = replace(chosen, save_every_steps=None)
    assert largest_checkpoint_bytes(seldom, stage_length(seldom, 64, 1_000), 1_000, 3.5) == 12_000
    by_epoch = replace(seldom, keep_every_epochs=1)
    assert largest_checkpoint_bytes(by_epoch, stage_length(by_epoch, 64, 1_000), 1_000, 3.5) == 4 * 12_000
    at_validations = replace(seldom, save_at_validations=True, validate_every_epochs=1.0)
    assert saves(at_validations, stage_length(at_validations, 64, 1_000), 3.5) == 1 + 4


def test_the_law_is_that_of_its_paper_and_stays_where_it_was_fitted() -> None:
    """A model of 124M parameters and 10B tokens is published to reach 3.28 on web pages; the law alone says 3.02."""
    config = ModelConfig(ModelSettings(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048), 50_304)
    low, high = loss_by_law(config, 10**10) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(3.02, abs=0.01), pytest.approx(3.32, abs=0.01))
    assert loss_by_law(config, 10**8) is not None
    assert loss_by_law(config, 10**8 - 1) is None
    assert loss_by_law(replace(config, vocabulary_size=200_064), 10**10) is None
    assert loss_by_law(replace(config, vocabulary_size=8_192), 10**10) is None
