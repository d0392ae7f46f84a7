"""A run ends when validation no longer improves, at the step that its recorded losses decide, whether or not it was interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from training_assembly import assembled, training_settings

from fledge.core.errors import Stopped
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint_folders import best_checkpoint, list_checkpoints
from fledge.training.early_stopping import EarlyStop, early_stop
from fledge.training.observers import Validate
from fledge.training.settings import EarlyStoppingSettings, TrainingSettings
from fledge.training.trainer import StepReport, Trainer

LOSSES = [3.0, 2.0, 1.5, 1.6, 1.49, 1.6, 1.7, 1.8, 1.0]


def stopped(losses: Sequence[float], patience: int, minimum_improvement: float = 0.0) -> EarlyStop | None:
    settings = EarlyStoppingSettings(patience=patience, minimum_improvement=minimum_improvement)
    return early_stop([(10 * number, loss) for number, loss in enumerate(losses, start=1)], settings)


def test_the_stop_is_where_patience_runs_out() -> None:
    assert stopped(LOSSES, 1) == EarlyStop(step=40, best_step=30, best_loss=1.5, validations=1)
    assert stopped(LOSSES, 2) == EarlyStop(step=70, best_step=50, best_loss=1.49, validations=2)
    assert stopped(LOSSES, 3) == EarlyStop(step=80, best_step=50, best_loss=1.49, validations=3)
    assert stopped(LOSSES, 4) is None
    assert early_stop([(1, 1.0), (2, 2.0)], None) is None


def test_an_improvement_below_the_minimum_is_none() -> None:
    assert stopped(LOSSES, 2, minimum_improvement=0.02) == EarlyStop(step=50, best_step=30, best_loss=1.5, validations=2)
    assert stopped([2.0, 1.5, 1.0], 1, minimum_improvement=0.5) == EarlyStop(20, 10, 2.0, 1)
    assert stopped([2.0, 1.25, 0.5], 1, minimum_improvement=0.5) is None


def test_a_loss_that_is_no_number_is_no_improvement() -> None:
    assert stopped([2.0, math.nan, math.inf], 2) == EarlyStop(30, 10, 2.0, 2)


def test_the_stop_does_not_move_with_what_comes_after() -> None:
    for length in range(len(LOSSES) + 1):
        found = stopped(LOSSES[:length], 2)
        assert found == (stopped(LOSSES, 2) if length >= 7 else None)


def settings(**changes: Any) -> TrainingSettings:
    stopping = EarlyStoppingSettings(patience=2)
    return training_settings(steps=20, validate_every_steps=2, save_every_steps=2, keep_checkpoints=1, early_stopping=stopping, **changes)


def worse_from(trainer: Trainer, step: int) -> None:
    """Let the validation loss rise from a step on."""
    validate = next(observer for observer in trainer.observers if isinstance(observer, Validate))
    measure, taken = validate.measure, trainer.progress.step // 2

    def measured() -> dict[str, float]:
        nonlocal taken
        taken += 1
        return {**measure(), "validation/loss": 5.0 - taken if 2 * taken < step else 2.0 * taken}

    validate.measure = measured  # type: ignore[method-assign]


class Interrupt:
    """Asks to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.requested = step, None

    def due(self, step: int) -> bool:
        return step == self.step

    def observe(self, report: StepReport) -> dict[str, float]:
        self.requested = 15  # type: ignore[assignment]
        return {}


def test_a_run_stops_and_keeps_its_best(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", settings(), [documents]) as trainer:
        worse_from(trainer, 6)
        assert trainer.run().step == 8
        assert trainer.early_stop == EarlyStop(step=8, best_step=4, best_loss=3.0, validations=2)
    assert [found.step for found in list_checkpoints(tmp_path / "run")] == [4, 8]
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and best.step == 4


def test_an_improving_run_goes_to_its_end(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", settings(), [documents]) as trainer:
        worse_from(trainer, 19)
        assert trainer.run().step == 20
        assert trainer.early_stop is None


@pytest.mark.parametrize("interrupted_after", [4, 5, 7])
def test_a_resumed_run_stops_where_an_undisturbed_one_does(tmp_path: Path, documents: TokenSet, interrupted_after: int) -> None:
    with assembled(tmp_path / "run", settings(), [documents]) as first:
        worse_from(first, 6)
        # The signal is seen in the step after.
        interrupt = Interrupt(interrupted_after - 1)
        first.stop, first.observers = interrupt, [*first.observers, interrupt]
        with pytest.raises(Stopped):
            first.run()
        assert first.progress.step == interrupted_after
    with assembled(tmp_path / "run", settings(), [documents]) as second:
        worse_from(second, 6)
        assert second.run().step == 8
    with assembled(tmp_path / "run", settings(), [documents]) as finished:
        assert finished.run().step == 8, "a run that has stopped does not go on"
        assert finished.early_stop == EarlyStop(step=8, best_step=4, best_loss=3.0, validations=2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"validate_every_steps": None}, "early_stopping needs validate_every_steps"),
        ({"save_every_steps": None}, "set save_at_validations"),
        ({"save_every_steps": 3}, "set save_at_validations"),
        ({"save_every_steps": 8}, "set save_at_validations"),
        ({"validate_every_steps": None, "validate_every_epochs": 0.5}, "set save_at_validations"),
    ],
)
def test_what_early_stopping_needs_is_required(changes: dict[str, Any], problem: str) -> None:
    given = {"validate_every_steps": 4, "save_every_steps": 2, "early_stopping": EarlyStoppingSettings(patience=1)}
    training_settings(**given)
    training_settings(**{**given, "early_stopping": None, **changes})
    if problem == "set save_at_validations":
        training_settings(**{**given, **changes, "save_at_validations": True})
    with pytest.raises(ValueError, match=problem):
        training_settings(**{**given, **changes})


@pytest.mark.parametrize(
    "make", [lambda: EarlyStoppingSettings(patience=0), lambda: EarlyStoppingSettings(patience=1, minimum_improvement=-1e-3)]
)
def test_settings_at_the_border(make: Callable[[], EarlyStoppingSettings]) -> None:
    EarlyStoppingSettings(patience=1, minimum_improvement=0.0)
    with pytest.raises(ValueError, match=r"must"):
        make()
