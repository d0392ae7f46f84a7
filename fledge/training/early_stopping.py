"""When to stop because validation no longer improves: recorded losses -> [early stopping] -> the step to stop at, or none.

A pure function of what a checkpoint carries anyway, so a run that was interrupted stops where an undisturbed one does. The rule is
Prechelt's (1998) by patience: so many validations in a row without a loss below the best so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.training.settings import EarlyStoppingSettings


@dataclass(frozen=True)
class EarlyStop:
    """Where and why a run stops."""

    step: int
    best_step: int
    best_loss: float
    validations: int
    """In a row without an improvement."""

    @property
    def reason(self) -> str:
        """For people."""
        return f"no improvement in {self.validations} validations on the loss {self.best_loss:.4f} of step {self.best_step:,}"


def early_stop(losses: Sequence[tuple[int, float]], settings: EarlyStoppingSettings | None) -> EarlyStop | None:
    """The stop that (step, validation loss) pairs, in order, lead to; None: go on. A loss that is no number is no improvement."""
    if settings is None:
        return None
    best_step, best_loss, without = 0, float("inf"), 0
    for step, loss in losses:
        if loss < best_loss - settings.minimum_improvement:
            best_step, best_loss, without = step, loss, 0
            continue
        without += 1
        if without == settings.patience:
            return EarlyStop(step, best_step, best_loss, without)
    return None
