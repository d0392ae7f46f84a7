"""What a stage will take, and what about it deserves a warning: settings and seconds of a step -> [forecast] -> plan, report.

Pure functions over plain numbers. Where the seconds of a step come from is `probe`'s business, where bytes come from `model.memory`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fledge.core.console import format_seconds
from fledge.model.cost import parameter_count
from fledge.model.memory import MicroBatch
from fledge.model.settings import ModelConfig
from fledge.training.cadence import validated_rows
from fledge.training.phases import make_plan
from fledge.training.plan import Plan, Source
from fledge.training.settings import TrainingSettings
from fledge.training.sound_checkpoints import KEPT_WHILE_RUNNING

if TYPE_CHECKING:
    from fledge.model.precision import Precision

CHECKPOINT_BYTES_PER_PARAMETER = {"adamw": 12, "muon": 8}
"""fp32 weights with two moments or one; with Muon the embedding, which has two, is counted as the body."""
WRITTEN_BYTES_PER_SECOND = 300e6
"""Of a checkpoint, hashed while it is written to a solid-state disk."""
FORWARD_SHARE = 1 / 3
"""Of a pass forward and backward (PaLM's counting, see `model.cost`)."""

COMPILED_SPEEDUP = {"cpu": 1.15, "cuda": 1.65}
"""Of the whole step: 1.1 to 1.3 on a CPU; on an H200 with 110M parameters (benchmarks/results/train_gpu-H200.json)."""

_MANY_TOKENS = 1 << 40
"""How long a stage is does not depend on how much text there is."""

SHORT_WARMUP_SHARE = 0.1
RARE_SAVING_SECONDS = 1800
MANY_EPOCHS = 4
"""Repeating text up to four times is about as good as new text, further times are worth less and less (arXiv:2305.16264)."""
LARGE_VOCABULARY_SHARE = 0.6

LOSS_ABOVE_LAW = 0.3
"""Nats by which published runs on web pages lie above the law: GPT-2 124M on 10 billion tokens of FineWeb, 3.28 for 3.02."""
LEAST_TOKENS_FOR_LAW = 100_000_000
"""The runs that the law was fitted to had more."""
VOCABULARIES_FOR_LAW = range(16_384, 65_537)
"""Whose tokens are about as long as those of the law's 32,000."""


@dataclass(frozen=True)
class Warned:
    """What is allowed and probably not meant."""

    text: str
    change: str = ""
    """The override in it, as it is typed; empty if no single one helps."""


@dataclass(frozen=True)
class StageLength:
    """How much a stage trains."""

    steps: int
    batch_rows: int
    row_tokens: int
    """Of the longest rows."""
    tokens: int
    """Of the whole stage, padding included."""


def stage_length(settings: TrainingSettings, packed_row_tokens: int, parameters: int) -> StageLength:
    """What the settings say; rows that were packed bring their own length. Raises ConfigError."""
    packed = packed_row_tokens if settings.longest_sequence_length is None else None
    one_source = replace(settings, mixture=None, phases=tuple(replace(phase, mixture=None) for phase in settings.phases))
    return planned_length(make_plan([Source("all", _MANY_TOKENS, "", packed)], one_source, parameters))


def planned_length(plan: Plan) -> StageLength:
    """How much a plan trains, in batches of its longest rows."""
    rows = max(phase.batch_rows for phase in plan.phases if phase.row_tokens == plan.longest_row_tokens)
    return StageLength(plan.steps - plan.start.step, rows, plan.longest_row_tokens, plan.tokens(plan.steps) - plan.start.tokens)


def first_longest_step(plan: Plan) -> int:
    """Steps before the first one that reads the rows and the batch of `planned_length`."""
    length, step = planned_length(plan), plan.start.step
    for phase in plan.phases:
        if (phase.row_tokens, phase.batch_rows) == (length.row_tokens, length.batch_rows):
            break
        step += phase.steps
    return step


def micro_batch(settings: TrainingSettings, length: StageLength, device: str, precision: Precision, compiled: bool) -> MicroBatch:
    """As much as the settings let a stage compute at once, on a device of torch's name."""
    return MicroBatch(
        min(settings.micro_batch_rows or length.batch_rows, length.batch_rows),
        length.row_tokens,
        "cuda" if device == "cuda" else "mps" if device == "mps" else "cpu",
        precision,
        compiled,
        settings.isolate_documents or settings.objective.kind == "preference",
        settings.activation_checkpointing,
        settings.lora,
    )


def times(steps: int, every_steps: int | None) -> int:
    """How often something happens that is due every so many steps and at the end."""
    return 1 if every_steps is None else -(-steps // every_steps)


def validations(settings: TrainingSettings, length: StageLength, epochs: float | None) -> int:
    """How often a stage of so many epochs (None: not known yet) validates; not more than once per step, and at least at its end."""
    if settings.validate_every_tokens is not None:
        return min(length.steps, times(length.tokens, settings.validate_every_tokens))
    if settings.validate_every_epochs is not None:
        return min(length.steps, max(1, math.ceil((epochs or 0.0) / settings.validate_every_epochs)))
    return times(length.steps, settings.validate_every_steps)


def saves(settings: TrainingSettings, length: StageLength, epochs: float | None) -> int:
    """How often a stage saves, at most: marks of different kinds may fall on one step."""
    at_validations = validations(settings, length, epochs) if settings.save_at_validations else 0
    return min(length.steps, times(length.steps, settings.save_every_steps) + at_validations + _kept_epochs(settings, epochs))


def _kept_epochs(settings: TrainingSettings, epochs: float | None) -> int:
    return int(epochs // settings.keep_every_epochs) if epochs and settings.keep_every_epochs else 0


def stage_seconds(
    settings: TrainingSettings,
    length: StageLength,
    step_seconds: float,
    row_seconds: float,
    parameters: int,
    validation_rows: int,
    epochs: float | None = None,
) -> float:
    """The whole stage: steps, validation (`row_seconds` being those of a row forward and backward), and checkpoints.

    `step_seconds` are those of a batch of the longest rows; other batches take as long as their tokens.
    """
    validated = validated_rows(validation_rows, settings) * validations(settings, length, epochs)
    saved_bytes = checkpoint_bytes(settings, parameters) * saves(settings, length, epochs)
    batches = length.tokens / (length.batch_rows * length.row_tokens)
    return batches * step_seconds + validated * FORWARD_SHARE * row_seconds + saved_bytes / WRITTEN_BYTES_PER_SECOND


def loss_by_law(config: ModelConfig, tokens: int) -> tuple[float, float] | None:
    """Lower and upper bound of the loss after so many new tokens, in nats per token; None where there is no law.

    Hoffmann et al. 2022 (arXiv:2203.15556), as refitted by Besiroglu et al. 2024 (arXiv:2404.10102), for a vocabulary of about 32,000.
    """
    if tokens < LEAST_TOKENS_FOR_LAW or config.vocabulary_size not in VOCABULARIES_FOR_LAW:
        return None
    loss = 1.8172 + 482.01 / parameter_count(config) ** 0.3478 + 2085.43 / tokens**0.3658
    return loss, loss + LOSS_ABOVE_LAW


def checkpoint_bytes(settings: TrainingSettings, parameters: int) -> int:
    """Of one checkpoint."""
    return CHECKPOINT_BYTES_PER_PARAMETER[settings.optimizer.kind] * parameters


def largest_checkpoint_bytes(settings: TrainingSettings, length: StageLength, parameters: int, epochs: float | None) -> int:
    """Of all that lie there at the largest moment: the kept ones, the best, and the next one while it is written beside them."""
    permanent = length.steps // settings.keep_every_steps if settings.keep_every_steps else 0
    kept = max(settings.keep_checkpoints, KEPT_WHILE_RUNNING) + 2 + permanent + _kept_epochs(settings, epochs)
    count = min(kept, saves(settings, length, epochs))
    return count * checkpoint_bytes(settings, parameters)


def stage_warnings(
    stage: str, settings: TrainingSettings, length: StageLength, seconds: float | None, epochs: float | None
) -> Iterator[Warned]:
    """Of one stage; `seconds` are predicted, `epochs` known once there are tokens."""
    warmup_steps, steps = settings.schedule.warmup_of(length.steps), length.steps
    least_steps = math.floor(SHORT_WARMUP_SHARE * steps)
    if warmup_steps < least_steps:
        by_steps = settings.schedule.warmup_fraction is None
        change = f"{stage}.schedule." + (f"warmup_steps={least_steps}" if by_steps else f"warmup_fraction={SHORT_WARMUP_SHARE}")
        yield Warned(
            f"{stage}: the warm-up takes {warmup_steps:,} of {steps:,} steps ({warmup_steps / steps:.1%}), less than "
            f"{SHORT_WARMUP_SHARE:.0%}; {change} would be a tenth",
            change,
        )
    if seconds is not None and (between := seconds / saves(settings, length, epochs)) > RARE_SAVING_SECONDS:
        change = f"{stage}.save_every_steps={max(1, int(RARE_SAVING_SECONDS * steps / seconds))}"
        yield Warned(
            f"{stage}: {format_seconds(between)} pass between checkpoints, which is what a crash can cost; {change} saves every half hour",
            change,
        )
    if settings.micro_batch_rows is not None and length.batch_rows % settings.micro_batch_rows:
        yield Warned(
            f"{stage}: a batch of {length.batch_rows} rows does not divide into micro-batches of {settings.micro_batch_rows}; "
            "the last one of each step is filled up with empty rows"
        )
    if epochs is not None and epochs > MANY_EPOCHS:
        yield Warned(f"{stage}: reads its tokens {epochs:.1f} times; from the {MANY_EPOCHS}th epoch on repeated text teaches less and less")


def vocabulary_warnings(config: ModelConfig) -> Iterator[Warned]:
    """Of a model most of whose parameters are the embedding and the head."""
    tables = (1 if config.settings.tie_word_embeddings else 2) * config.vocabulary_size * config.settings.hidden_size
    share = tables / parameter_count(config)
    if share > LARGE_VOCABULARY_SHARE:
        yield Warned(
            f"model: {share:.0%} of the parameters are the vocabulary's ({config.vocabulary_size:,} entries), more than "
            f"{LARGE_VOCABULARY_SHARE:.0%}; a smaller tokenizer.vocabulary_size or a wider model puts them to better use"
        )
