"""`--resume`: which checkpoint a training stage continues from when it is not the newest.

What is named becomes the newest of its stage, later ones move to `set_aside/`; from there on everything is as after a kill. Only a
checkpoint of the same stage of the same run can be meant: a change that would break exactness is refused as always, and training
other rows or shapes from these weights is another run, `start_from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fledge.core import artifact, process
from fledge.core.errors import CheckpointError, ConfigError
from fledge.stages import TRAINING_STAGES, Stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run
from fledge.stages.task import Task, open_task
from fledge.training.checkpoint_folders import CHECKPOINTS
from fledge.training.sound_checkpoints import checkpoint_at, rewind


def resuming(run: Run, stages: Sequence[Stage], reference: str) -> tuple[Stage, Run]:
    """The one of these stages that a checkpoint belongs to, and the run as that stage starts.

    Raises CheckpointError saying what is there instead.
    """
    path = Path(reference)
    found = find_checkpoint(reference) if "@" in reference and not path.exists() else checkpoint_at(path)
    owners = [one for one in TRAINING_STAGES if found.resolve().parent == (run.folder / one / CHECKPOINTS).resolve()]
    if not owners:
        remedy = "give the --name of its run; to start another run from its weights, set start_from"
        raise CheckpointError(f"{found} belongs to no stage of {run.folder}", remedy)
    if owners[0] not in stages:
        remedy = f"continue it with: fledge {owners[0]} {run.command} --resume {reference}"
        raise CheckpointError(f"{found} is a checkpoint of {owners[0]}, not of {', '.join(stages)}", remedy)
    return owners[0], replace(run, resume=found)


def rewound(run: Run, stage: Stage, processes: int) -> Run:
    """The run after its chosen checkpoint has become the newest of the stage, for so many processes to continue.

    Raises ArtifactError; then nothing is moved.
    """
    rewind_task(open_task(run, stage), processes)
    return replace(run, resume=None)


def rewind_task(task: Task, processes: int) -> None:
    """Make the chosen checkpoint the newest, in the main process; every process may call this.

    Raises ArtifactError, in all of them, if training would then be refused; then nothing is moved.
    """
    run, stage = task.run, task.stage
    if run.resume is None:
        return
    is_finished = run.state(stage, task.wanted) == "finished"
    if is_finished and process.world_size() > 1:
        # Each process looks for itself whether there is something to do, so none may change that for the others.
        raise ConfigError(
            f"{stage} is finished, so one of many processes cannot take it back", f"move {task.folder / artifact.MANIFEST} away first"
        )
    from fledge.training.parallel import require_same_machine  # with torch, which a finished stage does without

    require_same_machine(task.folder, task.settings, processes)
    if process.is_main():
        rewind(task.folder, run.resume)
