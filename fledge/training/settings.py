"""What a recipe says about training; pretraining, fine-tuning and preference training are the same block with other values.

Fields made by `operation` decide how a run uses the machine and how often it looks; they may change when a run continues, and
precision, threads and micro-batches then change the last bits of the weights. All others are part of the identity of the result.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fledge.core.config import ByKind, operation, settings
from fledge.core.settings import MetricsSettings
from fledge.model.settings import DeviceName, LoraSettings, RequestedPrecision


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _require_moments(beta1: float, beta2: float, epsilon: float) -> None:
    _require(0 <= beta1 < 1, f"beta1 must lie in [0, 1), not {beta1}")
    _require(0 <= beta2 < 1, f"beta2 must lie in [0, 1), not {beta2}")
    _require(epsilon > 0, f"epsilon must be above 0, not {epsilon}")


def _require_sequence_length(sequence_length: int | None) -> None:
    _require(sequence_length is None or sequence_length >= 8, f"sequence_length must be at least 8 or unset, not {sequence_length}")


def _require_mixture(mixture: dict[str, float] | None) -> None:
    weights = (mixture or {"": 1.0}).values()
    _require(all(weight >= 0 for weight in weights) and sum(weights) > 0, f"mixture weights must be positive, not {mixture}")


@settings
class NextTokenSettings:
    """Cross-entropy of the next token, over the supervised ones: pretraining and supervised fine-tuning."""

    kind: Literal["next_token"] = "next_token"
    z_weight: float = 0.0
    """Weight of log(Z)^2 per supervised token, which keeps the softmax normaliser near one (PaLM uses 1e-4); 0 turns it off."""

    def __post_init__(self) -> None:
        _require(self.z_weight >= 0, f"z_weight must not be negative, not {self.z_weight}")


@settings
class PreferenceSettings:
    """Direct preference optimisation (Rafailov et al. 2023) of pairs of a chosen and a rejected answer."""

    kind: Literal["preference"] = "preference"
    beta: float = 0.1
    """Strength of the pull towards the reference model: rewards are beta times the log-probability ratio (nats)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: DPO; ipo: the squared distance of the difference of log-ratios to 1 / (2 beta), which bounds it (Azar et al. 2023)."""
    label_smoothing: float = 0.0
    """Share of pairs whose answers may be the wrong way round (conservative DPO, Mitchell 2023); sigmoid only."""
    length_normalized: bool = False
    """Compare log-ratios per token instead of per answer, so that length counts for nothing; TRL calls this sigmoid_norm, and its ipo
    always does so."""

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"beta must be above 0, not {self.beta}")
        _require(0 <= self.label_smoothing < 0.5, f"label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")
        _require(self.label_smoothing == 0 or self.loss == "sigmoid", "label_smoothing is for the sigmoid loss: leave it out with ipo")


@settings
class AdamWSettings:
    """AdamW (Loshchilov and Hutter 2019) for every parameter."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = 0.9
    """Decay per step of the running mean of gradients."""
    beta2: float = 0.95
    """Decay per step of the running mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        _require_moments(self.beta1, self.beta2, self.epsilon)


@settings
class MuonSettings:
    """Muon (Jordan et al. 2024) for the body's matrices; AdamW for embedding, head and norms."""

    kind: Literal["muon"] = "muon"
    matrix_learning_rate: float = 0.02
    """Peak learning rate of the body's matrices; `learning_rate` is that of all the others."""
    matrix_weight_decay: float = 0.05
    """Decoupled weight decay of the body's matrices, per unit of learning rate."""
    momentum: float = 0.95
    """Decay per step of the running mean that is orthogonalised."""
    beta1: float = 0.9
    """AdamW part: decay per step of the running mean of gradients."""
    beta2: float = 0.95
    """AdamW part: decay per step of the running mean of squared gradients."""
    epsilon: float = 1e-8
    """AdamW part: added to the root of the second moment."""

    def __post_init__(self) -> None:
        _require(self.matrix_learning_rate > 0, f"matrix_learning_rate must be above 0, not {self.matrix_learning_rate}")
        _require(self.matrix_weight_decay >= 0, f"matrix_weight_decay must not be negative, not {self.matrix_weight_decay}")
        _require(0 <= self.momentum < 1, f"momentum must lie in [0, 1), not {self.momentum}")
        _require_moments(self.beta1, self.beta2, self.epsilon)


