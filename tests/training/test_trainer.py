"""The promises of the loop: resuming, splitting and watching change nothing."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_assembly import MODEL, assembled, first_gradients, training_settings

from fledge.core import artifact
from fledge.core.errors import CheckpointError, DataError, Stopped
from fledge.core.metrics import read_metrics
from fledge.corpus.document import Content
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.cadence import is_due
from fledge.training.checkpoint_folders import CHECKPOINTS, list_checkpoints
from fledge.training.loss_scale import LossScale
from fledge.training.settings import (
    AdamWSettings,
    MuonSettings,
    NextTokenSettings,
    PhaseSettings,
    PreferenceSettings,
    ScheduleSettings,
    TrainingSettings,
)
from fledge.training.trainer import StepReport, Trainer

OPTIMIZERS = {"adamw": AdamWSettings(), "muon": MuonSettings()}


def settings_for(content: Content, **changes: Any) -> TrainingSettings:
    objective = PreferenceSettings() if content == "preferences" else NextTokenSettings()
    return training_settings(**{"objective": objective, "sequence_length": 16 if content == "documents" else None, **changes})


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and optimizer state, copied."""
    return {name: value.detach().clone() for name, value in {**dict(trainer.model.named_parameters()), **trainer.optimizer.state()}.items()}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def train(folder: Path, settings: TrainingSettings, token_set: TokenSet, scores: Path | None = None, **options: Any) -> Trainer:
    with assembled(folder, settings, [token_set], scores, **options) as trainer:
        trainer.run()
    return trainer


