"""What a run will take, gathered before anything is made: recipe -> [planning] -> `RunPlan` -> the tables of `fledge plan`.

Everything is computed but the seconds of a step, which a short probe measures with random tokens on a model of the recipe's shape. What a
run has made already (a tokenizer, token sets) is used where it is there, and is never needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fledge.core import artifact, process
from fledge.core.errors import ArtifactError, ConfigError
from fledge.model.adapters import add_adapter
from fledge.model.cost import flops_per_token, parameter_count, trained_parameter_count
from fledge.model.folder import read_config
from fledge.model.llama import Llama
from fledge.model.memory import MemoryBytes, MicroBatch, micro_batch_that_fits, training_memory
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, padded_vocabulary_size
from fledge.stages import CONTENT_OF, TRAINING_STAGES, Stage, has_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run
from fledge.tokens.importing import PRESETS
from fledge.tokens.shards import open_token_set
from fledge.training.batches import Batch
from fledge.training.compiling import ASSUMED_CPU_FLOPS
from fledge.training.devices import DEVICES, USABLE_SHARE, Device, starting_seconds
from fledge.training.forecast import (
    COMPILED_SPEEDUP,
    StageLength,
    Warned,
    largest_checkpoint_bytes,
    micro_batch,
    stage_length,
    stage_seconds,
    stage_warnings,
    vocabulary_warnings,
)
from fledge.training.objectives import make_objective
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine, World, choose_machine, open_world
from fledge.training.probe import StepSeconds, measure, measure_pass, random_batch
from fledge.training.resident import SHARE_OF_MEMORY
from fledge.training.settings import TrainingSettings
from fledge.verbs.corpus_space import DiskUse, folder_bytes, texts_and_tokens, token_bytes

PROBE_SECONDS = 20.0
"""For all stages together; a single row may take longer."""
CPU_SHARE = 0.9
"""Of the memory that is free, that may be planned with."""


@dataclass(frozen=True)
class StageWork:
    """What one training stage computes, on any machine."""

    stage: Stage
    length: StageLength
    flops_per_token: int
    """At the longest rows."""


@dataclass(frozen=True)
class StagePlan(StageWork):
    """One training stage on this machine."""

    epochs: float | None
    """None before there are tokens."""
    batch: MicroBatch
    """The one that fits; of one row where not even that fits."""
    fits: bool
    memory: MemoryBytes
    available_bytes: float
    step: StepSeconds
    is_measured: bool
    """Whether by the probe; else from an assumed speed."""
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.length.batch_rows * self.length.row_tokens / self.step.step(self.length.batch_rows)


@dataclass(frozen=True)
class DeviceForecast:
    """All training stages on another device."""

    device: Device
    batch_rows: int | None
    """At once, in the first stage; None if one row of any stage does not fit."""
    peak_bytes: int
    """Of the stage that needs most, with as many rows at once as fit, else with one."""
    tokens_per_second: float
    """Of the first stage."""
    seconds: float
    price: float


@dataclass(frozen=True)
class RunPlan:
    """Everything `fledge plan` says but the levers."""

    config: ModelConfig
    machine: Machine
    device: torch.device
    stages: tuple[StagePlan, ...]
    disk: tuple[DiskUse, ...]
    devices: tuple[DeviceForecast, ...]
    warnings: tuple[Warned, ...]


@dataclass(frozen=True)
class Work:
    """What a run computes and what other devices would make of it; nothing of this machine."""

    config: ModelConfig
    stages: tuple[StageWork, ...]
    devices: tuple[DeviceForecast, ...]


def plan_work(run: Run, devices: tuple[Device, ...] = DEVICES, rate: float | None = None) -> Work:
    """All that is known without measuring; `rate` is the price of an hour, else each device's own. Raises ConfigError."""
    stages = [stage for stage in TRAINING_STAGES if has_stage(stage, run)]
    if not stages:
        raise ConfigError("the recipe has no training stage to plan", "add a section pretrain, sft or dpo to it")
    config = model_config(run, stages[0])
    works = []
    for stage in stages:
        settings: TrainingSettings = run.recipe.section(stage)
        length = stage_length(settings, _packed_row_tokens(run, stage), parameter_count(config))
        works.append(StageWork(stage, length, flops_per_token(config, length.row_tokens, settings.lora)))
    return Work(config, tuple(works), tuple(_on_device(run, config, works, device, rate) for device in devices))