@settings
class ScheduleSettings:
    """How the learning rate goes, as a fraction of its peak: a linear warm-up, then the shape that `kind` names."""

    kind: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "cosine"
    """constant: stays at the peak. linear, cosine: falls to the end. warmup_stable_decay: stays, then falls linearly."""
    warmup_steps: int = 0
    """Optimizer steps in which the rate rises linearly to its peak."""
    warmup_fraction: float | None = None
    """The same as a share of all steps, for runs whose steps follow from a budget or phases."""
    final_fraction: float = 0.0
    """Fraction of the peak that the fall ends at."""
    decay_fraction: float = 0.2
    """Share of all steps in which warmup_stable_decay falls; the other shapes do not read it."""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, f"warmup_steps must not be negative, not {self.warmup_steps}")
        _require(0 <= self.final_fraction <= 1, f"final_fraction must lie in [0, 1], not {self.final_fraction}")
        _require(0 < self.decay_fraction <= 1, f"decay_fraction must lie in (0, 1], not {self.decay_fraction}")
        if self.warmup_fraction is not None:
            _require(0 <= self.warmup_fraction <= 1, f"warmup_fraction must lie in [0, 1], not {self.warmup_fraction}")
            _require(self.warmup_steps == 0, "warmup_fraction and warmup_steps both say how long the warm-up is: leave out one")

    def warmup_of(self, steps: int) -> int:
        """Steps of the warm-up in a run of so many."""
        return self.warmup_steps if self.warmup_fraction is None else round(self.warmup_fraction * steps)


@settings
class BudgetSettings:
    """How long a run is, in tokens; it ends with the step that reaches them."""

    tokens: int | None = None
    """Tokens trained on, padding included."""
    tokens_per_parameter: float | None = None
    """The same as a multiple of all parameters of the model, embedding and head included; 20 is about compute-optimal
    (Hoffmann et al. 2022)."""

    def __post_init__(self) -> None:
        given = [value for value in (self.tokens, self.tokens_per_parameter) if value is not None]
        _require(len(given) == 1, "tokens or tokens_per_parameter must be given, and not both")
        _require(given[0] > 0, f"{'tokens' if self.tokens is not None else 'tokens_per_parameter'} must be above 0, not {given[0]}")


@settings
class PhaseSettings:
    """A part of a run with rows, batches and a mixture of its own; what is unset is that of the stage."""

    until_tokens: int
    """Tokens trained on since the beginning of the run; the phase ends with the step that reaches them."""
    sequence_length: int | None = None
    """Tokens per row; documents that were packed in rows, conversations and preferences have one length in all phases."""
    batch_tokens: int | None = None
    """Tokens per optimizer step, rounded down to whole rows, at least one; unset: batch_rows rows of the stage's sequence_length."""
    mixture: dict[str, float] | None = None
    """Weight of each source by name, as its share of tokens."""

    def __post_init__(self) -> None:
        _require(self.until_tokens >= 1, f"until_tokens must be at least 1, not {self.until_tokens}")
        _require_sequence_length(self.sequence_length)
        _require(self.batch_tokens is None or self.batch_tokens >= 1, f"batch_tokens must be at least 1 or unset, not {self.batch_tokens}")
        _require_mixture(self.mixture)


@settings
class EarlyStoppingSettings:
    """When to end a run before its last step."""

    patience: int
    """Validations in a row without an improvement after which the run stops; `validate_every_...` says how far apart they are."""
    minimum_improvement: float = 0.0
    """By how much a validation loss must be below the best so far to be an improvement (nats)."""

    def __post_init__(self) -> None:
        _require(self.patience >= 1, f"patience must be at least 1, not {self.patience}")
        _require(self.minimum_improvement >= 0, f"minimum_improvement must not be negative, not {self.minimum_improvement}")


