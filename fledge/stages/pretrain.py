"""Stage 4: learning from documents."""

from __future__ import annotations

from fledge.stages.run import Run
from fledge.stages.training import train


def run(run: Run) -> None:
    train(run, "pretrain")
