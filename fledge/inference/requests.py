"""What is asked of the engine and what it answers, one token at a time: token ids in, token ids out.

A request is a prompt and how to continue it; the engine gives it a ticket, and from then on each step yields `Drawn` tokens of
whatever requests have moved on. Texts, chat templates and stop strings stay outside: they belong to whoever reads the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.inference.settings import GenerationSettings

Finish = Literal["stop", "length", "cancelled", "failed"]
"""Why a request ended: by an end token, by its limit or the context's, by whoever asked, or by an error of its own."""


@dataclass(frozen=True)
class Request:
    """A prompt to be continued."""

    prompt: tuple[int, ...]
    generation: GenerationSettings
    logprobs: int | None = None
    """With each token, its log probability and those of this many most likely tokens; None: none are computed."""
    prompt_logprobs: bool = False
    """The same for the tokens of the prompt, all but the first."""
    ignore_end: bool = False
    """Draw on after an end token, as speed tests do."""


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, by the model itself: before temperature, filters and penalties, in natural logarithms."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, log probability), most likely first."""


@dataclass(frozen=True)
class Drawn:
    """What one step did for one request: a token, or its end, or both."""

    ticket: int
    token: int | None = None
    """None where the request ended without one: an end token is not told, and neither is a token after a cancel."""
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """Once, with the first token, if they were asked for; None for the first token of the prompt."""
    finish: Finish | None = None
    end_token: int | None = None
    """The id that ended it, with the finish `stop`."""
    error: str | None = None
    """With the finish `failed`: what happened, for the log."""