class StopAfter:
    """Asks to stop once a number of steps is done."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.requested: int | None = None

    def due(self, step: int) -> bool:
        return step == self.step

    def observe(self, report: StepReport) -> dict[str, float]:
        self.requested = 15
        return {}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("content", ["documents", "conversations", "preferences"])
def test_eight_steps_are_four_and_four(
    tmp_path: Path, token_set_of: Callable[[Content], TokenSet], scores: Path, content: Content, optimizer: str
) -> None:
    reference = scores if content == "preferences" else None
    settings = settings_for(content, optimizer=OPTIMIZERS[optimizer], validate_every_steps=3)
    whole = train(tmp_path / "whole", settings, token_set_of(content), reference)

    with assembled(tmp_path / "halves", settings, [token_set_of(content)], reference) as first:
        stop = StopAfter(3)
        first.stop, first.observers = stop, [*first.observers, stop]
        with pytest.raises(Stopped, match=r"SIGTERM after step 4 of 8; everything is saved") as stopped:
            first.run()
    assert stopped.value.exit_code == 143
    with assembled(tmp_path / "halves", settings, [token_set_of(content)], reference) as second:
        assert second.progress.step == 4
        second.run()

    assert_same_bits(everything(whole), everything(second))
    assert whole.progress == second.progress
    assert len(whole.progress.recent_losses) == 8
    shown = [[(line["step"], line.get("train/loss")) for line in read_metrics(tmp_path / name)] for name in ("whole", "halves")]
    assert shown[0] == shown[1]


def test_eight_steps_with_dropout_are_four_and_four(tmp_path: Path, documents: TokenSet) -> None:
    """Every step draws from a seed of its own, whatever was drawn before it."""
    settings = settings_for("documents", save_every_steps=4)

    def dropping() -> Llama:
        return Llama(replace(MODEL, settings=replace(MODEL.settings, attention_dropout=0.2)), 0)

    whole = train(tmp_path / "whole", settings, documents, model=dropping())
    with assembled(tmp_path / "halves", settings, [documents], model=dropping()) as first:
        stop = StopAfter(3)
        first.stop, first.observers = stop, [*first.observers, stop]
        with pytest.raises(Stopped):
            first.run()
    second = train(tmp_path / "halves", settings, documents, model=dropping())
    assert_same_bits(everything(whole), everything(second))
    assert whole.progress == second.progress
    without = train(tmp_path / "without", settings, documents)
    assert without.progress.recent_losses[0] != whole.progress.recent_losses[0]


def phase(until_tokens: int, **changes: Any) -> PhaseSettings:
    return PhaseSettings(until_tokens=until_tokens, **changes)


def test_a_run_that_is_stopped_in_its_second_phase_is_bitwise_an_undisturbed_one(tmp_path: Path, documents: TokenSet) -> None:
    """Rows, batch and mixture change after step 3, again after step 6; the stop comes in between, with micro-batches."""
    phases = (
        phase(384),
        phase(1_100, sequence_length=48, batch_tokens=240, mixture={"manual": 0.2, "letters": 0.8}),
        phase(1_500, sequence_length=8),
    )
    settings = settings_for("documents", phases=phases, micro_batch_rows=2, validate_every_steps=2, optimizer=MuonSettings())
    whole = train(tmp_path / "whole", settings, documents)
    assert [whole.plan.phase(step).row_tokens for step in range(whole.plan.steps)] == [16] * 3 + [48] * 3 + [8] * 4
    with assembled(tmp_path / "stopped", settings, [documents]) as first:
        stop = StopAfter(3)
        first.stop, first.observers = stop, [*first.observers, stop]
        with pytest.raises(Stopped, match=r"after step 4 of 10; everything is saved"):
            first.run()
    again = train(tmp_path / "stopped", settings, documents)
    assert_same_bits(everything(whole), everything(again))
    assert whole.progress == again.progress
    names = ("step", "train/tokens", "train/loss", "train/learning_rate", "train/epoch", "validation/loss")
    shown = [[{name: line.get(name) for name in names} for line in read_metrics(tmp_path / run)] for run in ("whole", "stopped")]
    assert shown[0] == shown[1]
    assert [line["train/tokens"] for line in shown[0] if line["train/tokens"]][2:7] == [384, 624, 864, 1_104, 1_232]


def test_phases_of_equal_settings_change_no_bit(tmp_path: Path, documents: TokenSet) -> None:
    only = {"manual": 1.0, "letters": 0.0}
    one = train(tmp_path / "one", settings_for("documents", mixture=only), documents)
    two = train(tmp_path / "two", settings_for("documents", phases=(phase(500, mixture=only), phase(1_024)), mixture=only), documents)
    assert two.plan.steps == 8 and len(two.plan.phases) == 2
    assert_same_bits(everything(one), everything(two))


def test_other_phases_are_another_order(tmp_path: Path, documents: TokenSet) -> None:
    train(tmp_path / "run", settings_for("documents", phases=(phase(512), phase(1_024, sequence_length=32))), documents)
    with (
        pytest.raises(CheckpointError, match=r"phases\.0\.steps: 4 -> 5; phases\.1\.steps: 4 -> 3"),
        assembled(tmp_path / "run", settings_for("documents", phases=(phase(600), phase(1_024, sequence_length=32))), [documents]),
    ):
        pass


def test_the_curriculum_from_8_to_2048_trains(tmp_path: Path, documents: TokenSet) -> None:
    lengths = (8, 16, 32, 64, 128, 256, 512, 768, 1_536, 2_048)
    phases = tuple(phase(4_096 * number, sequence_length=length) for number, length in enumerate(lengths, 1))
    settings = settings_for("documents", phases=phases, batch_rows=1, sequence_length=2_048, learning_rate=1e-2)
    model = Llama(replace(MODEL, settings=replace(MODEL.settings, max_position_embeddings=2_048)), 0)
    trained = train(tmp_path / "run", settings, documents, model=model)
    assert {(one.batch_rows, one.row_tokens) for one in trained.plan.phases} == {(2_048 // length, length) for length in lengths}
    assert trained.progress.recent_losses[-1] < trained.progress.initial_loss - 1.5  # type: ignore[operator]


def test_a_new_run_can_take_over_optimizer_and_step(tmp_path: Path, documents: TokenSet) -> None:
    """With both, on the same rows: five steps, then the plan's other three, are eight."""
    only = {"manual": 1.0, "letters": 0.0}
    eight = training_settings(mixture=only, schedule=ScheduleSettings(kind="constant"))
    whole = train(tmp_path / "whole", eight, documents)
    five = train(tmp_path / "five", replace(eight, steps=5), documents)
    (parent,) = (one.artifact for one in list_checkpoints(tmp_path / "five"))
    kept = replace(eight, keep=("optimizer", "step"))
    with assembled(tmp_path / "kept", kept, [documents], model=load_model(parent.path), parent=parent) as trainer:
        assert (trainer.progress.step, trainer.plan.steps, trainer.plan.tokens(5)) == (5, 8, 640)
        assert_same_bits(everything(five), everything(trainer))
        rows = trainer.plan.rows
        # A plan begins with its first rows; those of the whole run's sixth step make the comparison.
        trainer.batches.plan.__dict__["rows"] = lambda step: whole.plan.rows(step)
        trainer.run()
    assert rows(5) == whole.plan.rows(0)
    assert_same_bits(everything(whole), everything(trainer))
    assert trainer.progress.initial_loss == trainer.progress.recent_losses[0] == whole.progress.recent_losses[5]
    assert list_checkpoints(tmp_path / "kept")[-1].artifact.stats["tokens"] == 8 * 128
    with assembled(tmp_path / "kept", kept, [documents], parent=parent) as again:
        assert_same_bits(everything(again), everything(trainer))


