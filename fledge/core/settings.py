"""Settings of the sinks that metrics go to. None of them changes a result."""

from __future__ import annotations

from typing import Literal

from fledge.core.config import operation, settings


@settings
class MetricsSettings:
    """Where the figures of a training run go besides `metrics.jsonl`, which is always written."""

    tensorboard: bool = operation(True)
    """Write a TensorBoard event file into the stage's folder `tensorboard`."""

    wandb: Literal["off", "offline", "online"] = operation("off")
    """Weights & Biases: `off`, `offline` (files in the stage's folder, for `wandb sync`) or `online` (needs WANDB_API_KEY)."""

    wandb_project: str = operation("fledge")
    """The name of the Weights & Biases project."""
