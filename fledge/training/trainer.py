"""The one loop: batches, an objective and a model become weights, for pretraining, fine-tuning and preferences alike.

    total = weight of all micro-batches of all processes
    for each micro-batch:  (sum of losses / total) backward
    clip, check that everything is finite, apply, tell the observers, save

The division happens once, by the weight of the whole batch, so how a batch is split over micro-batches and processes changes
nothing but rounding. An iteration is an optimizer step; micro-batches are inside it. What steers (rows, learning rate, random
numbers) is a pure function of the step; observers look and never steer. After torchtitan's and OLMo-core's trainers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fledge.core.errors import NumericsError, Stopped
from fledge.model.llama import Llama
from fledge.training.batches import Batch, BatchLoader
from fledge.training.checkpoint import RECENT_LOSSES, CheckpointWriter, Progress
from fledge.training.layout import whole
from fledge.training.objectives import Objective
from fledge.training.optimizer import Optimizer, learning_rate_fraction
from fledge.training.parallel import Machine, World
from fledge.training.settings import TrainingSettings


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, for those who look on; tensors are on the device and cost a wait when read."""

    step: int
    """Optimizer steps done, this one included."""
    learning_rate: float
    gradient_norm: Tensor
    """() before clipping."""
    measures: dict[str, Tensor]
    """() each: means over the batch."""
    tokens: int
    """Positions trained on since the first step, padding included."""
    epochs: float
    seconds: float
    """Spent in the steps of this process so far; looking on and saving are not counted."""
    stop_signal: int | None
    """A signal that asked the run to stop."""


class Observer(Protocol):
    """Looks at a run. It may read everything and change nothing; what it needs of chance it brings along."""

    def due(self, step: int) -> bool:
        """Whether to look after this many steps."""
        ...

    def observe(self, report: StepReport) -> dict[str, float]:
        """Look; returns what was measured, by name. Every process calls this at the same steps."""
        ...


class StopRequest(Protocol):
    """Says whether a signal asked to stop; see `core.process.StopSignals`."""

    requested: int | None