def test_what_is_kept_is_the_recipe_s_choice(tmp_path: Path, documents: TokenSet) -> None:
    train(tmp_path / "run", training_settings(), documents)
    (parent,) = (one.artifact for one in list_checkpoints(tmp_path / "run"))
    for keep, step, has_state in (((), 0, False), (("step",), 8, False), (("optimizer",), 0, True)):
        settings = training_settings(steps=9, keep=keep)
        with assembled(tmp_path / f"{keep}", settings, [documents], model=load_model(parent.path), parent=parent) as trainer:
            assert (trainer.progress.step, bool(trainer.optimizer.state())) == (step, has_state)
            trainer.run()
        assert trainer.progress.step == 9
    other = training_settings(keep=("optimizer",), optimizer=MuonSettings())
    with (
        pytest.raises(CheckpointError, match=r"it is AdamW's, this run's optimizer is Muon: .* is missing"),
        assembled(tmp_path / "other", other, [documents], parent=parent),
    ):
        pass
    foreign = artifact.foreign(parent.path, "huggingface")
    with (
        pytest.raises(CheckpointError, match="has weights and no state of a run"),
        assembled(tmp_path / "foreign", training_settings(keep=("step",)), [documents], parent=foreign),
    ):
        pass


def test_training_learns(tmp_path: Path, documents: TokenSet) -> None:
    trained = train(tmp_path / "run", training_settings(steps=60, learning_rate=1e-2, log_every_steps=20), documents)
    losses = trained.progress.recent_losses
    assert trained.progress.initial_loss == losses[0]
    assert losses[0] == pytest.approx(math.log(MODEL.vocabulary_size), abs=0.1)
    assert losses[-1] < 2.5


@pytest.mark.parametrize("micro_batch_rows", [1, 3])
@pytest.mark.parametrize("content", ["documents", "conversations", "preferences"])
def test_the_split_into_micro_batches_changes_rounding_only(
    tmp_path: Path, token_set_of: Callable[[Content], TokenSet], scores: Path, content: Content, micro_batch_rows: int
) -> None:
    results = []
    for name, rows in (("whole", None), ("split", micro_batch_rows)):
        settings = settings_for(content, steps=20, micro_batch_rows=rows, learning_rate=1e-3)
        reference = scores if content == "preferences" else None
        with assembled(tmp_path / name, settings, [token_set_of(content)], reference, watched=False) as trainer:
            gradients = torch.tensor(first_gradients(trainer), dtype=torch.float64)
            trainer.run()
        results.append((gradients, torch.tensor(trainer.progress.recent_losses, dtype=torch.float64)))
    (gradients, losses), (split_gradients, split_losses) = results
    assert float((gradients - split_gradients).norm() / gradients.norm()) < 1e-6
    assert float((losses - split_losses).abs().max()) < 2e-6


@pytest.mark.parametrize(
    "looking",
    [{"validate_every_steps": 2}, {"validate_every_tokens": 200, "validation_share": 0.3}, {"validate_every_epochs": 0.1}],
)
def test_observers_change_no_bit(tmp_path: Path, documents: TokenSet, looking: dict[str, Any]) -> None:
    def sample(model: Llama) -> list[tuple[str, str]]:
        torch.manual_seed(7)
        return [("a prompt", str(model(torch.randint(0, 90, (1, 8))).argmax().item()))]

    settings = training_settings(**looking, sample_every_steps=1)
    watched = train(tmp_path / "watched", settings, documents, sample=sample)
    alone = train(tmp_path / "alone", settings, documents, watched=False)
    assert_same_bits(everything(watched), everything(alone))
    assert watched.progress.recent_losses == alone.progress.recent_losses