def plan_run(run: Run, devices: tuple[Device, ...] = DEVICES, rate: float | None = None, probe_seconds: float = PROBE_SECONDS) -> RunPlan:
    """Plan every training stage of a run; `rate` is the price of an hour, no `probe_seconds`: no step is tried, its speed is assumed.

    Raises ConfigError if it trains nothing.
    """
    work = plan_work(run, devices, rate)
    config, first = work.config, work.stages[0].stage
    with open_world(run.recipe.section(first).device) as world:
        flops = sum(one.length.tokens * flops_per_token(config, one.length.row_tokens) for one in work.stages)
        machine = choose_machine(run.recipe.section(first), world.device, flops)
        process.keep_freed_memory()
        prober = _Prober(config, world, machine, probe_seconds / len(work.stages))
        planned = tuple(_plan_stage(run, one, prober) for one in work.stages)
        device = world.device
    said = [*vocabulary_warnings(config)]
    for one in planned:
        said += stage_warnings(one.stage, run.recipe.section(one.stage), one.length, one.seconds, one.epochs)
    return RunPlan(config, machine, device, planned, tuple(_disk(run, config, planned)), work.devices, tuple(said))


def model_config(run: Run, first: Stage) -> ModelConfig:
    """The shape that the run trains: the recipe's with the tokenizer's vocabulary, or that of the checkpoint it starts from."""
    given = run.recipe.section(first).start_from
    if given is not None:
        return read_config(find_checkpoint(given))
    return ModelConfig(run.recipe.model, padded_vocabulary_size(_vocabulary_size(run)))


def _vocabulary_size(run: Run) -> int:
    """Of the tokenizer that is there, or of the one that will be trained."""
    with suppress(ArtifactError):
        found = run.tokenizer()
        if "vocabulary_size" in found.stats:
            return int(found.stats["vocabulary_size"])
    settings, training = run.recipe.tokenizer, run.recipe.pretrain
    if training is not None and training.tokens:
        return open_token_set(Path(training.tokens[0])).vocabulary_size
    if settings is not None:
        return settings.vocabulary_size if settings.preset is None else PRESETS[settings.preset].vocabulary_size
    raise ConfigError("the size of the vocabulary is not known yet", f"make the tokenizer first: fledge tokenizer {run.command}")


def _packed_row_tokens(run: Run, stage: Stage) -> int:
    settings: TrainingSettings = run.recipe.section(stage)
    if settings.tokens and settings.sequence_length is None:
        return open_token_set(Path(settings.tokens[0])).row_tokens or run.recipe.model.max_position_embeddings
    return run.recipe.pack.sequence_length if run.recipe.pack is not None else run.recipe.model.max_position_embeddings


def _token_counts(run: Run, stage: Stage) -> tuple[int, int] | None:
    """Tokens to train and to validate on, if they are packed."""
    settings: TrainingSettings = run.recipe.section(stage)
    paths = [Path(path) for path in settings.tokens] or [run.folder / "pack" / CONTENT_OF[stage]]
    with suppress(ArtifactError, KeyError):
        stats = [artifact.open_artifact(path, "tokens").stats for path in paths]
        return sum(one["train"]["tokens"] for one in stats), sum(one["validation"]["tokens"] for one in stats)
    return None


class _Prober:
    """Does some steps of the recipe's model, which it makes when it is first needed."""

    def __init__(self, config: ModelConfig, world: World, machine: Machine, budget_seconds: float) -> None:
        self.config, self.world, self.machine, self._budget_seconds = config, world, machine, budget_seconds
        self._model: Llama | None = None

    @property
    def model(self) -> Llama:
        if self._model is None:
            self._model = Llama(self.config, 0).to(self.world.device)
        return self._model

    def _trained(self, lora: LoraSettings | None) -> Llama:
        """The model as a stage trains it: an adapter is put into one of its own."""
        if lora is None:
            return self.model
        adapted = Llama(self.config, 0)
        add_adapter(adapted, Adapter(lora, Path()), 0)
        return adapted.to(self.world.device)

    def step_seconds(self, settings: TrainingSettings, batch: MicroBatch, fits: bool) -> tuple[StepSeconds, bool]:
        """Of this stage, and whether that was measured: not where a row does not fit or would take too long."""
        flops = batch.row_tokens * flops_per_token(self.config, batch.row_tokens, settings.lora)
        device = self.world.device.type
        assumed = StepSeconds(flops / (ASSUMED_CPU_FLOPS * self.machine.threads), 0.0)
        if not fits or not self._budget_seconds or (device == "cpu" and assumed.row > self._budget_seconds):
            return assumed, False
        started, model = time.monotonic(), self._trained(settings.lora)
        model.model.activation_checkpointing = settings.activation_checkpointing
        objective, optimizer = make_objective(settings.objective), make_optimizer(model, settings, device != "cpu")
        as_pairs = settings.objective.kind == "preference"

        def rows(count: int) -> Batch:
            isolates = batch.isolate_documents
            return random_batch(count, batch.row_tokens, self.config.vocabulary_size, isolates, as_pairs, self.world.device)

        took = measure(model, objective, optimizer, self.machine, rows(1), runs=1)
        left = self._budget_seconds - (time.monotonic() - started)
        count = min(batch.rows, int(left / 2 / took.row))
        if count > 1:
            took = replace(took, row=measure_pass(model, objective, self.machine, rows(count)) / count)
        speedup = COMPILED_SPEEDUP.get(device, 1.0) if self.machine.compiled else 1.0
        return replace(took, row=took.row / speedup), True