@settings
class ProfileSettings:
    """Which steps a profiler looks at."""

    first_step: int = operation(10)
    """The first of them, counted from where a start of the stage begins, so that a run which continues can be profiled too."""
    steps: int = operation(3)
    """How many; one of 28 layers adds 0.6 MB to the trace for each micro-batch."""

    def __post_init__(self) -> None:
        _require(self.first_step >= 2, f"first_step must be at least 2, not {self.first_step}: the first step is like no other")
        _require(self.steps >= 1, f"steps must be at least 1, not {self.steps}")


@settings
class GuardSettings:
    """What a run does about steps that are not finite, or whose loss leaps up."""

    maximum_bad_steps: int = operation(8)
    """Bad steps in a row after which the run goes back to the checkpoint before them and leaves them out."""
    maximum_rollbacks: int = operation(2)
    """How often a run goes back; then it ends with exit code 6, naming the documents of the step."""
    spike_deviations: float = operation(6.0)
    """Robust standard deviations above the median of the last 128 steps from which on a loss or a gradient is a spike."""

    def __post_init__(self) -> None:
        _require(self.maximum_bad_steps >= 1, f"maximum_bad_steps must be at least 1, not {self.maximum_bad_steps}")
        _require(self.maximum_rollbacks >= 0, f"maximum_rollbacks must not be negative, not {self.maximum_rollbacks}")
        _require(self.spike_deviations > 0, f"spike_deviations must be above 0, not {self.spike_deviations}")


