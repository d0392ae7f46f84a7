"""How the next token is chosen, by `fledge generate`, `fledge chat`, `fledge serve` and the samples that training shows; and what of
the machine an engine may use."""

from __future__ import annotations

from typing import Literal

from fledge.core.config import operation, settings

Weights = Literal["auto", "fp32", "bf16", "int8"]


@settings
class GenerationSettings:
    """Sampling in the order of transformers: repetition_penalty, temperature, top_k, top_p, min_p, then one draw."""

    temperature: float = 0.8
    """Divides the logits: below 1 bolder, above 1 more varied; 0 always takes the most likely token."""
    top_k: int = 50
    """Draw only from this many most likely tokens; 0 means from all."""
    top_p: float = 0.95
    """Draw only from the most likely tokens that together hold this probability; 1 means from all."""
    min_p: float = 0.0
    """Draw only tokens at least this many times as likely as the most likely one; 0 means from all."""
    repetition_penalty: float = 1.0
    """Above 1 makes what the text already holds less likely: positive logits are divided by it, others multiplied; 1 does nothing."""
    maximum_new_tokens: int = 200
    """An answer is cut off after this many tokens."""
    seed: int | None = None
    """Makes the draws repeatable, each prompt of a batch with its own stream; None draws anew each time."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 and 1, not {self.min_p}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        if self.maximum_new_tokens < 1:
            raise ValueError(f"maximum_new_tokens must be at least 1, not {self.maximum_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, not {self.seed}")


@settings
class EngineSettings:
    """How much is computed at once, and how."""

    slots: int = operation(16)
    """Requests computed at once; each holds the keys and values of a whole context."""
    context_tokens: int | None = operation(None)
    """Longest prompt and answer together, in tokens; None means the model's context."""
    prefill_tokens: int | None = operation(None)
    """Most tokens of prompts read in one step, so that a long prompt does not hold up those who are being answered; None: as many as
    suit the device."""
    weights: Weights = operation("auto")
    """In what weights are kept: int8 and bf16 are read faster than fp32, which is exact; auto means the engine's precision."""
    batch_invariant: bool = operation(False)
    """Answers are the same to the bit whatever else is being answered. On a CPU they always are if the widths of the model are multiples of
    16; else it costs most of the speed."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, not {self.slots}")
        if self.context_tokens is not None and self.context_tokens < 2:
            raise ValueError(f"context_tokens must be at least 2, not {self.context_tokens}")
        if self.prefill_tokens is not None and self.prefill_tokens < 1:
            raise ValueError(f"prefill_tokens must be at least 1, not {self.prefill_tokens}")
