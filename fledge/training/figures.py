"""How a run goes, in figures: step reports -> [gauge] -> pace, utilization of the device, waiting, memory, time left.

Each figure is told twice: since the last reading, which shows a disturbance at once, and smoothed, which is steady enough to read. What
is smoothed are sums, of work and of seconds, that fade by half every HALF_LIFE_STEPS; a figure is a quotient of two of them, so a slow
step counts by its length. The first reading of a process fades at once: it holds what happens once, such as compiling.

Model FLOPs utilization (MFU, PaLM, arXiv:2204.02311) is the FLOPs that the model needs over those that the device could have computed
in the time; what is computed twice, such as by activation checkpointing, does not raise it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fledge.model.cost import flops_per_token
from fledge.model.settings import LoraSettings, ModelConfig
from fledge.training.peaks import peak_memory_bytes
from fledge.training.plan import Plan
from fledge.training.trainer import StepReport

HALF_LIFE_STEPS = 50


@dataclass(frozen=True)
class Work:
    """What was done in some steps, and the time that it took."""

    steps: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def since(self, before: Work) -> Work:
        """What came after `before`."""
        return self.plus(before, -1.0)

    def plus(self, other: Work, share: float) -> Work:
        """This and a share of something else."""
        return Work(
            steps=self.steps + share * other.steps,
            tokens=self.tokens + share * other.tokens,
            flops=self.flops + share * other.flops,
            seconds=self.seconds + share * other.seconds,
            wait_seconds=self.wait_seconds + share * other.wait_seconds,
        )


@dataclass(frozen=True)
class Pace:
    """How fast work was done."""

    tokens_per_second: float
    mfu: float | None
    """Model FLOPs utilization; None where the peak of the device is not known."""
    data_wait_share: float
    """Of the time of the steps, spent waiting for data."""
    seconds_left: float
    """To the last step, what is done between steps included."""


@dataclass(frozen=True)
class Figures:
    """One reading."""

    raw: Pace
    """Since the reading before."""
    smoothed: Pace
    peak_memory_bytes: int

    def record(self) -> dict[str, float]:
        """By the names that metrics.jsonl has."""
        paces = {**vars(self.raw), **{f"{name}_smoothed": value for name, value in vars(self.smoothed).items()}}
        values = {**paces, "peak_memory_bytes": self.peak_memory_bytes}
        return {f"train/{name}": value for name, value in values.items() if value is not None}


class Gauge:
    """Reads the figures of a run off its step reports."""

    def __init__(
        self,
        config: ModelConfig,
        plan: Plan,
        start_step: int,
        device: torch.device,
        peak_flops_per_second: float | None,
        clock: Callable[[], float] = time.monotonic,
        lora: LoraSettings | None = None,
    ) -> None:
        """`start_step`: steps done before this process began; `peak_flops_per_second`: of all processes together."""
        self._config, self._plan, self._device, self._clock, self._lora = config, plan, device, clock, lora
        self._peak_flops_per_second = peak_flops_per_second
        self._all_flops = training_flops(config, plan, plan.steps, lora)
        self._before = Work(start_step, plan.tokens(start_step), training_flops(config, plan, start_step, lora))
        self._smoothed = Work()
        self._started: tuple[float, float] | None = None

    def read(self, report: StepReport) -> Figures:
        """The figures after a step; those of a first reading are since the process began."""
        done = Work(
            steps=report.step,
            tokens=report.tokens,
            flops=training_flops(self._config, self._plan, report.step, self._lora),
            seconds=report.seconds,
            wait_seconds=report.wait_seconds,
        )
        new = done.since(self._before)
        smoothed = new.plus(self._smoothed, 0.5 ** (new.steps / HALF_LIFE_STEPS))
        now, flops_left = self._clock(), self._all_flops - done.flops
        if self._started is None:
            self._started = (now, report.seconds)
        else:
            self._smoothed = smoothed
        self._before = done
        # Validating, sampling and saving take time too, and will do so as often as they have.
        started, seconds = self._started
        overhead = max(1.0, (now - started) / (report.seconds - seconds)) if report.seconds > seconds else 1.0
        raw, steady = (self._pace(work, flops_left * overhead) for work in (new, smoothed))
        return Figures(raw, steady, peak_memory_bytes(self._device))

    def _pace(self, work: Work, flops_left: float) -> Pace:
        seconds = max(work.seconds, 1e-9)
        flops_per_second = work.flops / seconds
        return Pace(
            tokens_per_second=work.tokens / seconds,
            mfu=flops_per_second / self._peak_flops_per_second if self._peak_flops_per_second else None,
            data_wait_share=work.wait_seconds / seconds,
            seconds_left=flops_left / flops_per_second,
        )


def training_flops(config: ModelConfig, plan: Plan, step: int, lora: LoraSettings | None = None) -> int:
    """FLOPs of forward and backward passes of the run's own steps until `step`, without those of a checkpoint before it."""
    return sum(done * phase.batch_tokens * flops_per_token(config, phase.row_tokens, lora) for phase, done in plan.done(step))