def test_fp16_leaves_out_a_step_that_overflows_and_goes_on(tmp_path: Path, documents: TokenSet) -> None:
    """On a CPU fp16 is slow and never chosen, but the same arithmetic."""
    with assembled(tmp_path / "run", training_settings(precision="fp32", save_every_steps=2), [documents]) as trainer:
        trainer.machine = replace(trainer.machine, precision="fp16")
        trainer.progress = replace(trainer.progress, loss_scale=LossScale(4.0))
        trainer.step()
        before = everything(trainer)
        handle = trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
        trainer.step()
        assert trainer.progress.step == 2
        assert trainer.progress.loss_scale == LossScale(2.0)
        assert_same_bits(before, everything(trainer))
        trainer.step()
        assert trainer.progress.loss_scale == LossScale(1.0)
        trainer.step()
        assert_same_bits(before, everything(trainer))
        assert trainer.progress.health.skipped_steps == 1, "at the smallest scale it is no matter of the scale any more"
        handle.remove()
        trainer.run()
        scale = trainer.progress.loss_scale
    assert scale is not None and scale.scale == 1.0
    with assembled(tmp_path / "run", training_settings(precision="fp32", save_every_steps=2), [documents]) as again:
        assert again.progress.loss_scale == scale


def test_a_scaled_loss_gives_the_same_gradients(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(precision="fp32", steps=2)
    plain, scaled = (assembled(tmp_path / name, settings, [documents]) for name in ("plain", "scaled"))
    with plain as one, scaled as other:
        other.progress = replace(other.progress, loss_scale=LossScale(1024.0))
        one.step(), other.step()
        assert_same_bits(everything(one), everything(other))


def test_a_batch_without_targets_is_a_step_without_gradient(tmp_path: Path, conversations: TokenSet) -> None:
    with assembled(tmp_path / "run", settings_for("conversations"), [conversations], watched=False) as trainer:
        trainer.batches.micro_batches = lambda step: [trainer.batches.reader.batch([], 8)]  # type: ignore[method-assign]
        report = trainer.step()
    assert float(report.measures["loss"]) == 0.0
    assert float(report.gradient_norm) == 0.0


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, documents: TokenSet) -> None:
    first = train(tmp_path / "run", training_settings(), documents)
    before = sorted(path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir())
    again = train(tmp_path / "run", training_settings(), documents)
    assert_same_bits(everything(first), everything(again))
    assert before == sorted(path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()) == ["step-000008"]


def test_saves_fall_on_the_cadence_and_on_the_end(tmp_path: Path, documents: TokenSet) -> None:
    train(tmp_path / "run", training_settings(steps=7, save_every_steps=3, keep_checkpoints=9), documents)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")] == [3, 6, 7]


def test_another_data_order_is_refused_by_name(tmp_path: Path, documents: TokenSet) -> None:
    train(tmp_path / "run", training_settings(), documents)
    with (
        pytest.raises(CheckpointError, match=r"another order \(seed: 0 -> 1; phases\.0\.batch_rows: 8 -> 4\)"),
        assembled(tmp_path / "run", training_settings(seed=1, batch_rows=4), [documents]),
    ):
        pass


@pytest.mark.parametrize(("step", "every_steps", "due"), [(4, 2, True), (5, 2, False), (10, 3, True), (9, None, False), (10, None, True)])
def test_cadence(step: int, every_steps: int | None, due: bool) -> None:
    assert is_due(step, every_steps, 10) is due


def test_a_damaged_shard_ends_the_run_before_its_step_is_applied(tmp_path: Path, documents: TokenSet) -> None:
    """The last checkpoint is of the steps before, and once the file is whole again the run goes on to the same weights."""
    settings = settings_for("documents", save_every_steps=2)
    undisturbed = train(tmp_path / "undisturbed", settings, documents)
    folder = tmp_path / "tokens"
    shutil.copytree(documents.folder, folder)
    shards = {path: path.read_bytes() for path in folder.glob("train-*.tokens")}

    class CutShort(StopAfter):
        def observe(self, report: StepReport) -> dict[str, float]:
            for path in shards:
                os.truncate(path, 66)
            return {}

    with assembled(tmp_path / "cut", settings, [open_token_set(folder)]) as trainer:
        trainer.observers = [*trainer.observers, CutShort(4)]
        with pytest.raises(DataError, match=r"step 5 cannot be read and was not applied: .* was cut short while it was used"):
            trainer.run()
        assert trainer.progress.step == list_checkpoints(tmp_path / "cut")[-1].step == 4
    for path, content in shards.items():
        path.write_bytes(content)
    assert_same_bits(everything(train(tmp_path / "cut", settings, open_token_set(folder))), everything(undisturbed))