class Trainer:
    """Holds the finished parts of a run and runs them; building the parts is the stage's work."""

    def __init__(
        self,
        *,
        settings: TrainingSettings,
        model: Llama,
        objective: Objective,
        optimizer: Optimizer,
        batches: BatchLoader,
        world: World,
        machine: Machine,
        observers: Sequence[Observer],
        writer: CheckpointWriter,
        stop: StopRequest,
        progress: Progress,
    ) -> None:
        self.settings = settings
        self.model = model
        self.forward = world.wrap(model)
        self.objective = objective
        self.optimizer = optimizer
        self.batches = batches
        self.world = world
        self.machine = machine
        self.observers = observers
        self.writer = writer
        self.stop = stop
        self.progress = progress
        self.seconds = 0.0
        self._unread_losses: list[Tensor] = []

    def run(self) -> Progress:
        """Train from where the run stands to its last step; saves at its cadence and at the end.

        Raises NumericsError if the loss leaves the finite numbers, Stopped, with everything saved, if a signal came.
        """
        while self.progress.step < self.settings.steps:
            report = self.step()
            self._observe(report)
            if is_due(report.step, self.settings.save_every_steps, self.settings.steps) or report.stop_signal is not None:
                self.save()
            if report.stop_signal is not None:
                name = signal.Signals(report.stop_signal).name
                problem = f"stopped by {name} after step {report.step:,} of {self.settings.steps:,}; everything is saved"
                raise Stopped(report.stop_signal, problem, "run the same command again to continue")
        return self.progress

    def step(self) -> StepReport:
        """One optimizer step on the next batch. Raises NumericsError, with the weights as they were, if it is not finite."""
        started, step = time.monotonic(), self.progress.step
        # Seeded by the step alone, so a resumed run draws the same and an observer cannot disturb it.
        torch.manual_seed(self.settings.seed * 1_000_003 + step * self.world.size + self.world.rank)
        measures = self._accumulate_gradients(self.batches.micro_batches(step))
        gradient_norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip or float("inf")))
        stop_signal = self._check(measures, gradient_norm)
        fraction = learning_rate_fraction(self.settings.schedule, step, self.settings.steps)
        self.optimizer.step(fraction)
        self.optimizer.clear_gradients()
        self._unread_losses.append(measures["loss"])
        initial_loss = float(measures["loss"]) if step == 0 else self.progress.initial_loss
        self.progress = replace(self.progress, step=step + 1, initial_loss=initial_loss)
        self.seconds += time.monotonic() - started
        return StepReport(
            step=step + 1,
            learning_rate=self.settings.learning_rate * fraction,
            gradient_norm=gradient_norm,
            measures=measures,
            tokens=(step + 1) * self.batches.plan.batch_tokens,
            epochs=self.batches.plan.epochs(step + 1),
            seconds=self.seconds,
            stop_signal=stop_signal,
        )

    def save(self) -> None:
        """Write a checkpoint of this moment; every process takes part."""
        losses = torch.stack(self._unread_losses).tolist() if self._unread_losses else []
        self._unread_losses.clear()
        recent_losses = (*self.progress.recent_losses, *losses)[-RECENT_LOSSES:]
        self.progress = replace(self.progress, recent_losses=recent_losses)
        self.writer.save(self.model, self.optimizer, self.batches.plan, self.progress, self.world)

    def _accumulate_gradients(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Gradients of the mean loss over the whole batch; returns the means of what the objective measures."""
        own_weight = sum(self.objective.weight(batch) for batch in micro_batches)
        # At least one: a batch without any target is a step with zero gradients.
        weight = self.world.sum(torch.tensor(own_weight, dtype=torch.float64, device=self.world.device)).clamp(min=1.0)
        # Averaging over processes divides by their number, the sum of losses asks for none of that.
        scale = (self.world.size / weight).float()
        sums = torch.zeros(len(self.objective.measures), device=self.world.device)
        for number, batch in enumerate(micro_batches, start=1):
            with self.world.gradient_sync(self.forward, last=number == len(micro_batches)):
                with self.machine.autocast(self.world.device):
                    result = self.objective(self.forward, batch.to(self.world.device))
                torch.autograd.backward(result.loss * scale)
            sums += torch.stack([result.measures[name] for name in self.objective.measures])
        return dict(zip(self.objective.measures, self.world.sum(sums) / weight.float(), strict=True))

    def _check(self, measures: dict[str, Tensor], gradient_norm: Tensor) -> int | None:
        """Whether to apply the step, the same answer for every process, and the signal that asked to stop, if one did.

        Reads one small tensor, the only wait for the device in a step.
        """
        own_signal = torch.tensor(float(self.stop.requested or 0), device=self.world.device)
        finite = torch.isfinite(measures["loss"]) & torch.isfinite(gradient_norm)
        all_finite, signals = torch.stack((finite.float(), self.world.sum(own_signal))).tolist()
        if not all_finite:
            self.optimizer.clear_gradients()
            raise NumericsError(
                f"step {self.progress.step + 1:,}: the loss is {float(measures['loss'])}, the norm of the gradient {float(gradient_norm)}; "
                "the step was not applied",
                "start the stage anew (--force) with a lower learning_rate or a longer warm-up, or continue with precision fp32",
            )
        return None if not signals else self.stop.requested or int(signal.SIGTERM)

    def _observe(self, report: StepReport) -> None:
        due = [observer for observer in self.observers if observer.due(report.step)]
        if not due:
            return
        self.model.eval()
        with torch.no_grad():
            for observer in due:
                measured = observer.observe(report)
                if "validation/loss" in measured:
                    point = (report.step, measured["validation/loss"])
                    self.progress = replace(self.progress, validation_losses=(*self.progress.validation_losses, point))
        self.model.train()


def is_due(step: int, every_steps: int | None, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this step; None: at the end only."""
    return step == steps or (every_steps is not None and step % every_steps == 0)
