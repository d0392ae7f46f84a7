"""How the next token is chosen, by `fledge generate`, `fledge chat` and the samples that training shows."""

from __future__ import annotations

from fledge.core.config import settings


@settings
class GenerationSettings:
    """Sampling in the order of transformers: temperature, then top_k, then top_p, then one draw."""

    temperature: float = 0.8
    """Divides the logits: below 1 bolder, above 1 more varied; 0 always takes the most likely token."""
    top_k: int = 50
    """Draw only from this many most likely tokens; 0 means from all."""
    top_p: float = 0.95
    """Draw only from the most likely tokens that together hold this probability; 1 means from all."""
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
        if self.maximum_new_tokens < 1:
            raise ValueError(f"maximum_new_tokens must be at least 1, not {self.maximum_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, not {self.seed}")
