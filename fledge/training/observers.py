"""Those who look on while a run trains: the log, the validation, the benchmarks, the samples. None of them can change a weight.

Every process asks every observer at the same steps: validation and benchmarks are shared out over the processes, the others act on the
main one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.core import console
from fledge.core.metrics import SOURCE_TOKENS, Metrics
from fledge.core.samples import SampledText, SampleRecord
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.model.precision import sum_dtype
from fledge.training.batches import Batch, RowReader
from fledge.training.cadence import benchmarks_are_due, is_due, spread, validated_rows, validation_is_due
from fledge.training.figures import Figures, Gauge
from fledge.training.layout import parameters_by_name, root_together, whole
from fledge.training.objectives import NextToken, Objective
from fledge.training.parallel import Machine, World
from fledge.training.plan import Plan, rows_per_rank, slice_for_rank
from fledge.training.settings import TrainingSettings
from fledge.training.trainer import StepReport

WORTH_TELLING_WAIT_SHARE = 0.01
"""Share of the time spent waiting for data from which on the line says so."""


class Log:
    """A line for people and a record for `Metrics`; also at the first step of a run, whose loss tells whether the start is sane, and at the
    first of each phase.
    """

    def __init__(self, settings: TrainingSettings, plan: Plan, metrics: Metrics, gauge: Gauge, model: Llama) -> None:
        self._settings, self._plan, self._metrics, self._gauge, self._model = settings, plan, metrics, gauge, model

    def due(self, step: int) -> bool:
        return self._opens_phase(step) or is_due(step, self._settings.log_every_steps, self._plan.steps)

    def observe(self, report: StepReport) -> dict[str, float]:
        values = {f"train/{name}" if name == "loss" else name: float(value) for name, value in report.measures.items()}
        figures = self._gauge.read(report)
        record = {
            **values,
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": float(report.gradient_norm),
            "train/clip_factor": clip_factor(float(report.gradient_norm), self._settings.gradient_clip),
            "train/weight_norm": float(whole(torch.nn.utils.get_total_norm(parameters_by_name(self._model).values()))),
            "train/skipped_steps": report.skipped_steps,
            "train/spikes": report.spikes,
            "train/tokens": report.tokens,
            "train/epoch": report.epochs,
            **figures.record(),
            **self._source_tokens(report.step),
            **self._phase(report.step),
            **({"checkpoint_failures": report.checkpoint_failures} if report.checkpoint_failures else {}),
        }
        self._metrics.record(report.step, record)
        if len(self._plan.phases) > 1 and self._opens_phase(report.step):
            phase = self._plan.phase(report.step - 1)
            of_all = f"phase {record['train/phase']} of {len(self._plan.phases)}"
            console.info(f"step {report.step:,}/{self._plan.steps:,}  {of_all}: {phase.batch_rows:,} rows x {phase.row_tokens:,} tokens")
        console.info(progress_line(f"{report.step:,}/{self._plan.steps:,}", record, figures, console.columns()))
        return {}

    def _opens_phase(self, step: int) -> bool:
        return step == self._plan.start.step + 1 or self._plan.phase_number(step - 1) != self._plan.phase_number(step - 2)

    def _phase(self, step: int) -> dict[str, int]:
        """Counted from 1, and the length of its rows, where there are several."""
        if len(self._plan.phases) == 1:
            return {}
        return {"train/phase": self._plan.phase_number(step - 1) + 1, "train/row_tokens": self._plan.phase(step - 1).row_tokens}

    def _source_tokens(self, step: int) -> dict[str, int]:
        """What each source has given so far, where there are several: how the mixture goes."""
        use = self._plan.use(step) if len(self._plan.sources) > 1 else {}
        return {f"{SOURCE_TOKENS}{name}": one.tokens for name, one in use.items()}


def progress_line(step: str, record: Mapping[str, float], figures: Figures, columns: int | None) -> str:
    """The figures that a person wants to see, smoothed, in at most so many columns: what does not fit is left to the records."""
    pace = figures.smoothed
    # In the order in which they are shown, each with its rank among those that give way to others.
    parts = [
        (0, f"step {step}"),
        (0, f"loss {record['train/loss']:.4f}"),
        (4, f"lr {record['train/learning_rate']:.2e}"),
        (3, f"gradient norm {record['train/gradient_norm']:.3f}"),
        (0, f"{pace.tokens_per_second:,.0f} tokens/s"),
        (2, "" if pace.mfu is None else f"MFU {pace.mfu:.0%}"),
        (1, f"data wait {pace.data_wait_share:.0%}" if pace.data_wait_share >= WORTH_TELLING_WAIT_SHARE else ""),
        (5, console.format_bytes(figures.peak_memory_bytes)),
        (0, f"{console.format_seconds(pace.seconds_left)} left" if pace.seconds_left > 0 else ""),
    ]
    for least_rank in range(6, 0, -1):
        line = "  ".join(part for rank, part in parts if part and rank < least_rank)
        if columns is None or len(line) <= columns:
            break
    return line


def clip_factor(gradient_norm: float, gradient_clip: float | None) -> float:
    """What clipping multiplies a gradient by, as torch does it."""
    return 1.0 if gradient_clip is None else min(1.0, gradient_clip / (gradient_norm + 1e-6))


class Validate:
    """Means over validation rows: whatever the objective measures and, for next tokens, bits per byte of text.

    bits per byte = sum of nll / ln 2 / UTF-8 bytes of the target tokens, which compares across tokenizers; control tokens add
    to the numerator only. The line says how much of the run is done and how often the text was read; where the loss rises after a
    source was read through, a warning says so once.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        plan: Plan,
        metrics: Metrics,
        model: Llama,
        objective: Objective,
        reader: RowReader,
        micro_batch_rows: int,
        world: World,
        machine: Machine,
        byte_lengths: NDArray[np.int64],
        losses: Sequence[tuple[int, float]],
    ) -> None:
        """`losses`: (step, loss) of the validations before this process began."""
        self._settings, self._plan, self._metrics, self._model, self._objective = settings, plan, metrics, model, objective
        self._losses = list(losses)
        self._reader, self._micro_batch_rows, self._world, self._machine = reader, micro_batch_rows, world, machine
        self._byte_lengths = torch.from_numpy(byte_lengths.copy()).to(world.device)
        rows = reader.all_rows()
        self.rows = spread(rows, validated_rows(len(rows), settings))
        self.row_share = len(self.rows) / max(1, len(rows))

    def due(self, step: int) -> bool:
        return bool(self.rows) and validation_is_due(step, self._settings, self._plan)

    def observe(self, report: StepReport) -> dict[str, float]:
        values = self.measure()
        self._metrics.record(report.step, {**values, "validation/row_share": self.row_share})
        on_part = "" if self.row_share == 1 else f" on {self.row_share:.0%} of the rows"
        shown = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in values.items())
        share = report.step / self._plan.steps
        console.info(f"step {report.step:,}/{self._plan.steps:,} ({share:.0%})  validation{on_part}: {shown}  {self._epochs(report)}")
        self._losses.append((report.step, values["validation/loss"]))
        best = rise(self._losses, self._is_past_an_epoch)
        if best is not None:
            console.warn(
                f"the validation loss rises, {values['validation/loss']:.4f} after {best[1]:.4f} at step {best[0]:,}, "
                f"on text that was read before: {self._epochs(report)}; train shorter, or on more text"
            )
        return values

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """What the model achieves on the validation rows, by metric name."""
        own_rows = slice_for_rank(self.rows, self._world.rank, self._world.size)
        # Objective weight, bytes, then the objective's measures; float64, so the number of micro-batches does not show.
        sums = torch.zeros(2 + len(self._objective.measures), dtype=sum_dtype(self._world.device), device=self._world.device)
        with console.progress("validate", rows_per_rank(len(self.rows), self._world.size), "rows") as progress:
            # As many forward passes in every process, empty ones too: where parameters are cut, all put them together.
            for start in range(0, rows_per_rank(len(self.rows), self._world.size), self._micro_batch_rows):
                chunk = own_rows[start : start + self._micro_batch_rows]
                sums += self._sums(self._reader.batch(chunk, self._micro_batch_rows).to(self._world.device))
                progress.advance(len(chunk))
        weight, text_bytes, *measures = self._world.sum(sums).tolist()
        values = {f"validation/{name}": value / max(weight, 1.0) for name, value in zip(self._objective.measures, measures, strict=True)}
        if isinstance(self._objective, NextToken) and text_bytes > 0:
            values["validation/bits_per_byte"] = measures[self._objective.measures.index("loss")] / math.log(2) / text_bytes
        return values

    def _epochs(self, report: StepReport) -> str:
        """How often the data has been read, and each source, if there are several."""
        sources = ", ".join(f"{name} {use.epochs:.2f}" for name, use in self._plan.use(report.step).items())
        return f"{report.epochs:.2f} epochs" + (f" ({sources})" if len(self._plan.sources) > 1 else "")

    def _is_past_an_epoch(self, step: int) -> bool:
        return any(use.epochs > 1 for use in self._plan.use(step).values())

    def _sums(self, batch: Batch) -> Tensor:
        with self._machine.autocast(self._world.device):
            result = self._objective(self._model, batch)
        text_bytes = (self._byte_lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE)).sum()
        values = (self._objective.weight(batch), text_bytes, *(result.measures[name] for name in self._objective.measures))
        return torch.stack([value.to(sum_dtype(self._world.device)) for value in values])


