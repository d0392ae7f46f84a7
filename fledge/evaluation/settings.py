"""What is measured on each checkpoint, and on how many held-out samples."""

from __future__ import annotations

from typing import Literal

from fledge.core.config import operation, settings
from fledge.model.settings import DeviceName


@settings
class EvaluateSettings:
    """Sample counts are upper bounds: a small validation split offers fewer, and every score names the number it used."""

    checkpoints: tuple[str, ...] = operation(("pretrain", "sft", "dpo"))
    """Stages of this run, or checkpoints elsewhere (RUN@STEP, a folder), to evaluate. What a stage started from by start_from is
    measured beside it."""
    files: tuple[str, ...] = operation(())
    """Text files (.txt, .md) whose bits per byte are measured as well; the corpus leaves out documents that quote them."""
    prompts: tuple[str, ...] = ()
    """Asked of every checkpoint, greedily, and shown side by side: a model that has learned to answer answers, another one goes on."""
    benchmarks: dict[str, str] = operation(default_factory=dict)
    """Benchmarks by name, such as boolq, and where the rows of each lie: a file, a folder with NAME.*, or a YAML file of one's own."""
    benchmark_samples: int | Literal["quick", "standard", "comprehensive", "all"] = "standard"
    """Rows of each benchmark that are drawn: a number, quick (50), standard (100), comprehensive (200) or all; perplexities read all."""
    window_tokens: int | None = None
    """Context of the bits per byte and of perplexities, in tokens: windows of this length; None takes the model's longest context."""
    stride_tokens: int | None = None
    """By how many tokens the windows of a benchmark's perplexity move on; None: by all of theirs, so that they do not overlap."""
    maximum_text_bytes: int = 4_000_000
    """Bits per byte, the model's and the compressors', are measured on at most this many bytes of validation text."""
    last_word_passages: int = 400
    """Passages whose last word is to be predicted (LAMBADA's form)."""
    yes_no_questions: int = 200
    """Yes/no questions on a passage (BoolQ's form), half of them with the answer no."""
    questions: int = 100
    """Held-out questions a chat model answers, greedily."""
    maximum_answer_tokens: int = 96
    """An answer that has not ended after this many tokens counts as not stopping."""
    choice_questions: int = 400
    """Held-out conversations in which the right answer is scored after its own and after another question."""
    preference_pairs: int = 400
    """Held-out preference pairs scored under the checkpoint and under the reference."""
    compressors: bool = True
    """Measure zlib and xz on the same held-out text, for comparison."""
    seed: int = 0
    """Decides which held-out samples are taken and how the tasks are built."""
    device: DeviceName = operation("auto")
    """Where it is computed: auto is an NVIDIA GPU where there is one, else the CPU; scores agree to about 1e-4."""
    batch_tokens: int = operation(2_048)
    """Tokens in one forward pass, padding included. On a CPU more is slower: rows of one pass then differ more in length."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward passes; fp32 keeps scores comparable between machines."""

    def __post_init__(self) -> None:
        for name in ("last_word_passages", "yes_no_questions", "questions", "choice_questions", "preference_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("maximum_text_bytes", "maximum_answer_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.window_tokens is not None and self.window_tokens < 2:
            raise ValueError(f"window_tokens must be at least 2, not {self.window_tokens}")
        for name, least in (("benchmark_samples", self.benchmark_samples), ("stride_tokens", self.stride_tokens)):
            if isinstance(least, int) and least < 1:
                raise ValueError(f"{name} must be at least 1, not {least}")
