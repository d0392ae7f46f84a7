"""Keeps the gradients of an fp16 step in the range that fp16 has: trainer -> [loss scale] -> trainer.

Gradients below 6e-8 vanish in fp16, those above 65,504 become infinite. The loss is multiplied by a power of two before the backward
pass and the gradients divided by it after; an infinite gradient means that it was too large: the step is left out and the scale halved,
and after 2,000 good steps it is doubled (Micikevicius et al. 2018). A pure function of what happened: two numbers continue it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

INITIAL_SCALE = 2.0**16
GROWTH_STEPS = 2_000
SMALLEST_SCALE = 1.0
"""An overflow at this scale is no matter of the range any more."""


@dataclass(frozen=True)
class LossScale:
    """The present scale, and the steps since it last changed."""

    scale: float = INITIAL_SCALE
    good_steps: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether a smaller scale cannot help."""
        return self.scale <= SMALLEST_SCALE

    def after(self, was_finite: bool) -> LossScale:
        """The scale for the next step."""
        if not was_finite:
            return LossScale(max(self.scale / 2, SMALLEST_SCALE))
        if self.good_steps + 1 == GROWTH_STEPS:
            return LossScale(self.scale * 2)
        return replace(self, good_steps=self.good_steps + 1)