@dataclass(frozen=True)
class BenchmarkFigure:
    """What a model scored on the questions of a benchmark."""

    name: str
    """BENCHMARK/METRIC."""
    value: float
    low: float | None
    """Of its 95 % interval; None where there is none."""
    high: float | None
    guessing: float | None
    """What guessing would reach."""
    n: int

    def record(self) -> dict[str, float | int]:
        """Under names of metrics.jsonl."""
        bounds = {"low": self.low, "high": self.high, "guessing": self.guessing, "n": self.n}
        name = f"benchmark/{self.name}"
        return {name: self.value, **{f"{name}/{bound}": value for bound, value in bounds.items() if value is not None}}

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g}" + ("" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})")


class AskBenchmarks:
    """Figures of benchmarks; `ask` brings the questions and the tokenizer along, and has every process take part."""

    def __init__(
        self,
        settings: TrainingSettings,
        plan: Plan,
        metrics: Metrics,
        model: Llama,
        ask: Callable[[Llama], Sequence[BenchmarkFigure]],
    ) -> None:
        self._settings, self._plan, self._metrics, self._model, self._ask = settings, plan, metrics, model, ask

    def due(self, step: int) -> bool:
        return benchmarks_are_due(step, self._settings, self._plan)

    def observe(self, report: StepReport) -> dict[str, float]:
        with root_together(self._model):
            figures = self._ask(self._model)
        self._metrics.record(report.step, {name: value for figure in figures for name, value in figure.record().items()})
        console.info(f"step {report.step:,}/{self._plan.steps:,}  benchmarks: {', '.join(map(str, figures))}")
        return {}