@settings
class TrainingSettings:
    """One training stage: what is learned, from which rows in which order, with which optimizer, watched how."""

    steps: int | None = None
    """Optimizer steps of the whole run; `budget` or `phases` can say instead how long it is."""
    budget: BudgetSettings | None = None
    """How long the run is, in tokens."""
    phases: tuple[PhaseSettings, ...] = ()
    """Parts with another length of rows, size of batch or mixture; the last one ends the run. Empty: one phase."""
    batch_rows: int = 32
    """Rows per optimizer step, over all processes and micro-batches."""
    sequence_length: int | None = None
    """Tokens per row of continuous documents; packed conversations and preferences bring their own row length."""
    mixture: dict[str, float] | None = None
    """Weight of each source by name, as its share of tokens; unset: every source by its size."""
    isolate_documents: bool = True
    """Whether attention stays inside a document and positions restart with it; preference pairs are always isolated."""
    seed: int = 0
    """Decides the order of the rows and the initial weights."""
    objective: Annotated[NextTokenSettings | PreferenceSettings, ByKind()] = NextTokenSettings()
    """What is minimised."""
    lora: LoraSettings | None = None
    """Train low-rank additions to the weights it starts from, which stay as they are; unset: all weights."""
    optimizer: Annotated[AdamWSettings | MuonSettings, ByKind()] = AdamWSettings()
    """How weights follow gradients."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the run."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, per unit of learning rate; vectors are never decayed."""
    gradient_clip: float | None = 1.0
    """Largest norm of the whole gradient; unset: no clipping."""
    early_stopping: EarlyStoppingSettings | None = None
    """End when validation no longer improves; unset: all steps. It needs a validation, and a checkpoint at each."""
    keep: tuple[Literal["optimizer", "step"], ...] = ()
    """What is taken over besides weights from the checkpoint that the run starts from: the optimizer's state; the step, from which the
    schedule, the tokens and the steps of the run then count on."""

    start_from: str | None = operation(None)
    """Checkpoint to start from: RUN, RUN@best, RUN@500 or a folder; unset: the stage before, or random weights."""
    tokens: tuple[str, ...] = operation(())
    """Token sets made elsewhere; empty: this run's own."""
    device: DeviceName = operation("auto")
    """auto: cuda where there is one, else mps where there is one."""
    parallel: Literal["auto", "ddp", "fsdp"] = operation("auto")
    """How many processes share the model: ddp: each holds all of it; fsdp: each a part; auto: ddp where it fits into half the memory."""
    precision: RequestedPrecision = operation("auto")
    """Arithmetic of matrix products; auto: chosen at the first start and kept in machine.json, on a CPU by measurement; on a GPU bf16, or
    fp8 if it is there, the run is long and a trial finds it faster. fp8_or_bf16: fp8 where the machine has it, else what auto takes."""
    compile: Literal["auto", "on", "off", "cuda_graphs"] = operation("auto")
    """Compile the model with torch.compile; auto: on a GPU, and on a CPU in runs of more than about ten minutes; preference pairs never.
    cuda_graphs: as graphs besides, for small models on one GPU, whose kernels are shorter than starting them."""
    determinism: Literal["usual", "elastic"] = operation("usual")
    """usual: the same bits for the same number of processes; elastic: for every number that divides 8, at a price that is printed."""
    inexact_resume: bool = operation(False)
    """Continue although Fledge, torch, device, precision, threads, compiling or micro-batch are others now: the last bits differ."""
    activation_checkpointing: Literal["none", "selective", "full"] = operation("none")
    """Save memory by computing again in the backward pass: selective all but matrix products and attention, full whole layers."""
    tokens_on_device: Literal["auto", "on", "off"] = operation("auto")
    """Keep the training tokens in the GPU's memory; auto: where they take at most an eighth of it."""
    threads: int | None = operation(None)
    """CPU threads per process; unset: torch's own choice at the first start, kept in machine.json."""
    micro_batch_rows: int | None = operation(None)
    """Rows that a process computes at once, of the longest phase; of shorter rows as many more. Unset: its whole share of the batch."""
    hang_timeout_seconds: int = operation(1_800)
    """Of several processes: one that stands still for so long inside a step, a validation or a save prints its stacks and ends the job."""
    log_every_steps: int = operation(10)
    """Optimizer steps between lines of progress."""
    validate_every_steps: int | None = operation(None)
    """Optimizer steps between measurements on the validation rows; unset: at the end only."""
    validate_every_tokens: int | None = operation(None)
    """The same in tokens trained on, padding included; in place of validate_every_steps."""
    validate_every_epochs: float | None = operation(None)
    """The same in epochs of the data, 0.1 being every tenth of one; in place of validate_every_steps."""
    validation_rows: int | None = operation(None)
    """Validation rows measured each time, spread evenly; unset: all."""
    validation_share: float | None = operation(None)
    """The same as a share of them, in place of validation_rows."""
    benchmarks: tuple[str, ...] = operation(())
    """Names of evaluate.benchmarks, such as boolq, whose questions the model is asked while it learns; nothing it learns from them."""
    benchmark_samples: int = operation(50)
    """Rows of each that are drawn, the same every time; perplexities read all their texts."""
    benchmark_every_steps: int | None = operation(None)
    """Optimizer steps between these measurements; unset: at the end only."""
    benchmark_every_tokens: int | None = operation(None)
    """The same in tokens trained on, padding included; in place of benchmark_every_steps."""
    benchmark_every_epochs: float | None = operation(None)
    """The same in epochs of the data; in place of benchmark_every_steps."""
    sample_every_steps: int | None = operation(None)
    """Optimizer steps between samples of text; unset: at the end only."""
    sample_prompts: tuple[str, ...] = operation(())
    """Texts that a sample goes on with, or from sft on questions that it answers; empty: the recipe's question, or a text of its own."""
    save_every_steps: int | None = operation(None)
    """Optimizer steps between checkpoints; unset: at the end only."""
    save_at_validations: bool = operation(False)
    """Save at every validation too, so that the best by validation loss is chosen among all that were measured."""
    keep_checkpoints: int = operation(2)
    """Newest checkpoints that are kept, until the end at least two; the best by validation loss is kept besides."""
    keep_every_steps: int | None = operation(None)
    """Checkpoints of every so many steps are kept for good; a multiple of save_every_steps; unset: none."""
    keep_every_epochs: int | None = operation(None)
    """A checkpoint is saved after every so many epochs, and kept for good; unset: none."""
    asynchronous_saves: bool = operation(False)
    """Write a checkpoint while the next steps are computed, from a copy in memory: 12 bytes per parameter."""
    guard: GuardSettings = operation(default_factory=GuardSettings)
    """What happens when the loss or the gradient leaves the finite numbers, or leaps up."""
    profile: ProfileSettings | None = operation(None)
    """Write a trace of some steps, which shows where their time goes; unset: none."""
    metrics: MetricsSettings = operation(default_factory=MetricsSettings)
    """Where measurements go."""

    def __post_init__(self) -> None:
        self._require_one_length()
        for name in ("batch_rows", "hang_timeout_seconds", "log_every_steps", "keep_checkpoints", "benchmark_samples"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        every = ("validate_every_steps", "sample_every_steps", "save_every_steps", "keep_every_steps", "keep_every_epochs")
        looked = ("validate_every_tokens", "benchmark_every_steps", "benchmark_every_tokens")
        optional = ("threads", "micro_batch_rows", "validation_rows", *looked, *every)
        for name in optional:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1 or unset, not {value}")
        self._require_one_way_to_look()
        _require_sequence_length(self.sequence_length)
        _require(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, not {self.weight_decay}")
        _require(self.gradient_clip is None or self.gradient_clip > 0, f"gradient_clip must be above 0 or unset, not {self.gradient_clip}")
        _require_mixture(self.mixture)
        self._require_saved_validations()
        if self.lora is not None:
            _require(self.optimizer.kind == "adamw", "lora is trained by adamw: muon would orthogonalise factors, not the weights' change")
            _require(not self.precision.startswith("fp8"), f"lora and precision {self.precision} exclude each other: choose bf16")
            draws = self.objective.kind == "preference" and self.lora.dropout > 0
            _require(not draws, "lora.dropout: preferences are compared with scores that know no dropout, leave it out")
        if self.keep_every_steps is not None:
            is_saved = self.save_every_steps is not None and self.keep_every_steps % self.save_every_steps == 0
            _require(is_saved, f"keep_every_steps must be a multiple of save_every_steps, not {self.keep_every_steps}")

    @property
    def has_sequence_length(self) -> bool:
        """Whether every phase has one."""
        return self.sequence_length is not None or all(phase.sequence_length for phase in self.phases or [self])

    @property
    def longest_sequence_length(self) -> int | None:
        """Of all phases; None where rows bring their length along."""
        lengths = [phase.sequence_length or self.sequence_length for phase in self.phases or [self]]
        return max((length for length in lengths if length is not None), default=None)

    def _require_one_length(self) -> None:
        """Steps, a budget or phases say how long the run is, one of them."""
        given = [name for name in ("steps", "budget", "phases") if getattr(self, name)]
        _require(self.steps is None or self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        _require(bool(given), "steps, budget or phases must say how long the run is")
        _require(len(given) == 1, f"{given[0]} and {given[-1]} both say how long the run is: leave out one")
        ends = [phase.until_tokens for phase in self.phases]
        _require(ends == sorted(set(ends)), f"phases must have rising until_tokens, not {', '.join(map(str, ends))}")
        if self.steps is not None:
            warmup_steps = self.schedule.warmup_steps
            _require(warmup_steps <= self.steps, f"schedule.warmup_steps ({warmup_steps}) is more than steps ({self.steps})")

    def _require_one_way_to_look(self) -> None:
        cadences = [tuple(f"{look}_every_{unit}" for unit in ("steps", "tokens", "epochs")) for look in ("validate", "benchmark")]
        for names in (*cadences, ("validation_rows", "validation_share")):
            given = [name for name in names if getattr(self, name) is not None]
            _require(len(given) <= 1, f"{' and '.join(given)} say the same in two ways: leave out one")
            idle = bool(given) and given[0].startswith("benchmark") and not self.benchmarks
            _require(not idle, f"{''.join(given)} needs benchmarks, the names of those to measure")
        for name in ("validate_every_epochs", "benchmark_every_epochs"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be above 0 or unset, not {value}")
        share = self.validation_share
        _require(share is None or 0 < share <= 1, f"validation_share must lie in (0, 1] or be unset, not {share}")

    def _require_saved_validations(self) -> None:
        if self.early_stopping is not None:
            every_steps, saved = self.validate_every_steps, self.save_every_steps
            validates = every_steps or self.validate_every_tokens or self.validate_every_epochs
            _require(validates is not None, "early_stopping needs validate_every_steps, or the same in tokens or epochs")
            together = every_steps is not None and saved is not None and every_steps % saved == 0
            _require(together or self.save_at_validations, "early_stopping needs a checkpoint at every validation: set save_at_validations")
