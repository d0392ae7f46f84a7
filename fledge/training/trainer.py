"""The one loop: batches, an objective and a model become weights, for pretraining, fine-tuning and preferences alike.

    total = weight of all micro-batches of all processes
    for each micro-batch:  (sum of losses / total) backward
    clip, check that everything is finite, apply, tell the observers, save

The division happens once, by the weight of the whole batch, so how a batch is split over micro-batches and processes changes
nothing but rounding. An iteration is an optimizer step; micro-batches are inside it. What steers (rows, learning rate, random
numbers) is a pure function of the step; observers look and never steer. After torchtitan's and OLMo-core's trainers.

A GPU never waits for Python: nothing of a step is read before the next one is queued. Whether all numbers of a step are finite is
therefore known one step later there, and always before anything is saved. fp16 is the exception: it has to know before it applies.
"""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fledge.core.errors import NumericsError, Stopped
from fledge.core.process import only_new_garbage
from fledge.model.llama import Llama
from fledge.training.batches import Batch, BatchLoader
from fledge.training.checkpoint import RECENT_LOSSES, Progress
from fledge.training.early_stopping import EarlyStop, early_stop
from fledge.training.layout import whole
from fledge.training.loss_scale import LossScale
from fledge.training.objectives import Objective
from fledge.training.optimizer import Optimizer, learning_rate_fraction
from fledge.training.parallel import Machine, World
from fledge.training.saving import CheckpointWriter, Occasion
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
    wait_seconds: float
    """Of these, spent waiting for data."""
    stop_signal: int | None
    """A signal that asked the run to stop."""
    checkpoint_failures: int = 0
    """Saves of this process that did not succeed so far."""


class Observer(Protocol):
    """Looks at a run. It may read everything and change nothing; what it needs of chance it brings along."""

    def due(self, step: int) -> bool:
        """Whether to look after this many steps."""
        ...

    def observe(self, report: StepReport) -> dict[str, float]:
        """Look; returns what was measured, by name. Every process calls this at the same steps."""
        ...