class Sample:
    """Shows and keeps what the model writes; `sample` gives (prompt, text) pairs and brings its own random numbers."""

    def __init__(
        self,
        settings: TrainingSettings,
        plan: Plan,
        model: Llama,
        world: World,
        sample: Callable[[Llama], Sequence[tuple[str, str]]],
        record: SampleRecord | None,
    ) -> None:
        """`record`: of the process that keeps the files."""
        self._settings, self._plan, self._model, self._world, self._sample, self._record = settings, plan, model, world, sample, record

    def due(self, step: int) -> bool:
        return self._world.main and is_due(step, self._settings.sample_every_steps, self._plan.steps)

    def observe(self, report: StepReport) -> dict[str, float]:
        samples = [SampledText(report.step, prompt, text) for prompt, text in self._sample(self._model)]
        for one in samples:
            asked = f" after {one.prompt!r}" if one.prompt else ""
            console.info(f"step {report.step:,}/{self._plan.steps:,}  sample{asked}: {one.text}")
        if self._record is not None:
            self._record.append(samples)
        return {}


def rise(losses: Sequence[tuple[int, float]], is_past_an_epoch: Callable[[int], bool]) -> tuple[int, float] | None:
    """The (step, loss) of the best validation where the last of them is above it after an epoch, and the first to be so since."""
    best = min(reversed(losses), key=lambda point: point[1])
    above = [step for step, _ in losses if step > best[0] and is_past_an_epoch(step)]
    return best if above == [losses[-1][0]] else None