def _plan_stage(run: Run, work: StageWork, prober: _Prober) -> StagePlan:
    stage, length = work.stage, work.length
    settings, config, device = run.recipe.section(stage), prober.config, prober.world.device
    counts = _token_counts(run, stage)
    whole = micro_batch(settings, length, device.type, prober.machine.precision, prober.machine.compiled)
    available = available_bytes(device)
    resident = _resident_bytes(settings, length, config, counts, available) if device.type == "cuda" else 0
    rows = micro_batch_that_fits(config, whole, settings.optimizer.kind, available, resident)
    batch = replace(whole, rows=rows or 1)
    step, is_measured = prober.step_seconds(settings, batch, rows is not None)
    epochs = _epochs(length, counts)
    validation_rows = counts[1] // length.row_tokens if counts else settings.validation_rows or 0
    trained = trained_parameter_count(config, settings.lora)
    return StagePlan(
        stage,
        length,
        work.flops_per_token,
        epochs,
        batch,
        rows is not None,
        training_memory(config, batch, settings.optimizer.kind, resident),
        available,
        step,
        is_measured,
        stage_seconds(settings, length, step.step(length.batch_rows), step.row, trained, validation_rows, epochs),
    )


def _epochs(length: StageLength, counts: tuple[int, int] | None) -> float | None:
    return length.tokens / counts[0] if counts and counts[0] else None


def available_bytes(device: torch.device) -> float:
    """Memory that may be planned with."""
    if device.type == "cuda":
        return USABLE_SHARE * torch.cuda.get_device_properties(device).total_memory
    return CPU_SHARE * (process.available_memory_bytes() or float("inf"))


def _resident_bytes(
    settings: TrainingSettings, length: StageLength, config: ModelConfig, counts: tuple[int, int] | None, memory_bytes: float
) -> int:
    """Training tokens on the device; before they are packed, as many as the stage trains on."""
    size = (counts[0] if counts else length.tokens) * token_bytes(config)
    is_wanted = settings.tokens_on_device == "on" or (settings.tokens_on_device == "auto" and size <= SHARE_OF_MEMORY * memory_bytes)
    return size if is_wanted and settings.objective.kind != "preference" else 0


def _on_device(run: Run, config: ModelConfig, stages: Sequence[StageWork], device: Device, rate: float | None) -> DeviceForecast:
    """All stages on another device; torch compiles from compute capability 7.0 on."""
    rows: list[int | None] = []
    speeds: list[float] = []
    peak_bytes, seconds = 0, 0.0
    for one in stages:
        settings = run.recipe.section(one.stage)
        batch = micro_batch(settings, one.length, "cuda", device.precision, compiled=device.compute_capability >= (7, 0))
        resident = _resident_bytes(settings, one.length, config, _token_counts(run, one.stage), device.memory_bytes)
        rows.append(micro_batch_that_fits(config, batch, settings.optimizer.kind, device.usable_bytes, resident))
        memory = training_memory(config, replace(batch, rows=rows[-1] or 1), settings.optimizer.kind, resident)
        peak_bytes = max(peak_bytes, memory.total)
        speed = device.tokens_per_second(one.flops_per_token, config.settings.hidden_size)
        micro_batches = -(-one.length.batch_rows // (rows[-1] or 1))
        is_compiled = batch.compiled and settings.objective.kind != "preference"
        least_seconds = starting_seconds(
            config.settings.num_hidden_layers, micro_batches, is_compiled, with_muon=settings.optimizer.kind == "muon"
        )
        speeds.append(min(speed, one.length.batch_rows * one.length.row_tokens / least_seconds))
        seconds += max(one.length.tokens / speed, one.length.steps * least_seconds)
    price = (device.dollars_per_hour if rate is None else rate) * seconds / 3600
    return DeviceForecast(device, None if None in rows else rows[0], peak_bytes, speeds[0], seconds, price)


def _disk(run: Run, config: ModelConfig, stages: Sequence[StageWork]) -> Iterator[DiskUse]:
    """Corpus, tokens and checkpoints at the largest moment."""
    yield from texts_and_tokens(run, config)
    for one in stages:
        settings = run.recipe.section(one.stage)
        trained, epochs = trained_parameter_count(config, settings.lora), _epochs(one.length, _token_counts(run, one.stage))
        size = largest_checkpoint_bytes(settings, one.length, trained, epochs)
        folder = run.folder / one.stage
        there_bytes = size if (folder / artifact.MANIFEST).is_file() else folder_bytes(folder)
        how = f"{settings.keep_checkpoints} kept, the best, one being written"
        yield DiskUse(f"checkpoints of {one.stage}", size, how, str(folder), there_bytes)
