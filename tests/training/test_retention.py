"""Which checkpoints stay."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from crash_assembly import ALONE, Save, steps
from training_assembly import REQUEST, assembled, training_settings

from fledge.core import artifact, disk
from fledge.core.errors import MachineError
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.cadence import validation_is_due
from fledge.training.checkpoint import Progress
from fledge.training.checkpoint_folders import CHECKPOINTS, best_checkpoint, checkpoint_folder
from fledge.training.guard import Health
from fledge.training.optimizer import Optimizer
from fledge.training.plan import Plan
from fledge.training.saving import CheckpointWriter
from fledge.training.sound_checkpoints import QUARANTINE, newest_sound, retain

pytestmark = pytest.mark.usefixtures("no_fail_point")


def test_permanent_ones_the_newest_and_the_best_stay(tmp_path: Path, save: Save) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 2, keep_every_steps=4)
    for step, loss in enumerate((5.0, 3.0, 1.0, 4.0, 2.0, 6.0, 7.0, 8.0, 9.0), start=1):
        save(writer, step, loss)
    assert steps(tmp_path) == [3, 4, 8, 9]
    found = best_checkpoint(tmp_path)
    assert found is not None and found.step == 3


def test_the_end_of_every_epoch_stays_too(tmp_path: Path, documents: TokenSet) -> None:
    """An epoch of these rows of 16 tokens takes about fifteen steps; only the newest would stay of what is saved every tenth."""
    settings = training_settings(steps=50, save_every_steps=10, keep_checkpoints=1, keep_every_epochs=1, log_every_steps=50)
    with assembled(tmp_path / "run", settings, [documents], watched=False) as trainer:
        trainer.run()
    plan = trainer.plan
    ends = [step for step in range(1, 51) if math.floor(plan.epochs(step)) > math.floor(plan.epochs(step - 1))]
    assert len(ends) == 3 and not any(step % 10 == 0 for step in ends)
    assert steps(tmp_path / "run") == [*ends, 50]
    assert [step for step in range(1, 51) if plan.ends_epochs(step, 2)] == ends[1:2]
    assert not any(plan.ends_epochs(step, None) for step in range(1, 51))


def test_a_checkpoint_is_saved_at_each_validation_if_asked(tmp_path: Path, documents: TokenSet) -> None:
    """Of thirds of an epoch only the last mark here is one of steps too; without it the best of all would be the end."""
    cadence = {"steps": 24, "validate_every_epochs": 1 / 3, "save_every_steps": 10, "keep_checkpoints": 99, "log_every_steps": 50}
    for asked, saved in ((True, [6, 10, 11, 17, 20, 22, 24]), (False, [10, 20, 24])):
        settings = training_settings(**cadence, save_at_validations=asked)
        with assembled(tmp_path / f"run-{asked}", settings, [documents], watched=False) as trainer:
            trainer.run()
        assert [step for step in range(1, 25) if validation_is_due(step, settings, trainer.plan)] == [6, 11, 17, 22, 24]
        assert steps(tmp_path / f"run-{asked}") == saved


def test_in_a_row_of_bad_steps_the_way_back_stays(tmp_path: Path, plan: Plan, state: tuple[Llama, Optimizer]) -> None:
    """Two stops within the row save twice, and must not push out the checkpoint from which the run will go on."""
    writer = CheckpointWriter(tmp_path, REQUEST, 1)
    for step in (2, 4):
        writer.save(*state, plan, Progress(step), ALONE, "cadence")
    for step in (6, 7, 8):
        writer.save(*state, plan, Progress(step, health=Health(bad_since=5, bad_steps=step - 5)), ALONE, "stop")
    assert steps(tmp_path) == [4, 7, 8]


def test_while_a_run_lasts_two_sound_ones_stay_and_one_at_its_end(tmp_path: Path, save: Save) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 1)
    there: list[list[int]] = []

    def look(operation: str, path: Path) -> None:
        there.append(steps(tmp_path))

    for step in range(1, 6):
        disk.fail_point = look if step > 2 else None
        save(writer, step)
    assert min(map(len, there)) == 2
    save(writer, 6, occasion="end")
    assert steps(tmp_path) == [6]


def test_damaged_ones_do_not_count_and_are_not_deleted(tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest and the best are damaged before the run goes on."""
    writer = CheckpointWriter(tmp_path, REQUEST, 9)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0)):
        save(writer, step, loss)
    for step in (2, 4):
        weights = checkpoint_folder(tmp_path, step) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    save(CheckpointWriter(tmp_path, REQUEST, 2), 5, 5.0)
    assert steps(tmp_path) == [3, 5]
    assert sorted(path.name for path in (tmp_path / QUARANTINE).iterdir()) == ["step-000002", "step-000004"]
    assert "the checkpoint of step 4 is damaged" in capsys.readouterr().err


def test_a_half_removed_checkpoint_is_swept_at_the_next_save(tmp_path: Path, save: Save) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 2)
    save(writer, 1), save(writer, 2)
    (checkpoint_folder(tmp_path, 1) / artifact.MANIFEST).unlink()
    save(writer, 3)
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["step-000002", "step-000003"]


def test_what_cannot_be_read_for_another_reason_than_damage_is_not_set_aside(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(CheckpointWriter(tmp_path, REQUEST, 2), 1)

    def digest(path: Path) -> disk.FileDigest:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(disk, "digest_file", digest)
    with pytest.raises(MachineError, match=r"cannot read .*Too many open files"):
        newest_sound(tmp_path)
    with pytest.raises(MachineError, match="cannot read"):
        retain(tmp_path, 1)
    assert steps(tmp_path) == [1]


def test_permanent_ones_are_among_those_that_are_saved() -> None:
    assert training_settings(save_every_steps=2, keep_every_steps=4).keep_every_steps == 4
    for every_steps in (3, 0):
        with pytest.raises(ValueError, match="keep_every_steps must be"):
            training_settings(save_every_steps=2, keep_every_steps=every_steps)
    with pytest.raises(ValueError, match="keep_every_steps must be a multiple"):
        replace(training_settings(), keep_every_steps=4)
