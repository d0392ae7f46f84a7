"""An engine's thread that says what a test wants it to say, token by token and as slowly as wanted, so that a page can be watched."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fledge.inference.requests import Drawn, Request
from fledge.inference.settings import GenerationSettings
from fledge.serving.served import ServedModel
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from tests.serving.payloads import PAYLOADS

TEXTS = [*(f"the {index} of {index * 7} answers" for index in range(200)), *PAYLOADS * 4]


def small_tokenizer() -> Tokenizer:
    """ChatML, a vocabulary of 1,000."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(TokenizerSettings(vocabulary_size=1000), TEXTS, Path(folder))
        return open_tokenizer(Path(folder))


@dataclass
class RiggedEngine:
    """Stands where an `EngineThread` stands."""

    tokenizer: Tokenizer
    texts: Iterator[str] = field(default_factory=lambda: (f"Answer {number}." for number in itertools.count(1)))
    pause_seconds: float = 0.001
    """Between two tokens."""
    context_tokens: int = 32_768
    load: Any = field(default_factory=lambda: SimpleNamespace(slots=8, running=0, waiting=0))
    is_alive: bool = True
    seconds_since_step: float = 0.0

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled: set[int] = set()

    def prompts(self) -> list[str]:
        """What it was asked, with its control tokens."""
        return [self.tokenizer.decode(request.prompt, keep_special=True) for request in self.requests]

    def submit(self, request: Request, listener: Callable[[Drawn], None]) -> int:
        self.requests.append(request)
        ticket = len(self.requests)
        threading.Thread(target=self._say, args=(ticket, request, next(self.texts), listener), daemon=True).start()
        return ticket

    def cancel(self, ticket: int) -> None:
        self.cancelled.add(ticket)

    def _say(self, ticket: int, request: Request, text: str, listener: Callable[[Drawn], None]) -> None:
        tokens, most = self.tokenizer.encode(text), request.generation.maximum_new_tokens
        for token in tokens[:most]:
            time.sleep(self.pause_seconds)
            if ticket in self.cancelled:
                return
            listener(Drawn(ticket, token))
        if len(tokens) > most:
            listener(Drawn(ticket, finish="length"))
            return
        listener(Drawn(ticket, finish="stop", end_token=self.tokenizer.end_ids(answers=True)[0]))


def served(name: str, engine: RiggedEngine) -> ServedModel:
    """The engine as a model of a server."""
    generation = GenerationSettings(maximum_new_tokens=engine.context_tokens)
    return ServedModel(name, engine, engine.tokenizer, engine.context_tokens, generation, 1_700_000_000)  # type: ignore[arg-type]
