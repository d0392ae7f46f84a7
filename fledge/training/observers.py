"""Those who look on while a run trains: the log, the validation, the samples. None of them can change a weight.

Every process asks every observer at the same steps: validation is shared out over the processes, the others act on the main one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.core import console
from fledge.core.metrics import Metrics
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.training.batches import Batch, RowReader
from fledge.training.objectives import NextToken, Objective
from fledge.training.parallel import Machine, World
from fledge.training.plan import Row, rows_per_rank, slice_for_rank
from fledge.training.settings import TrainingSettings
from fledge.training.trainer import StepReport, is_due


class Log:
    """A line for people and a record for `Metrics`; the first step too, whose loss tells whether the start is sane."""

    def __init__(self, settings: TrainingSettings, metrics: Metrics, start_step: int) -> None:
        """`start_step`: steps done before this process began, whose seconds it does not count."""
        self._settings, self._metrics = settings, metrics
        self._before_step, self._before_seconds = start_step, 0.0

    def due(self, step: int) -> bool:
        return step == 1 or is_due(step, self._settings.log_every_steps, self._settings.steps)

    def observe(self, report: StepReport) -> dict[str, float]:
        values = {f"train/{name}" if name == "loss" else name: float(value) for name, value in report.measures.items()}
        seconds_per_step, tokens_per_second = self._pace(report)
        record = {
            **values,
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": float(report.gradient_norm),
            "train/tokens": report.tokens,
            "train/tokens_per_second": tokens_per_second,
            "train/epoch": report.epochs,
        }
        self._metrics.record(report.step, record)
        left = console.format_seconds(seconds_per_step * (self._settings.steps - report.step))
        console.info(
            f"step {report.step:,}/{self._settings.steps:,}  loss {values['train/loss']:.4f}  lr {report.learning_rate:.2e}  "
            f"gradient norm {record['train/gradient_norm']:.3f}  {tokens_per_second:,.0f} tokens/s  {left} left"
        )
        return {}

    def _pace(self, report: StepReport) -> tuple[float, float]:
        """Seconds per step and tokens per second since the last line; of a first line since the process started."""
        tokens_per_step = report.tokens // report.step
        steps, seconds = report.step - self._before_step, report.seconds - self._before_seconds
        self._before_step, self._before_seconds = report.step, report.seconds
        seconds_per_step = max(seconds, 1e-9) / steps
        return seconds_per_step, tokens_per_step / seconds_per_step


class Validate:
    """Means over validation rows: whatever the objective measures and, for next tokens, bits per byte of text.

    bits per byte = sum of nll / ln 2 / UTF-8 bytes of the target tokens, which compares across tokenizers; control tokens add
    to the numerator only.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        metrics: Metrics,
        model: Llama,
        objective: Objective,
        reader: RowReader,
        micro_batch_rows: int,
        world: World,
        machine: Machine,
        byte_lengths: NDArray[np.int64],
    ) -> None:
        self._settings, self._metrics, self._model, self._objective = settings, metrics, model, objective
        self._reader, self._micro_batch_rows, self._world, self._machine = reader, micro_batch_rows, world, machine
        self._byte_lengths = torch.from_numpy(byte_lengths.copy()).to(world.device)
        self.rows = spread(reader.all_rows(), settings.validation_rows)

    def due(self, step: int) -> bool:
        return bool(self.rows) and is_due(step, self._settings.validate_every_steps, self._settings.steps)

    def observe(self, report: StepReport) -> dict[str, float]:
        values = self.measure()
        self._metrics.record(report.step, values)
        shown = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in values.items())
        console.info(f"step {report.step:,}/{self._settings.steps:,}  validation: {shown}")
        return values

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """What the model achieves on the validation rows, by metric name."""
        own_rows = slice_for_rank(self.rows, self._world.rank, self._world.size)
        # Objective weight, bytes, then the objective's measures; float64, so the number of micro-batches does not show.
        sums = torch.zeros(2 + len(self._objective.measures), dtype=torch.float64, device=self._world.device)
        with console.progress("validate", rows_per_rank(len(self.rows), self._world.size), "rows") as progress:
            # As many forward passes in every process, empty ones too: where parameters are cut, all put them together.
            for start in range(0, rows_per_rank(len(self.rows), self._world.size), self._micro_batch_rows):
                chunk = own_rows[start : start + self._micro_batch_rows]
                batch = self._reader.batch(chunk, self._micro_batch_rows)
                sums += self._sums(batch.to(self._world.device), self._objective.weight(batch))
                progress.advance(len(chunk))
        weight, text_bytes, *measures = self._world.sum(sums).tolist()
        values = {f"validation/{name}": value / max(weight, 1.0) for name, value in zip(self._objective.measures, measures, strict=True)}
        if isinstance(self._objective, NextToken) and text_bytes > 0:
            values["validation/bits_per_byte"] = measures[self._objective.measures.index("loss")] / math.log(2) / text_bytes
        return values

    def _sums(self, batch: Batch, weight: float) -> Tensor:
        with self._machine.autocast(self._world.device):
            result = self._objective(self._model, batch)
        text_bytes = self._byte_lengths[batch.targets[batch.targets != IGNORE]].sum()
        head = torch.stack((torch.tensor(weight, device=self._world.device), text_bytes)).double()
        return torch.cat((head, torch.stack([result.measures[name] for name in self._objective.measures]).double()))


class Sample:
    """Shows a text that the model writes; `sample` brings its own random numbers."""

    def __init__(self, settings: TrainingSettings, model: Llama, world: World, sample: Callable[[Llama], str]) -> None:
        self._settings, self._model, self._world, self._sample = settings, model, world, sample

    def due(self, step: int) -> bool:
        return self._world.main and is_due(step, self._settings.sample_every_steps, self._settings.steps)

    def observe(self, report: StepReport) -> dict[str, float]:
        console.info(f"step {report.step:,}/{self._settings.steps:,}  sample: {self._sample(self._model)}")
        return {}


def spread(rows: Sequence[Row], count: int | None) -> list[Row]:
    """`count` of the rows at even distances, or all of them."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]
