"""What is asked of the engine and what it answers, one token at a time: token ids in, token ids out.

A request is a prompt and how to continue it; the engine gives it a ticket, and from then on each step yields `Drawn` tokens of
whatever requests have moved on. Texts, chat templates and stop strings stay outside: they belong to whoever reads the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.core.errors import FledgeError, MachineError, NumericsError
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
class Failure:
    """What ended a request by an error of its own."""

    kind: Literal["numbers", "memory", "other"]
    """The weights give no numbers; there was not enough memory, of the GPU or of the machine; or what nobody foresaw."""
    problem: str
    """What happened, for the log."""


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
    failure: Failure | None = None
    """With the finish `failed`, and only then."""


_MEMORY_ERRORS = ("out of memory", "memoryerror", "can't allocate memory")
"""Of torch on a GPU, of Python, of torch on a CPU."""


def failure_of(error: BaseException) -> Failure:
    """What an error inside means for its request."""
    if isinstance(error, NumericsError):
        return Failure("numbers", error.problem)
    told = error.problem if isinstance(error, FledgeError) else str(error)
    problem = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return Failure("memory" if any(words in problem.lower() for words in _MEMORY_ERRORS) else "other", problem)


def error_of(failure: Failure, what: str) -> NumericsError | MachineError:
    """What to raise where a failure ends more than its request: `what` could not be done."""
    problem = f"{what}: {failure.problem}"
    if failure.kind == "numbers":
        return NumericsError(problem, "use an earlier checkpoint; this one is broken")
    if failure.kind == "memory":
        return MachineError(problem, "compute fewer or shorter texts at once, or on a device with more memory (--device)")
    return MachineError(problem, "try again; what fails again is a mistake of Fledge or of a library: please report it")
