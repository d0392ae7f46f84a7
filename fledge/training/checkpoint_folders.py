"""Where the checkpoints of a stage lie, and which of them are there: what can be known without reading a weight, so without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError

CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk."""

    step: int
    path: Path
    artifact: Artifact

    @property
    def validation_loss(self) -> float | None:
        """Measured with exactly these weights; None if it was not."""
        loss: float | None = self.artifact.stats.get("validation_loss")
        return loss


def checkpoint_folder(stage_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return stage_folder / CHECKPOINTS / f"step-{step:06d}"


def step_folders(stage_folder: Path) -> list[tuple[int, Path]]:
    """Every folder that is named as a checkpoint, by step."""
    found = ((_NAME.fullmatch(path.name), path) for path in (stage_folder / CHECKPOINTS).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def list_checkpoints(stage_folder: Path) -> list[Checkpoint]:
    """The finished checkpoints of a stage by step; ones whose sizes are wrong are left out."""
    found = []
    for step, path in step_folders(stage_folder):
        try:
            found.append(Checkpoint(step, path, artifact.open_artifact(path, "checkpoint")))
        except ArtifactError:
            continue
    return found


def best_checkpoint(stage_folder: Path) -> Checkpoint | None:
    """The one with the smallest validation loss, the earliest of equals; None if none was validated."""
    validated = [
        (found.validation_loss, found.step, found) for found in list_checkpoints(stage_folder) if found.validation_loss is not None
    ]
    return min(validated)[2] if validated else None
