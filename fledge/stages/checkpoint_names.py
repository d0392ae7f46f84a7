"""How people name a checkpoint: a path, or RUN@WHICH.

    runs/demo/sft/checkpoints/step-000100    a checkpoint, used as it is
    runs/demo/sft@best                       of that stage: final | latest | best | a step
    demo, demo@500, runs/demo@final          of the last stage of the run that has checkpoints: dpo, else sft, else pretrain

A name that is no folder is looked for under runs/. Without @ the final checkpoint is meant if the stage is finished, the latest otherwise.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import CheckpointError
from fledge.model.adapter_config import is_adapter
from fledge.stages import TRAINING_STAGES
from fledge.stages.run import RUNS
from fledge.training.checkpoint_folders import best_checkpoint, list_checkpoints


def find_checkpoint(reference: str) -> Path:
    """The checkpoint folder a reference names. Raises CheckpointError saying what is there instead."""
    if is_checkpoint(Path(reference)):
        return Path(reference)
    place, at, which = (reference, "", "") if Path(reference).is_dir() else reference.rpartition("@")
    place = place if at else reference
    which = which if at else ""
    folder = Path(place) if Path(place).is_dir() else RUNS / place
    if Path(place).is_file():
        raise CheckpointError(
            f"{place} is a file, not the folder of a checkpoint",
            f"give the folder that holds config.json and model.safetensors; convert a .pt or .bin file: fledge import {place} FOLDER",
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no run or checkpoint {place}{_suggestion(place)}", "give a folder, or the name of a run under runs/"
        )
    if which == "" and is_checkpoint(folder):
        return folder
    return _choose(_stage_with_checkpoints(folder), which)


def open_checkpoint(reference: str) -> Artifact:
    """The checkpoint a reference names, as an input of a stage. A folder that others wrote is identified by hashing it."""
    folder = find_checkpoint(reference)
    if (folder / artifact.MANIFEST).is_file():
        return artifact.open_artifact(folder, "checkpoint")
    return artifact.foreign(folder, "huggingface")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter for one."""
    return (folder / "config.json").is_file() or is_adapter(folder)


def _stage_with_checkpoints(folder: Path) -> Path:
    if (folder / "checkpoints").is_dir():
        return folder
    for stage in reversed(TRAINING_STAGES):
        if (folder / stage / "checkpoints").is_dir() and list_checkpoints(folder / stage):
            return folder / stage
    raise CheckpointError(f"{folder} holds no checkpoint", "train one first: fledge run RECIPE")


def _choose(stage: Path, which: str) -> Path:
    found = {checkpoint.step: checkpoint.path for checkpoint in list_checkpoints(stage)}
    finished = (stage / artifact.MANIFEST).is_file()
    if not found:
        raise CheckpointError(f"{stage} holds no finished checkpoint", "let the training save one first")
    if which == "latest" or (which == "" and not finished):
        return found[max(found)]
    if which == "final" or which == "":
        if not finished:
            raise CheckpointError(f"{stage} is not finished, its latest step is {max(found)}", f"finish it, or name {stage}@latest")
        return found[max(found)]
    if which == "best":
        best = best_checkpoint(stage)
        if best is None:
            raise CheckpointError(f"{stage} has no validated checkpoint", f"name {stage}@latest")
        return best.path
    if which.isdecimal() and int(which) in found:
        return found[int(which)]
    steps = ", ".join(str(step) for step in sorted(found))
    raise CheckpointError(f"{stage} has no checkpoint {which!r}", f"name one of latest, best, final, {steps}")


def _suggestion(place: str) -> str:
    names = [entry.name for entry in RUNS.iterdir() if entry.is_dir()] if RUNS.is_dir() else []
    close = difflib.get_close_matches(place, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
