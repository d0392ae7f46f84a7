"""The guard: what counts as bad, that a bad step changes no bit, and the way back to before it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from training_assembly import MODEL, assembled, training_settings

from fledge.core import disk
from fledge.core.errors import NumericsError
from fledge.core.metrics import read_metrics
from fledge.model.llama import Llama
from fledge.model.tensors import read_tensors
from fledge.tokens.shards import TokenSet
from fledge.training.batches import Batch
from fledge.training.checkpoint_folders import checkpoint_folder, list_checkpoints
from fledge.training.guard import MINIMUM_STEPS, WINDOW_STEPS, Health, LeftOut, RollBack, is_left_out, is_spike, next_step, read_health
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import World
from fledge.training.rollback import run_with_rollbacks
from fledge.training.settings import AdamWSettings, EarlyStoppingSettings, GuardSettings, MuonSettings, ScheduleSettings, TrainingSettings
from fledge.training.sound_checkpoints import QUARANTINE, SET_ASIDE, remove_after
from fledge.training.trainer import Trainer

OPTIMIZERS = {"adamw": AdamWSettings(), "muon": MuonSettings()}
NEVER_SEEN = 127
"""A token of no text: as a target its loss rises while others fall."""

Change = Callable[[Batch], Batch]


def not_finite(batch: Batch) -> Batch:
    return replace(batch, token_weight=batch.token_weight * math.nan)


def unlikely(batch: Batch) -> Batch:
    return replace(batch, targets=torch.full_like(batch.targets, NEVER_SEEN))


def poisoned(trainer: Trainer, steps: range | tuple[int, ...], change: Change = not_finite) -> Trainer:
    """The trainer, with the batches of these steps changed."""
    read = trainer.batches.micro_batches
    trainer.batches.micro_batches = lambda step: [change(batch) if step in steps else batch for batch in read(step)]  # type: ignore[method-assign]
    return trainer


def bits(folder: Path) -> dict[str, torch.Tensor]:
    last = list_checkpoints(folder)[-1].path
    return {**read_tensors(last / "model.safetensors"), **read_tensors(last / "resume/optimizer.safetensors")}


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in {**dict(trainer.model.named_parameters()), **trainer.optimizer.state()}.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steady(steps: int) -> Health:
    health = Health()
    for step in range(steps):
        health = health.after(step, 0, 2.0 + 0.1 * math.sin(step), 1.0, 6.0)
    return health


def test_a_spike_stands_far_above_the_median() -> None:
    window = [2.0 + 0.1 * math.sin(step) for step in range(64)]
    assert not is_spike(2.3, window, 6.0) and is_spike(3.0, window, 6.0)
    assert not is_spike(0.1, window, 6.0), "a loss that falls is no spike"
    assert not is_spike(99.0, window[: MINIMUM_STEPS - 1], 6.0)
    assert not is_spike(1.1, [1.0] * 64, 6.0) and is_spike(1.2, [1.0] * 64, 6.0), "a loss that stands still has a spread too"


def test_no_healthy_step_is_bad_after_a_nan_or_a_spike() -> None:
    health = steady(100)
    for step, loss in enumerate((math.nan, math.inf, 9.0, 9.0), start=100):
        health = health.after(step, 0, loss, 1.0, 6.0)
    assert (health.bad_steps, health.bad_since, health.skipped_steps, health.spikes) == (4, 100, 2, 2)
    for step in range(104, 104 + WINDOW_STEPS):
        health = health.after(step, 0, 2.0 + 0.1 * math.sin(step), 1.0, 6.0)
        assert health.bad_since is None
    assert (health.skipped_steps, health.spikes) == (2, 2)
    assert all(map(math.isfinite, health.losses + health.gradient_norms)) and len(health.losses) == WINDOW_STEPS


def test_a_gradient_that_leaps_up_is_counted_and_not_bad() -> None:
    health = steady(64).after(64, 0, 2.0, 50.0, 6.0)
    assert (health.spikes, health.bad_steps) == (1, 0)


def test_a_phase_has_another_usual_loss() -> None:
    assert steady(64).after(64, 0, 4.0, 1.0, 6.0).bad_steps == 1
    assert steady(64).after(64, 1, 4.0, 1.0, 6.0).bad_steps == 0


def test_health_goes_through_a_checkpoint_unchanged() -> None:
    health = steady(40).after(40, 0, math.nan, 1 / 3, 6.0)
    assert read_health(json.loads(json.dumps(asdict(health)))) == health
    assert read_health(None) == Health()


@pytest.mark.parametrize(
    ("step", "left_out", "following"),
    [(4, ((5, 8),), 4), (5, ((5, 8),), 8), (7, ((5, 8),), 8), (8, ((5, 8),), 8), (5, ((5, 8), (8, 10)), 10), (18, ((17, 20),), 19)],
)
def test_what_is_left_out_is_passed_over_but_for_the_last_step(step: int, left_out: LeftOut, following: int) -> None:
    assert next_step(step, left_out, 20) == following
    assert is_left_out(step, left_out, 20) is (following != step)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_does_not_apply_changes_no_bit_of_the_optimizer(optimizer: str) -> None:
    """The flag is read where the weights are, as a GPU needs it; where it is true, the step is the plain one."""

    def stepped(flags: list[bool | None]) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = Llama(MODEL, 0)
        made = make_optimizer(model, training_settings(optimizer=OPTIMIZERS[optimizer]), has_fast_bf16=False)
        for flag in flags:
            for parameter in model.parameters():
                healthy = torch.cos(torch.arange(parameter.numel())).view_as(parameter)
                parameter.grad = healthy * math.nan if flag is False else healthy
            made.step(0.5, None if flag is None else torch.tensor(flag))
        return [value.detach().clone() for value in (*model.parameters(), *made.state().values())]

    plain = stepped([None, None])
    for flags in ([True, True], [False, True, True], [True, False, False, True], [None, None, False]):
        assert all(map(torch.equal, stepped(flags), plain)), flags


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, documents: TokenSet, place: str, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = training_settings(save_every_steps=2, optimizer=OPTIMIZERS[optimizer])
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        trainer.step(), trainer.step()
        before = state(trainer)
        if place == "loss":
            handle = trainer.model.model.norm.register_forward_hook(lambda module, inputs, output: output * float("inf"))
        else:
            handle = trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        trainer.step()
        handle.remove()
        assert "step 3: the loss is" in (said := capsys.readouterr().err) and "the step was skipped" in said
        assert same(before, state(trainer))
        assert (trainer.progress.step, trainer.progress.health.skipped_steps) == (3, 1)
        trainer.step()
        assert not same(before, state(trainer))
        trainer.run()
    assert trainer.progress.step == 8 and len(trainer.progress.recent_losses) == 8 - (place == "loss")
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["train/skipped_steps"] for line in lines] == [1] * 4


def test_a_first_step_that_is_not_finite_is_skipped_and_saved(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(save_every_steps=1)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        poisoned(trainer, (0,)).step()
        trainer.save()
    with assembled(tmp_path / "run", settings, [documents]) as again:
        assert (again.progress.step, again.progress.initial_loss) == (1, None)
        assert again.run().initial_loss is not None


def test_a_run_in_which_nothing_was_finite_is_an_error(tmp_path: Path, documents: TokenSet) -> None:
    with (
        pytest.raises(NumericsError, match="no step of this run was finite"),
        assembled(tmp_path / "run", training_settings(steps=3, schedule=ScheduleSettings()), [documents]) as trainer,
    ):
        poisoned(trainer, range(3)).run()


@pytest.mark.parametrize(("bad", "counted"), [(3, [2, 6, 8]), (7, [2, 4, 6, 8])])
def test_what_is_validated_in_a_row_of_bad_steps_is_no_best(tmp_path: Path, documents: TokenSet, bad: int, counted: list[int]) -> None:
    """Nothing is saved there, so the best would be gone; the end is saved in any case."""
    stopping = EarlyStoppingSettings(patience=9)
    settings = training_settings(validate_every_steps=2, save_every_steps=2, keep_checkpoints=9, early_stopping=stopping)
    with assembled(tmp_path, settings, [documents]) as trainer:
        progress = poisoned(trainer, (bad,)).run()
    assert [step for step, _ in progress.validation_losses] == counted
    assert [one.step for one in list_checkpoints(tmp_path)] == counted


GUARD = GuardSettings(maximum_bad_steps=3)


def run(
    folder: Path, settings: TrainingSettings, token_set: TokenSet, steps: range | tuple[int, ...], change: Change = not_finite
) -> Trainer:
    """A run whose batches of some steps are changed, whenever it is put together."""

    class Assembled(AbstractContextManager[Trainer]):
        def __init__(self, left_out: LeftOut) -> None:
            self._inner = assembled(folder, settings, [token_set], left_out=left_out)

        def __enter__(self) -> Trainer:
            return poisoned(self._inner.__enter__(), steps, change)

        def __exit__(self, *error: object) -> bool | None:
            return self._inner.__exit__(*error)  # type: ignore[arg-type]

    return run_with_rollbacks(Assembled, folder, World(0, 1, torch.device("cpu")))


def test_repeated_trouble_goes_back_and_leaves_the_window_out(
    tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = training_settings(steps=14, save_every_steps=4, guard=GUARD, keep_checkpoints=9)
    trainer = run(tmp_path / "run", settings, documents, range(6, 9))
    assert "steps 7 to 9 went wrong and are left out" in capsys.readouterr().err
    assert (trainer.progress.step, trainer.progress.left_out) == (14, ((6, 9),))
    assert trainer.progress.health.skipped_steps == 0, "what was skipped on the way that is left out does not count"
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14], "the metrics read as one run"
    assert [one.step for one in list_checkpoints(tmp_path / "run")] == [4, 12, 14]
    # A healthy run that leaves the same steps out from the beginning is the same run.
    with assembled(tmp_path / "healthy", settings, [documents], left_out=((6, 9),)) as healthy:
        healthy.run()
    assert same(bits(tmp_path / "run"), bits(tmp_path / "healthy"))
    assert trainer.progress == healthy.progress


@pytest.mark.parametrize("stop", [5, 7, 8, 10, 13])
def test_a_run_that_is_stopped_before_in_or_after_the_trouble_ends_alike(tmp_path: Path, documents: TokenSet, stop: int) -> None:
    settings = training_settings(steps=14, save_every_steps=4, guard=GUARD, keep_checkpoints=9)
    undisturbed = run(tmp_path / "undisturbed", settings, documents, range(6, 9))
    with assembled(tmp_path / "stopped", settings, [documents]) as trainer:
        poisoned(trainer, range(6, 9))
        while trainer.progress.step < min(stop, 8):
            trainer.step()
        trainer.save()
    if stop > 8:
        with assembled(tmp_path / "stopped", settings, [documents], left_out=((6, 9),)) as trainer:
            while trainer.progress.step < stop:
                trainer.step()
            trainer.save()
    again = run(tmp_path / "stopped", settings, documents, range(6, 9))
    assert again.progress.left_out == ((6, 9),)
    if stop <= 8:
        assert same(bits(tmp_path / "stopped"), bits(tmp_path / "undisturbed"))
        assert again.progress == undisturbed.progress


def test_a_loss_that_stays_up_is_trouble_too(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(steps=60, save_every_steps=10, guard=GUARD, learning_rate=1e-2, log_every_steps=30)
    trainer = run(tmp_path / "run", settings, documents, range(47, 50), unlikely)
    assert trainer.progress.left_out == ((47, 50),)
    assert trainer.progress.recent_losses[-1] < 3.0
    one = run(tmp_path / "one", settings, documents, (47,), unlikely)
    assert (one.progress.left_out, one.progress.health.spikes >= 1) == ((), True), "one spike is told and goes by"


def test_trouble_without_end_names_the_documents(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(steps=40, save_every_steps=4, guard=GUARD)
    with pytest.raises(NumericsError, match=r"steps 13 to 15 went wrong, after going back 2 times; .* (manual|letters) \S+-\d+") as error:
        run(tmp_path / "run", settings, documents, range(6, 40))
    assert error.value.exit_code == 6
    never = replace(settings, guard=replace(GUARD, maximum_rollbacks=0))
    with pytest.raises(NumericsError, match=r"steps 7 to 9 went wrong; the last one was of"):
        run(tmp_path / "never", never, documents, range(6, 40))
    assert list_checkpoints(tmp_path / "never")[-1].step == 4, "in a row of bad steps nothing is saved"


def test_the_way_back_to_the_beginning_leads_past_damaged_checkpoints(
    tmp_path: Path, documents: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint before the trouble is found damaged when the trouble is there: what is left to go back to is the beginning."""
    settings = training_settings(steps=10, save_every_steps=2, guard=GUARD)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        trainer.step(), trainer.step(), trainer.save()
    damaged = checkpoint_folder(tmp_path / "run", 2)
    (tmp_path / "run" / QUARANTINE).mkdir()
    shutil.copytree(damaged, tmp_path / "run" / QUARANTINE / damaged.name)
    remove, removed = disk.remove, list[bool]()

    def noted(path: Path) -> None:
        removed.append(bool(list((tmp_path / "run" / QUARANTINE).glob("step-*"))))
        remove(path)

    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        poisoned(trainer, range(2, 5))
        with pytest.raises(RollBack) as trouble:
            trainer.run()
    assert trouble.value.first_step == 2
    monkeypatch.setattr(disk, "remove", noted)
    remove_after(tmp_path / "run", 2)
    assert not removed, "with a sound checkpoint to go back to, all stays"
    remove_after(tmp_path / "run", 1)
    assert removed and not any(removed), "damaged ones are aside before the last sound one goes: killed in between, the run still continues"
    assert [path.name for path in (tmp_path / "run" / SET_ASIDE).iterdir()] == [damaged.name]
    assert run(tmp_path / "run", settings, documents, ()).progress.step == 10


def test_without_a_checkpoint_the_way_back_is_the_beginning(tmp_path: Path, documents: TokenSet) -> None:
    trainer = run(tmp_path / "run", training_settings(guard=GUARD), documents, range(3))
    assert (trainer.progress.step, trainer.progress.left_out) == (8, ((0, 3),))
    assert trainer.progress.initial_loss == trainer.progress.recent_losses[0]
