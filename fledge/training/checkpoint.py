"""Never lose a step: the whole state of a run as a folder that is complete or absent, and the way back from it.

    runs/NAME/STAGE/checkpoints/step-000500/     an artifact, and a Hugging Face folder as it lies
        config.json, model.safetensors, ...      the model (`model.folder`), fp32; or an adapter, in peft's form
        resume/optimizer.safetensors             the optimizer's tensors by parameter name
        resume/state.json                        step, data order, recorded losses; no random state: every step is seeded anew
        manifest.json                            last: the SHA-256 of every file; figures of the step

Whatever the processes share, a checkpoint holds whole tensors: it is continued by one process, by more or fewer, and by another
layout. The newest sound one is continued from (`sound_checkpoints`); `saving` says when one is written, and what happens if it cannot be.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact, Request
from fledge.core.config import differences
from fledge.core.errors import CheckpointError, MachineError, NumericsError
from fledge.model.folder import read_weights, save_model, stored_weights
from fledge.model.llama import Llama
from fledge.model.tensors import read_tensors, write_tensors
from fledge.training.checkpoint_folders import Checkpoint, checkpoint_folder
from fledge.training.guard import Health, LeftOut, read_health
from fledge.training.layout import parameters_by_name, part_of
from fledge.training.loss_scale import LossScale
from fledge.training.optimizer import Optimizer
from fledge.training.parallel import World
from fledge.training.plan import Plan, Start
from fledge.training.sound_checkpoints import newest_sound

OPTIMIZER = "resume/optimizer.safetensors"
STATE = "resume/state.json"

STATE_FORMAT = 2
"""Of state.json; raise it when an older Fledge would misread what is written. Every format is read, see tests/training/fixtures."""
RECENT_LOSSES = 256
"""Losses of the last steps that a checkpoint carries."""

CopyTokenizer = Callable[[Path, int], object]
"""Fills a folder with the files of a tokenizer, for a model of so many tokens of context."""

_COMPARED_DIGITS = 12
"""Of an id; a sum of such numbers over processes stays exact."""
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
class Snapshot:
    """The whole state of a run at one moment, in the main process."""

    model: Llama
    """Tells the shape; its weights are those below."""
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    plan: Plan
    progress: Progress

    def copied(self) -> Snapshot:
        """The same in memory of its own, on the CPU: what training does next does not reach it. Takes 12 bytes per parameter."""
        weights, optimizer = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()} for tensors in (self.weights, self.optimizer)
        )
        return replace(self, weights=weights, optimizer=optimizer)

    def require_finite(self) -> None:
        """Raises NumericsError, naming the tensor, if any value is none that training can continue from."""
        for name, tensor in {**self.weights, **self.optimizer}.items():
            if not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    f"no checkpoint is written at step {self.progress.step}: {name} holds values that are not finite",
                    "run the same command again: it continues from the checkpoint before; if this comes back, start anew (--force) with a "
                    "lower learning_rate",
                )


def take_snapshot(model: Llama, optimizer: Optimizer, plan: Plan, progress: Progress, world: World) -> Snapshot:
    """The state of a run, for the main process to write; the others hand their parts over and get an empty one. Copies nothing."""
    return Snapshot(model, world.gather(parameters_by_name(model)), world.gather(optimizer.state()), plan, progress)


def write_checkpoint(
    snapshot: Snapshot,
    stage_folder: Path,
    request: Request,
    copy_tokenizer: CopyTokenizer | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Publish a checkpoint, `request` being what its stage was asked for, `sampling` how its model is to be drawn from.

    Raises MachineError; then nothing has appeared.
    """
    step = snapshot.progress.step
    wanted = Request("checkpoint", {"stage": request.kind, "step": step, "settings": request.settings}, request.inputs)
    path = checkpoint_folder(stage_folder, step)
    written: dict[str, disk.FileDigest] = {}
    with artifact.build(path, wanted, written) as (partial, stats):
        written.update(save_model(snapshot.model, partial, weights=snapshot.weights, sampling=sampling))
        if copy_tokenizer is not None:
            copy_tokenizer(partial, snapshot.model.config.settings.max_position_embeddings)
        written[OPTIMIZER] = write_tensors(partial / OPTIMIZER, snapshot.optimizer)
        # JSON knows no NaN: a validation that came out as none is null.
        validated = [(step, loss if math.isfinite(loss) else None) for step, loss in snapshot.progress.validation_losses]
        state = {"format": STATE_FORMAT, **asdict(snapshot.progress), "validation_losses": validated, "plan": snapshot.plan.identity()}
        written[STATE] = disk.write_json(partial / STATE, state)
        stats.update(_stats(snapshot.plan, snapshot.progress))
    return Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))


