"""What a training stage expects before its first step, kept beside it, and what it then took: for the report, which shows both.

The memory is computed (`model.memory`), the time follows from two steps that change nothing (`training.probe`). Peaks are those of the
process on a CPU, and of what torch allocated on a GPU, from the first step on.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fledge.core import console, disk, process
from fledge.model.cost import trained_parameter_count
from fledge.model.llama import Llama
from fledge.model.memory import training_memory
from fledge.training.batches import BatchLoader
from fledge.training.forecast import first_longest_step, micro_batch, planned_length, stage_seconds
from fledge.training.objectives import Objective
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine, World
from fledge.training.plan import rows_per_rank
from fledge.training.probe import measure
from fledge.training.resident import ResidentRows
from fledge.training.settings import TrainingSettings

PREDICTION = "prediction.json"
PROBE_RUNS = {"cpu": 1}
"""Timed steps; on other devices, where a step is short, more."""


@dataclass(frozen=True)
class Prediction:
    """Of a whole stage, made before its first step."""

    peak_bytes: int
    seconds: float | None
    """None where several processes share the work, and where a stage that was stopped goes on."""


def predict(
    folder: Path,
    model: Llama,
    objective: Objective,
    machine: Machine,
    world: World,
    settings: TrainingSettings,
    batches: BatchLoader,
    validation_rows: int,
    process_bytes: int,
) -> Prediction:
    """Expect and note it, say it, and count peaks from here on. `process_bytes`: what the process held before the model was made."""
    plan = batches.plan
    length = planned_length(plan)
    whole = micro_batch(settings, length, world.device.type, machine.precision, machine.compiled)
    batch = replace(whole, rows=batches.micro_batch_rows)
    resident_bytes = batches.reader.size_bytes if isinstance(batches.reader, ResidentRows) else 0
    memory = training_memory(model.config, batch, settings.optimizer.kind, resident_bytes, process_bytes)
    seconds = None
    if world.size == 1:
        # What is counted are the longest rows, which the first phase of a curriculum does not have.
        longest = batches.micro_batches(first_longest_step(plan))[0].to(world.device)
        optimizer = make_optimizer(model, settings, world.device.type != "cpu" or machine.precision == "bf16")
        took = measure(model, objective, optimizer, machine, longest, PROBE_RUNS.get(world.device.type, 3))
        step_seconds = took.step(rows_per_rank(length.batch_rows, world.size))
        trained = trained_parameter_count(model.config, settings.lora)
        epochs = plan.epochs(plan.steps)
        seconds = stage_seconds(settings, length, step_seconds, took.row, trained, validation_rows, epochs)
        del longest, optimizer
        gc.collect()
        console.say(f"expected: {console.format_seconds(seconds)}, {console.format_bytes(memory.total)} of memory")
    restart_peak(world.device)
    prediction = Prediction(memory.total, None if seconds is None else round(seconds, 3))
    if world.main:
        disk.write_json(folder / PREDICTION, asdict(prediction))
    return prediction


def forget_seconds(folder: Path, world: World) -> None:
    """Of a stage that goes on: what this process takes is no longer comparable to what was expected of the whole."""
    known = predicted(folder)
    if known is not None and world.main:
        disk.write_json(folder / PREDICTION, asdict(replace(known, seconds=None)))
    restart_peak(world.device)


def predicted(folder: Path) -> Prediction | None:
    """What a stage expected; None if it was begun by a version that did not."""
    path = folder / PREDICTION
    return Prediction(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def restart_peak(device: torch.device) -> None:
    """Count `peaks.peak_memory_bytes` from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        process.restart_peak()
