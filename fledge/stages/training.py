"""Stages 4, 5 and 7 are one: a token set and a start become checkpoints; what differs lies in the recipe and in `Task`."""

from __future__ import annotations

from fledge.core import console, process
from fledge.stages import Stage
from fledge.stages.resumption import rewind_task
from fledge.stages.run import Run
from fledge.stages.task import open_task


def train(run: Run, stage: Stage) -> None:
    """Run one training stage, on this process or on its share of many, unless it is finished."""
    task = open_task(run, stage)
    rewind_task(task, process.world_size())
    # Each process looks for itself: the first cannot finish a stage without the others, so it is finished for all of them or for none.
    if run.state(stage, task.wanted) == "finished":
        console.info(f"{stage}: already done")
        return
    from fledge.stages.making.training import make_checkpoints

    make_checkpoints(task)
