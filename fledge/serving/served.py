"""What the server speaks with: a model on its engine's thread, its tokenizer, and how it answers when a client leaves that open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fledge.inference.settings import GenerationSettings

if TYPE_CHECKING:
    from fledge.inference.worker import EngineThread
    from fledge.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """One model of those that a server was started with."""

    name: str
    """By which requests ask for it."""
    engine: EngineThread
    tokenizer: Tokenizer
    context_tokens: int
    """Prompt and answer together never exceed this."""
    generation: GenerationSettings
    """What a request leaves open."""
    created_unix_seconds: int