class _Verdict:
    """What of a step decides whether to go on, on its way from the device: nobody waits for it before `read`."""

    def __init__(self, step: int, loss: Tensor, gradient_norm: Tensor, signals: Tensor) -> None:
        self.step = step
        self._numbers = torch.stack((loss, gradient_norm, signals)).to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(loss.device).record_event() if loss.device.type == "cuda" else None

    def read(self) -> tuple[float, float, int]:
        """The loss, the norm of the gradient, and the sum of the signals that asked to stop."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, gradient_norm, signals = self._numbers.tolist()
        return loss, gradient_norm, int(signals)


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
        self.plan = batches.plan
        self.world = world
        self.machine = machine
        self.observers = observers
        self.writer = writer
        self.stop = stop
        self.progress = progress
        self.seconds, self.wait_seconds = 0.0, 0.0
        self._unread_losses: list[Tensor] = []
        self._unread: _Verdict | None = None
        self._stop_signal: int | None = None
        if machine.precision == "fp16" and progress.loss_scale is None:
            self.progress = replace(progress, loss_scale=LossScale())

    def run(self) -> Progress:
        """Train from where the run stands to its last step, or to its early stop; saves at its cadence and at the end.

        Raises NumericsError if the loss leaves the finite numbers, Stopped, with everything saved, if a signal came, MachineError if the
        disk does not take the end of the run, or takes no checkpoint any more.
        """
        gc.collect()  # of the stage before, whose tensors would stay
        with only_new_garbage(), self.writer:
            while self.progress.step < self.plan.steps and self.early_stop is None:
                report = self.step()
                self._observe(report)
                if report.step == self.plan.steps or self.early_stop is not None:
                    self.save("end")
                elif report.stop_signal is not None:
                    self.save("stop")
                elif is_due(report.step, self.settings.save_every_steps, self.plan.steps):
                    self.save("cadence")
                if report.stop_signal is not None:
                    name = signal.Signals(report.stop_signal).name
                    problem = f"stopped by {name} after step {report.step:,} of {self.plan.steps:,}; everything is saved"
                    raise Stopped(report.stop_signal, problem, "run the same command again to continue")
        return self.progress

    @property
    def early_stop(self) -> EarlyStop | None:
        """The stop that the validations so far lead to; their steps are saved, so the run may end there."""
        return early_stop(self.progress.validation_losses, self.settings.early_stopping)

    def step(self) -> StepReport:
        """One optimizer step on the next batch.

        Raises NumericsError if it, or on a GPU the step before, is not finite; on a CPU the weights then are as they were.
        """
        self.writer.notice()
        started, step = time.monotonic(), self.progress.step
        # Seeded by the step alone, so a resumed run draws the same and an observer cannot disturb it.
        torch.manual_seed(self.settings.seed * 1_000_003 + step * self.world.size + self.world.rank)
        micro_batches = self.batches.micro_batches(step)
        waited = time.monotonic() - started
        measures, signals = self._accumulate_gradients(micro_batches)
        gradient_norm = self._clip_gradients()
        is_applied = self._judge(_Verdict(step, measures["loss"], gradient_norm, signals))
        fraction = learning_rate_fraction(self.settings.schedule, step, self.plan.steps)
        if is_applied:
            self.optimizer.step(fraction)
        self.optimizer.clear_gradients()
        self._unread_losses.append(measures["loss"])
        initial_loss = float(measures["loss"]) if step == self.plan.start.step else self.progress.initial_loss
        self.progress = replace(self.progress, step=step + 1, initial_loss=initial_loss)
        self.seconds += time.monotonic() - started
        self.wait_seconds += waited
        return StepReport(
            step=step + 1,
            learning_rate=self.settings.learning_rate * fraction,
            gradient_norm=gradient_norm,
            measures=measures,
            tokens=self.plan.tokens(step + 1),
            epochs=self.plan.epochs(step + 1),
            seconds=self.seconds,
            wait_seconds=self.wait_seconds,
            stop_signal=self._stop_signal,
            checkpoint_failures=self.writer.failures,
        )

    def save(self, occasion: Occasion = "stop") -> None:
        """Write a checkpoint of this moment; every process takes part.

        Raises NumericsError if the last step was not finite, MachineError if the disk did not take what had to be saved.
        """
        if self._unread is not None:
            self._read(self._unread)
            self._unread = None
        losses = torch.stack(self._unread_losses).tolist() if self._unread_losses else []
        self._unread_losses.clear()
        recent_losses = (*self.progress.recent_losses, *losses)[-RECENT_LOSSES:]
        self.progress = replace(self.progress, recent_losses=recent_losses)
        self.writer.save(self.model, self.optimizer, self.plan, self.progress, self.world, occasion)

    def _accumulate_gradients(self, given: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the mean loss over the whole batch; returns the means of what the objective measures, and the stop signals."""
        micro_batches = [batch.to(self.world.device) for batch in given]
        # At least one: a batch without any target is a step with zero gradients.
        weight = self.world.sum(torch.stack([self.objective.weight(batch) for batch in micro_batches]).sum()).clamp(min=1.0)
        # Averaging over processes divides by their number, the sum of losses asks for none of that.
        scale = (self.world.size * self._loss_scale / weight).float()
        names = self.objective.measures
        # The last number is the signal, so that it travels with the others.
        sums = torch.zeros(len(names) + 1, device=self.world.device)
        if self.stop.requested:
            sums[-1] = float(self.stop.requested)
        for number, batch in enumerate(micro_batches, start=1):
            with self.world.gradient_sync(self.forward, last=number == len(micro_batches)):
                with self.machine.autocast(self.world.device):
                    result = self.objective(self.forward, batch)
                torch.autograd.backward(result.loss * scale)
            sums[:-1] += torch.stack([result.measures[name] for name in names])
        totals = self.world.sum(sums)
        return dict(zip(names, totals[:-1] / weight.float(), strict=True)), totals[-1]

    def _clip_gradients(self) -> Tensor:
        """The norm of the whole gradient, before it is shortened to what the settings allow."""
        parameters = list(self.model.parameters())
        if self._loss_scale != 1:
            torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], 1 / self._loss_scale)
        return whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip or float("inf")))

    @property
    def _loss_scale(self) -> float:
        return 1.0 if self.progress.loss_scale is None else self.progress.loss_scale.scale

    def _judge(self, verdict: _Verdict) -> bool:
        """Whether to apply the step, the same answer for every process."""
        scale = self.progress.loss_scale
        if scale is not None:
            is_finite = self._read(verdict, may_overflow=not scale.is_exhausted)
            self.progress = replace(self.progress, loss_scale=scale.after(is_finite))
            return is_finite
        waits = self.world.device.type == "cuda"
        due, self._unread = (self._unread, verdict) if waits else (verdict, None)
        if due is not None:
            self._read(due)
        return True

    def _read(self, verdict: _Verdict, may_overflow: bool = False) -> bool:
        """Whether a step was finite; notes the signal that asked to stop, if one did. Raises NumericsError."""
        loss, gradient_norm, signals = verdict.read()
        if signals:
            self._stop_signal = self.stop.requested or int(signal.SIGTERM)
        is_finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        if not is_finite and not may_overflow:
            self.optimizer.clear_gradients()
            fate = "is not saved" if self._unread is not None else "was not applied"
            raise NumericsError(
                f"step {verdict.step + 1:,}: the loss is {loss}, the norm of the gradient {gradient_norm}; the step {fate}",
                "start the stage anew (--force) with a lower learning_rate or a longer warm-up, or continue with precision fp32",
            )
        return is_finite

    def _observe(self, report: StepReport) -> None:
        due = [observer for observer in self.observers if observer.due(report.step)]
        if not due:
            return
        report = self._awaited(report)
        self.model.eval()
        # Compiling once more for a pass without gradients costs more than it saves.
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if self.machine.compiled else nullcontext():
            for observer in due:
                measured = observer.observe(report)
                if "validation/loss" in measured:
                    point = (report.step, measured["validation/loss"])
                    self.progress = replace(self.progress, validation_losses=(*self.progress.validation_losses, point))
        self.model.train()

    def _awaited(self, report: StepReport) -> StepReport:
        """The report of a step once the device has done it: observers wait for its numbers, but the time belongs to the steps."""
        if self.world.device.type == "cuda":
            started = time.monotonic()
            torch.cuda.synchronize(self.world.device)
            self.seconds += time.monotonic() - started
        return replace(report, seconds=self.seconds)


def is_due(step: int, every_steps: int | None, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this step; None: at the end only."""
    return step == steps or (every_steps is not None and step % every_steps == 0)