def resume(stage_folder: Path, model: Llama, optimizer: Optimizer, plan: Plan, world: World) -> Progress:
    """Continue from the newest sound checkpoint, the same for every process; without one the plan begins. Raises CheckpointError."""
    found = newest_sound(stage_folder) if world.main else None
    step = world.from_main(found.step if found is not None else 0)
    if step == 0:
        return Progress(step=plan.start.step)
    if found is None:
        path = checkpoint_folder(stage_folder, step)
        found = Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))
    _require_the_same(found, world)
    return restore(found, model, optimizer, plan)


def _require_the_same(found: Checkpoint, world: World) -> None:
    """Raises CheckpointError in every process unless all of them read the checkpoint that the main one has found, byte for byte."""
    number = int(found.artifact.id[:_COMPARED_DIGITS], 16)
    if not world.least(int(world.from_main(number) == number)):
        raise CheckpointError(
            f"the processes do not all see the same {found.path}",
            "give all of them one run folder, on a file system that they share",
        )


def restore(checkpoint: Checkpoint, model: Llama, optimizer: Optimizer, plan: Plan) -> Progress:
    """Bring a model and its optimizer to the state of a checkpoint. Raises CheckpointError if it belongs to another run."""
    path = checkpoint.path / STATE
    state = _read_state(path)
    changed = [f"{name}: {old} -> {new}" for name, old, new in differences(state.pop("plan", {}), plan.identity())]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} was trained on rows in another order ({'; '.join(changed[:5])})",
            "undo the change to continue, or start a new run from these weights with start_from",
        )
    progress = _progress(state, path)
    _load_weights(checkpoint.path, model)
    optimizer.load_state(read_tensors(checkpoint.path / OPTIMIZER))
    return progress


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


def require_disk_space(stage_folder: Path, model: Llama) -> None:
    """Raises MachineError unless one checkpoint can be written beside another one."""
    needed_bytes = 2 * _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in stored_weights(model).values())
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
        "validation_loss": loss if (loss := progress.validation_loss) is not None and math.isfinite(loss) else None,
    }


def _read_state(path: Path) -> dict[str, Any]:
    """Of any format up to ours: format 1 did not say its number."""
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        number = int(state.pop("format", 1))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "name a checkpoint of a training stage of Fledge") from error
    if number > STATE_FORMAT:
        raise CheckpointError(
            f"{path} has format {number}, this Fledge reads formats up to {STATE_FORMAT}", "continue with the Fledge that wrote it"
        )
    return state


def _progress(state: dict[str, Any], path: Path) -> Progress:
    try:
        scale = state.get("loss_scale")
        typed = {
            "recent_losses": tuple(state["recent_losses"]),
            "validation_losses": tuple((int(step), math.nan if loss is None else float(loss)) for step, loss in state["validation_losses"]),
            "loss_scale": None if scale is None else LossScale(**scale),
            "health": read_health(state.get("health")),
            "left_out": tuple((int(first), int(end)) for first, end in state.get("left_out", ())),
        }
        return Progress(**{**state, **typed})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no state of a run of ours: {error}", "continue with the Fledge that wrote it") from error


def _load_weights(path: Path, model: Llama) -> None:
    stored, expected = read_weights(path), stored_weights(model)
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
