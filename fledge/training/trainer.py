"""The one loop: batches, an objective and a model become weights, for pretraining, fine-tuning and preferences alike.

    total = weight of all micro-batches of all processes
    for each micro-batch:  (sum of losses / total) backward
    clip, apply if everything is finite, tell the observers, save

The division happens once, by the weight of the whole batch, so how a batch is split over micro-batches and processes changes
nothing but rounding. An iteration is an optimizer step; micro-batches are inside it. What steers (rows, learning rate, random
numbers) is a pure function of the step; observers look and never steer. After torchtitan's and OLMo-core's trainers.

A GPU never waits for Python: nothing of a step is read before the next one is queued. A step that is not finite is kept from the weights
on the device itself, and known here one step later, always before anything is saved. fp16 is the exception: its scale has to know at once.
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

from fledge.core import console
from fledge.core.errors import NumericsError, Stopped
from fledge.core.process import only_new_garbage
from fledge.core.watch import Watch
from fledge.model.llama import Llama
from fledge.training.batches import Batch, BatchLoader
from fledge.training.cadence import is_due, validation_is_due
from fledge.training.checkpoint import RECENT_LOSSES, Progress
from fledge.training.early_stopping import EarlyStop, early_stop
from fledge.training.elastic import ElasticSteps
from fledge.training.guard import decide, next_step
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
    skipped_steps: int = 0
    """Of the whole run so far, because they were not finite; on a GPU a step late."""
    spikes: int = 0
    """Of the whole run so far, in the loss or the gradient; on a GPU a step late."""


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
        self.is_finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
        """() on the device."""
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
        self.elastic = (
            ElasticSteps(world, [one for one in model.parameters() if one.requires_grad], settings.seed) if world.elastic else None
        )
        self.watch = Watch(settings.hang_timeout_seconds if world.size > 1 else None)
        if machine.precision == "fp16" and progress.loss_scale is None:
            self.progress = replace(progress, loss_scale=LossScale())

    def run(self) -> Progress:
        """Train from where the run stands to its last step, or to its early stop; saves at its cadence and at the end.

        Raises RollBack if too many steps in a row go wrong, NumericsError if that happened too often before; Stopped, with everything
        saved, if a signal came; MachineError if the disk does not take the end of the run, or takes no checkpoint any more.
        """
        gc.collect()  # of the stage before, whose tensors would stay
        with only_new_garbage(), self.watch, self.writer:
            while self.progress.step < self.plan.steps and self.early_stop is None:
                report = self.step()
                self._observe(report)
                if report.step == self.plan.steps or self.early_stop is not None:
                    self.save("end")
                elif report.stop_signal is not None:
                    self.save("stop")
                elif self._is_save_due(report.step):
                    self.save("cadence")
                if report.stop_signal is not None:
                    name = signal.Signals(report.stop_signal).name
                    problem = f"stopped by {name} after step {report.step:,} of {self.plan.steps:,}; everything is saved"
                    raise Stopped(report.stop_signal, problem, "run the same command again to continue")
        if not self.progress.recent_losses:
            raise NumericsError("no step of this run was finite, so nothing was learned", "start anew (--force) with a lower learning_rate")
        return self.progress

    def _is_save_due(self, step: int) -> bool:
        settings, plan = self.settings, self.plan
        at_validation = settings.save_at_validations and validation_is_due(step, settings, plan)
        return at_validation or is_due(step, settings.save_every_steps, plan.steps) or plan.ends_epochs(step, settings.keep_every_epochs)

    @property
    def early_stop(self) -> EarlyStop | None:
        """The stop that the validations so far lead to; their steps are saved, so the run may end there."""
        return early_stop(self.progress.validation_losses, self.settings.early_stopping)

    def step(self) -> StepReport:
        """One optimizer step on the next batch, which changes nothing but the count of steps if it is not finite.

        Raises RollBack or NumericsError if too many in a row, this one included, or on a GPU up to the one before, went wrong.
        """
        self.writer.notice()
        started, step = time.monotonic(), next_step(self.progress.step, self.progress.left_out, self.plan.steps)
        # Seeded by the step alone, so a resumed run draws the same and an observer cannot disturb it.
        torch.manual_seed(self.settings.seed * 1_000_003 + step * self.world.size + self.world.rank)
        self.watch.at("data", step)
        micro_batches = self.batches.micro_batches(step)
        waited = time.monotonic() - started
        measures, signals = self._accumulate_gradients(micro_batches, step)
        self.watch.at("apply", step)
        gradient_norm = self._clip_gradients()
        applies = self._judge(_Verdict(step, measures["loss"], gradient_norm, signals))
        fraction = learning_rate_fraction(self.settings.schedule, step, self.plan.steps)
        self.optimizer.step(fraction, applies)
        self.optimizer.clear_gradients()
        self._unread_losses.append(measures["loss"])
        self.progress = replace(self.progress, step=step + 1, initial_loss=self._initial_loss(measures["loss"]))
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
            skipped_steps=self.progress.health.skipped_steps,
            spikes=self.progress.health.spikes,
            checkpoint_failures=self.writer.failures,
        )

    def save(self, occasion: Occasion = "stop") -> None:
        """Write a checkpoint of this moment; every process takes part. In a row of bad steps none is due: there is none to come back to.

        Raises what reading the last step does, and MachineError if the disk did not take what had to be saved.
        """
        self.watch.at("save", self.progress.step - 1)
        if not self.world.main:
            self.watch.at("reduce", self.progress.step - 1)
        self._read_unread()
        if self.progress.health.bad_since is not None and occasion == "cadence":
            return
        losses = torch.stack(self._unread_losses).tolist() if self._unread_losses else []
        self._unread_losses.clear()
        recent_losses = (*self.progress.recent_losses, *filter(math.isfinite, losses))[-RECENT_LOSSES:]
        self.progress = replace(self.progress, recent_losses=recent_losses)
        self.writer.save(self.model, self.optimizer, self.plan, self.progress, self.world, occasion)

    def _accumulate_gradients(self, given: Sequence[Batch], step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of the mean loss over the whole batch; returns the means of what the objective measures, and the stop signals."""
        micro_batches = [batch.to(self.world.device) for batch in given]
        self.watch.at("reduce", step)
        # At least one: a batch without any target is a step with zero gradients.
        weight = self.world.sum(torch.stack([self.objective.weight(batch) for batch in micro_batches]).sum()).clamp(min=1.0)
        # Averaging over processes divides by their number, the sum of losses asks for none of that.
        averaged_over = 1 if self.elastic is not None else self.world.size
        scale = (averaged_over * self._loss_scale / weight).float()
        names = self.objective.measures

        def compute(batch: Batch) -> tuple[Tensor, Tensor]:
            self.watch.at("forward", step)
            with self.machine.autocast(self.world.device):
                result = self.objective(self.forward, batch)
            return result.loss * scale, torch.stack([result.measures[name] for name in names])

        if self.elastic is not None:
            totals = self.elastic.accumulate(micro_batches, step, compute)
            signals = self.world.sum(self._signal())
        else:
            sums = torch.zeros(len(names), device=self.world.device)
            for number, batch in enumerate(micro_batches, start=1):
                with self.world.gradient_sync(self.forward, last=number == len(micro_batches)):
                    loss, measures = compute(batch)
                    self.watch.at("backward", step)
                    torch.autograd.backward(loss)
                sums += measures
            self.watch.at("reduce", step)
            # The signal travels with the other numbers, so that one which came in this step ends the run with it.
            sums = self.world.sum(torch.cat((sums, self._signal())))
            totals, signals = sums[:-1], sums[-1:]
        return dict(zip(names, totals / weight.float(), strict=True)), signals[0]

    def _signal(self) -> Tensor:
        """(1,) the signal that asked this process to stop, or zero."""
        return torch.full((1,), float(self.stop.requested or 0), device=self.world.device)

    def _clip_gradients(self) -> Tensor:
        """The norm of the whole gradient, before it is shortened to what the settings allow."""
        parameters = list(self.model.parameters())
        if self._loss_scale != 1:
            torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], 1 / self._loss_scale)
        return whole(torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip or float("inf")))

    @property
    def _loss_scale(self) -> float:
        return 1.0 if self.progress.loss_scale is None else self.progress.loss_scale.scale

    def _initial_loss(self, loss: Tensor) -> float | None:
        """Of the first step that was finite; only until then the device is waited for."""
        known = self.progress.initial_loss
        value = float(loss) if known is None else known
        return value if math.isfinite(value) else None

    def _judge(self, verdict: _Verdict) -> Tensor | None:
        """Whether to apply the step, the same answer for every process; None: yes, without asking the device."""
        scale = self.progress.loss_scale
        if scale is not None:
            is_finite = self._read(verdict, may_overflow=not scale.is_exhausted)
            self.progress = replace(self.progress, loss_scale=scale.after(is_finite))
            return None if is_finite else verdict.is_finite
        if self.world.device.type != "cuda":
            return None if self._read(verdict) else verdict.is_finite
        due, self._unread = self._unread, verdict
        if due is not None:
            self._read(due)
        return verdict.is_finite

    def _read(self, verdict: _Verdict, may_overflow: bool = False) -> bool:
        """Whether a step was finite; notes how it was, and the signal that asked to stop, if one did. Raises RollBack, NumericsError."""
        loss, gradient_norm, signals = verdict.read()
        if signals:
            self._stop_signal = self.stop.requested or int(signal.SIGTERM)
        is_finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        # A gradient may overflow in fp16; a loss that is no number is trouble there too.
        if is_finite or not may_overflow or not math.isfinite(loss):
            phase = self.plan.phases.index(self.plan.phase(verdict.step))
            before, guard = self.progress.health, self.settings.guard
            health = before.after(verdict.step, phase, loss, gradient_norm, guard.spike_deviations)
            self.progress = replace(self.progress, health=health)
            if health.bad_steps and self.world.main:
                fate = "a spike" if is_finite else "the step was skipped"
                console.warn(f"step {verdict.step + 1:,}: the loss is {loss:.4g}, the norm of the gradient {gradient_norm:.4g}: {fate}")
            self._answer(verdict.step)
        return is_finite

    def _read_unread(self) -> None:
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self._read(unread)

    def _answer(self, step: int) -> None:
        """Go on after the step after `step` steps, or raise what has to follow from too many bad ones."""
        progress, guard = self.progress, self.settings.guard
        way_back = decide(progress.health, step, progress.left_out, guard)
        if way_back is None:
            return
        self.optimizer.clear_gradients()
        steps, documents = f"steps {way_back.first_step + 1:,} to {step + 1:,}", self.batches.described(step)
        if len(progress.left_out) >= guard.maximum_rollbacks:
            went_back = f", after going back {len(progress.left_out)} times" if progress.left_out else ""
            raise NumericsError(
                f"{steps} went wrong{went_back}; the last one was of {documents}",
                "look at these documents; a lower learning_rate or a longer warm-up needs a start anew (--force)",
            )
        if self.world.main:
            console.warn(f"{steps} went wrong and are left out, the run goes back to the checkpoint before; the last was of {documents}")
        raise way_back

    def _observe(self, report: StepReport) -> None:
        due = [observer for observer in self.observers if observer.due(report.step)]
        if not due:
            return
        self.watch.at("look", report.step - 1)
        report = self._awaited(report)
        trained_with_dropout = self.model.training
        self.model.eval()
        # Compiling once more for a pass without gradients costs more than it saves.
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if self.machine.compiled else nullcontext():
            for observer in due:
                measured = observer.observe(report)
                if "validation/loss" in measured:
                    self._record(report.step, measured["validation/loss"])
        self.model.train(trained_with_dropout)

    def _record(self, step: int, validation_loss: float) -> None:
        """In a row of bad steps nothing is saved, so what is measured there cannot be the best of the run and does not count."""
        self._read_unread()
        if self.progress.health.bad_since is None or step == self.plan.steps:
            self.progress = replace(self.progress, validation_losses=(*self.progress.validation_losses, (step, validation_loss)))

    def _awaited(self, report: StepReport) -> StepReport:
        """The report of a step once the device has done it: observers wait for its numbers, but the time belongs to the steps."""
        if self.world.device.type == "cuda":
            started = time.monotonic()
            torch.cuda.synchronize(self.world.device)
            self.seconds += time.monotonic() - started
        return replace(report, seconds=self.seconds)
