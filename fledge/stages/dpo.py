"""Stage 7: learning what is preferred, from pairs and the reference's scores."""

from __future__ import annotations

from fledge.stages.run import Run
from fledge.stages.training import train


def run(run: Run) -> None:
    train(run, "dpo")
