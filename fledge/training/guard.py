"""Whether a step was healthy: (loss, norm of the gradient) of each step -> [Health] -> apply it, skip it, or go back and leave steps out.

A step whose loss or gradient is not finite is skipped. A finite one whose loss or gradient stands far above the last ones is a spike: told
and counted, but applied, because clipping bounds it. Too many bad steps in a row, not finite or with a loss that spikes, end in a way
back: the run goes on from the last checkpoint before the first of them, and the steps of the row are left out, with their rows.

What is usual is told by medians, of the value and of its distance to that (MAD), over the last WINDOW_STEPS finite values; so neither a
NaN nor a spike moves it, and no healthy step after one is taken for another. All this is a pure function of the numbers of the steps. A
checkpoint carries the state, so that a run which is killed before, in or after a spike goes on as an undisturbed one. The numbers are
sums over all processes, so every process decides alike. Skipping rows after going back: PaLM (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fledge.training.settings import GuardSettings

WINDOW_STEPS = 128
MINIMUM_STEPS = 32
"""Fewer values do not tell what is usual."""
DEVIATIONS_PER_MAD = 1.4826
"""Of a normal distribution."""
LEAST_SPREAD = 0.02
"""Of the median: a loss that hardly moves any more has no spike at every wiggle."""

LeftOut = tuple[tuple[int, int], ...]
"""Ranges of steps that are not done, ascending: (first, end)."""


@dataclass(frozen=True)
class Health:
    """What the steps so far were like."""

    phase: int = 0
    """Number of the plan's phase that the windows are of; another mixture or length has another usual loss."""
    losses: tuple[float, ...] = ()
    """The last finite ones of the phase, oldest first."""
    gradient_norms: tuple[float, ...] = ()
    bad_since: int | None = None
    """The first step of a row of bad steps that goes on; None: the last step was none."""
    bad_steps: int = 0
    """How many this row has."""
    skipped_steps: int = 0
    """Of the whole run, because they were not finite."""
    spikes: int = 0
    """Of the whole run, in the loss or in the gradient."""

    def after(self, step: int, phase: int, loss: float, gradient_norm: float, deviations: float) -> Health:
        """The health after the step after `step` steps, in a phase; `deviations`: how far above the usual a spike begins."""
        before = self if phase == self.phase else replace(self, phase=phase, losses=(), gradient_norms=())
        is_finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        loss_spikes = is_finite and is_spike(loss, before.losses, deviations)
        spikes = loss_spikes or (is_finite and is_spike(gradient_norm, before.gradient_norms, deviations))
        is_bad = not is_finite or loss_spikes
        return Health(
            phase=phase,
            losses=_with(before.losses, loss),
            gradient_norms=_with(before.gradient_norms, gradient_norm),
            bad_since=(step if before.bad_since is None else before.bad_since) if is_bad else None,
            bad_steps=before.bad_steps + 1 if is_bad else 0,
            skipped_steps=before.skipped_steps + (not is_finite),
            spikes=before.spikes + spikes,
        )


def is_spike(value: float, window: Sequence[float], deviations: float) -> bool:
    """Whether a value stands so many robust standard deviations above the median of a window; never with a short window."""
    if len(window) < MINIMUM_STEPS:
        return False
    usual = statistics.median(window)
    mad = statistics.median(abs(one - usual) for one in window)
    return value > usual + deviations * max(DEVIATIONS_PER_MAD * mad, LEAST_SPREAD * abs(usual))


def next_step(step: int, left_out: LeftOut, steps: int) -> int:
    """The step that follows `step` of `steps` steps; the last one is always done, so that a run ends as its plan says."""
    for first, end in left_out:
        if first <= step < end:
            step = min(end, steps - 1)
    return step


def is_left_out(step: int, left_out: LeftOut, steps: int) -> bool:
    """Whether the step after `step` steps is passed over."""
    return next_step(step, left_out, steps) != step


class RollBack(Exception):
    """Too many bad steps in a row. Not an error: whoever runs the trainer answers it, see `rollback`."""

    def __init__(self, first_step: int, left_out: LeftOut) -> None:
        super().__init__(first_step, left_out)
        self.first_step = first_step
        """Steps done before the first bad one: a checkpoint of more is not good."""
        self.left_out = left_out
        """All that the run leaves out from now on."""


def decide(health: Health, step: int, left_out: LeftOut, guard: GuardSettings) -> RollBack | None:
    """What follows from the health after the step after `step` steps: a way back, or None. More of them than allowed is for the caller."""
    if health.bad_since is None or health.bad_steps < guard.maximum_bad_steps:
        return None
    return RollBack(health.bad_since, tuple(sorted((*left_out, (health.bad_since, step + 1)))))


def read_health(state: dict[str, Any] | None) -> Health:
    """From what a checkpoint holds; one of a version without it knows nothing."""
    if state is None:
        return Health()
    return Health(**{**state, "losses": tuple(state["losses"]), "gradient_norms": tuple(state["gradient_norms"])})


def _with(window: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*window, value)[-WINDOW_STEPS:] if math.isfinite(value) else window
