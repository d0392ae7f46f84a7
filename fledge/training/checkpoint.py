"""Never lose a step: the whole state of a run as a folder that is complete or absent, and the way back from it.

    runs/NAME/STAGE/checkpoints/step-000500/     an artifact, and a Hugging Face folder as it lies
        config.json, model.safetensors, ...      the model (`model.folder`), fp32
        resume/optimizer.safetensors             the optimizer's tensors by parameter name
        resume/state.json                        step, data order, recorded losses; no random state: every step is seeded anew
        manifest.json                            last: the SHA-256 of every file; figures of the step
    runs/NAME/STAGE/quarantine/                  checkpoints that were found damaged, kept for a look

Whatever the processes share, a checkpoint holds whole tensors: it is continued by one process, by more or fewer, and by another
layout. The newest checkpoint whose every byte is as the manifest says is the one to continue from. If there are only damaged ones, that
is an error: starting over silently would bury them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact, Request
from fledge.core.config import differences
from fledge.core.errors import ArtifactError, CheckpointError, MachineError, NumericsError
from fledge.model.folder import WEIGHTS, save_model
from fledge.model.llama import Llama
from fledge.model.tensors import read_tensors, write_tensors
from fledge.training.checkpoint_folders import (
    CHECKPOINTS,
    Checkpoint,
    best_checkpoint,
    checkpoint_folder,
    list_checkpoints,
    step_folders,
)
from fledge.training.guard import Health, LeftOut, read_health
from fledge.training.layout import parameters_by_name, part_of
from fledge.training.loss_scale import LossScale
from fledge.training.optimizer import Optimizer
from fledge.training.parallel import World
from fledge.training.plan import Plan, Start

QUARANTINE = "quarantine"
OPTIMIZER = "resume/optimizer.safetensors"
STATE = "resume/state.json"

RECENT_LOSSES = 256
"""Losses of the last steps that a checkpoint carries."""

_BYTES_PER_PARAMETER = 12
"""A weight and two moments, fp32."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what it measured."""

    step: int = 0
    """Optimizer steps done."""
    initial_loss: float | None = None
    """Of the first step, before any update; None before it."""
    recent_losses: tuple[float, ...] = ()
    """Of the last steps, oldest first; those that were not finite are left out."""
    validation_losses: tuple[tuple[int, float], ...] = ()
    """(step, loss) of every validation."""
    loss_scale: LossScale | None = None
    """In fp16: what the loss is multiplied by."""
    health: Health = field(default_factory=Health)
    """What the steps were like, see `guard`."""
    left_out: LeftOut = ()
    """Steps that are passed over, because they went wrong before the run came back to a checkpoint."""

    @property
    def validation_loss(self) -> float | None:
        """Measured at this very step, if it was."""
        return dict(self.validation_losses).get(self.step)


@dataclass(frozen=True)
class CheckpointWriter:
    """Saves the checkpoints of a stage and removes those that are no longer kept."""

    stage_folder: Path
    request: Request
    """What the stage was asked for; a checkpoint is that and a step."""
    keep: int
    """Newest ones to keep, besides the best."""
    copy_tokenizer: Callable[[Path], object] | None = None
    """Fills a checkpoint folder with the tokenizer's files."""

    def save(self, model: Llama, optimizer: Optimizer, plan: Plan, progress: Progress, world: World) -> Checkpoint | None:
        """Write the state of a run, in the main process; None in the others, which hand their parts over.

        Raises NumericsError if any of it is not finite, MachineError if the disk is full.
        """
        weights, state = world.gather(parameters_by_name(model)), world.gather(optimizer.state())
        if not world.main:
            return None
        _require_finite({**weights, **state}, progress.step)
        asked = {"stage": self.request.kind, "step": progress.step, "settings": self.request.settings}
        wanted = Request("checkpoint", asked, self.request.inputs)
        path = checkpoint_folder(self.stage_folder, progress.step)
        with artifact.build(path, wanted) as (partial, stats):
            save_model(model, partial, weights=weights)
            if self.copy_tokenizer is not None:
                self.copy_tokenizer(partial)
            write_tensors(partial / OPTIMIZER, state)
            disk.write_json(partial / STATE, {**asdict(progress), "plan": plan.identity()})
            stats.update(_stats(plan, progress))
        retain(self.stage_folder, self.keep)
        return Checkpoint(progress.step, path, artifact.open_artifact(path, "checkpoint"))


def newest_sound(stage_folder: Path) -> Checkpoint | None:
    """The checkpoint to continue from, every byte of it checked; None if none was ever finished.

    Leftovers of interrupted saves and removals are swept away; damaged checkpoints go to `quarantine/` with a warning. Raises
    CheckpointError if nothing but damaged ones is left.
    """
    _sweep(stage_folder)
    for step, path in reversed(step_folders(stage_folder)):
        problem = _problem(path)
        if problem is None:
            return Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))
        target = _free_place(stage_folder / QUARANTINE / path.name)
        disk.make_folder(target.parent)
        disk.move(path, target)
        console.warn(f"the checkpoint of step {step} is damaged and now lies in {target}: {problem}")
    damaged = sorted(path.name for path in (stage_folder / QUARANTINE).glob("step-*"))
    if damaged:
        raise CheckpointError(
            f"{stage_folder} has no sound checkpoint, only damaged ones in {QUARANTINE}/ ({', '.join(damaged)})",
            "bring one back from a copy, or start this stage over with --force",
        )
    return None


