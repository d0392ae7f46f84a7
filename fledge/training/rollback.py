"""A run that went wrong goes back: trainer -> RollBack -> [the checkpoint before the trouble] -> a trainer that leaves the steps out.

Going back is continuing: what comes after the good checkpoint is removed, and the run is put together as after a kill, with all that
follows from it (its metrics are cut off there, its validations forgotten). Nothing else is written. A run that is killed in the middle
of this comes to the same trouble again, and by the same numbers to the same way back, until a checkpoint carries what is left out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fledge.training.guard import LeftOut, RollBack
from fledge.training.parallel import World
from fledge.training.sound_checkpoints import remove_after
from fledge.training.trainer import Trainer

Assemble = Callable[[LeftOut], AbstractContextManager[Trainer]]
"""Puts a run together from its newest checkpoint, to leave out these steps besides what that one knows."""


def run_with_rollbacks(assemble: Assemble, stage_folder: Path, world: World) -> Trainer:
    """Run to the end; the trainer as it then is. Raises what `Trainer.run` raises, but for RollBack."""
    left_out: LeftOut = ()
    while True:
        outcome = _attempt(assemble, left_out)
        if isinstance(outcome, Trainer):
            return outcome
        first_step, left_out = outcome
        gc.collect()  # the model of before makes room for the one to come
        if world.main:
            remove_after(stage_folder, first_step)
        world.barrier()


def _attempt(assemble: Assemble, left_out: LeftOut) -> Trainer | tuple[int, LeftOut]:
    """The finished trainer; or the steps before the trouble and all that is to be left out, with nothing else kept of the attempt."""
    try:
        with assemble(left_out) as trainer:
            trainer.run()
        return trainer
    except RollBack as trouble:
        return trouble.first_step, trouble.left_out