def resume(stage_folder: Path, model: Llama, optimizer: Optimizer, plan: Plan, world: World) -> Progress:
    """Continue from the newest sound checkpoint, the same for every process; without one the plan begins. Raises CheckpointError."""
    found = newest_sound(stage_folder) if world.main else None
    step = world.from_main(found.step if found is not None else 0)
    if step == 0:
        return Progress(step=plan.start.step)
    if found is None:
        path = checkpoint_folder(stage_folder, step)
        found = Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))
    return restore(found, model, optimizer, plan)


def restore(checkpoint: Checkpoint, model: Llama, optimizer: Optimizer, plan: Plan) -> Progress:
    """Bring a model and its optimizer to the state of a checkpoint. Raises CheckpointError if it belongs to another run."""
    state = _read_state(checkpoint.path / STATE)
    changed = [f"{name}: {old} -> {new}" for name, old, new in differences(state.pop("plan"), plan.identity())]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} was trained on rows in another order ({'; '.join(changed[:5])})",
            "undo the change to continue, or start a new run from these weights with start_from",
        )
    _load_weights(checkpoint.path / WEIGHTS, model)
    optimizer.load_state(read_tensors(checkpoint.path / OPTIMIZER))
    validation_losses = tuple((int(step), float(loss)) for step, loss in state.pop("validation_losses"))
    scale = state.pop("loss_scale", None)
    loss_scale = None if scale is None else LossScale(**scale)
    health = read_health(state.pop("health", None))
    left_out = tuple((int(first), int(end)) for first, end in state.pop("left_out", ()))
    recent_losses = tuple(state.pop("recent_losses"))
    return Progress(
        **state,
        recent_losses=recent_losses,
        validation_losses=validation_losses,
        loss_scale=loss_scale,
        health=health,
        left_out=left_out,
    )


def read_order(checkpoint: Path) -> tuple[dict[str, Any], LeftOut]:
    """The identity of a checkpoint's plan, and the steps that its run passes over. Raises CheckpointError if it cannot be read."""
    state = _read_state(checkpoint / STATE)
    return state["plan"], tuple((int(first), int(end)) for first, end in state.get("left_out", ()))


def kept_start(parent: Artifact) -> Start:
    """The step and tokens of the checkpoint that a new run starts from. Raises CheckpointError if it is none of a run of ours."""
    _require_own(parent)
    return Start(parent.stats["step"], parent.stats["tokens"])


def load_kept_optimizer(parent: Artifact, optimizer: Optimizer) -> None:
    """Begin a new run with the optimizer's state of the checkpoint it starts from. Raises CheckpointError if it does not fit."""
    _require_own(parent)
    optimizer.load_state(read_tensors(parent.path / OPTIMIZER))


def retain(stage_folder: Path, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest and the best."""
    found, best = list_checkpoints(stage_folder), best_checkpoint(stage_folder)
    for checkpoint in found[:-keep]:
        if best is None or checkpoint.step != best.step:
            disk.remove(checkpoint.path)


def remove_after(stage_folder: Path, step: int) -> None:
    """Remove the checkpoints of more than so many steps, newest first: broken off anywhere, what is left is a run to continue."""
    for found, path in reversed(step_folders(stage_folder)):
        if found > step:
            disk.remove(path)


def require_disk_space(stage_folder: Path, model: Llama) -> None:
    """Raises MachineError unless one checkpoint can be written beside another one."""
    needed_bytes = 2 * _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    free_bytes = shutil.disk_usage(stage_folder).free
    if free_bytes < needed_bytes:
        raise MachineError(
            f"{stage_folder} has {console.format_bytes(free_bytes)} free, two checkpoints need {console.format_bytes(needed_bytes)}",
            "free disk space, or choose another place with --name",
        )


def _require_own(parent: Artifact) -> None:
    if parent.manifest.kind != "checkpoint":
        raise CheckpointError(
            f"{parent.path} has weights and no state of a run", "leave out keep, or name a checkpoint that Fledge has trained"
        )


def _stats(plan: Plan, progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "tokens": plan.tokens(progress.step),
        "loss": progress.recent_losses[-1] if progress.recent_losses else None,
        "validation_loss": progress.validation_loss,
    }


def _require_finite(tensors: dict[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericsError(
                f"no checkpoint is written at step {step}: {name} holds values that are not finite",
                "continue from the checkpoint before with a lower learning_rate",
            )


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, after reading all of it."""
    try:
        problems = artifact.verify(artifact.open_artifact(path, "checkpoint"))
    except ArtifactError as error:
        return error.problem
    return problems[0] if problems else None


def _sweep(stage_folder: Path) -> None:
    """A killed save leaves NAME.partial; a killed removal leaves a folder without its manifest, which goes first."""
    for path in _partial_folders(stage_folder / CHECKPOINTS):
        disk.remove(path)
    for _, path in step_folders(stage_folder):
        if not (path / artifact.MANIFEST).is_file():
            disk.remove(path)


def _partial_folders(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob(f"step-*{disk.PARTIAL_SUFFIX}"))


def _free_place(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "name a checkpoint of a training stage of Fledge") from error
    return state


def _load_weights(path: Path, model: Llama) -> None:
    stored, expected = read_tensors(path), dict(model.named_parameters())
    odd = [
        f"{name}: {_shape(stored.get(name))} -> {_shape(expected.get(name))}"
        for name in sorted(stored.keys() | expected.keys())
        if _shape(stored.get(name)) != _shape(expected.get(name))
    ]
    if odd:
        more = f"; and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise CheckpointError(
            f"{path} holds a model of another shape ({'; '.join(odd[:5])}{more})",
            "undo the change of the model's shape, or start anew with --force",
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(part_of(stored[name], parameter))


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))
