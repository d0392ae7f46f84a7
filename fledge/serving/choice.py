"""One choice while it grows: drawn tokens become text that may be sent, held back where it may yet turn out to be a stop string.

    token ids -> whole characters (the tokenizer's stream) -> what is no stop string (StopStream) -> pieces

A piece carries the tokens whose text begins in what has been sent; so what a stop string cut off has no log probabilities either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fledge.inference.requests import Drawn, TokenLogprobs
from fledge.inference.texts import StopStream
from fledge.serving.logprobs import ToldToken

End = Literal["stop", "length"]
PromptLogprobs = tuple[TokenLogprobs | None, ...]


class Decoder(Protocol):
    """`Tokenizer.stream` or `AnswerStream`."""

    def push(self, token: int) -> str:
        """The text that a token completes."""

    def finish(self) -> str:
        """What is left."""


@dataclass(frozen=True)
class Piece:
    """What one step added to a choice."""

    text: str
    tokens: tuple[ToldToken, ...] = ()
    end: End | None = None
    """Why the choice ended; nothing follows."""
    prompt_logprobs: PromptLogprobs | None = None
    """With the first piece, if they were asked for."""


class Choice:
    """The state of one choice."""

    def __init__(self, decoder: Decoder, stops: Sequence[str], maximum_new_tokens: int) -> None:
        """`maximum_new_tokens` 0: only the prompt is looked at, and what the engine draws is dropped."""
        self._decoder = decoder
        self._stops = StopStream(stops)
        self._is_prompt_only = maximum_new_tokens == 0
        self._decoded_characters = 0
        self._sent_characters = 0
        self._held: list[ToldToken] = []
        self.drawn_tokens = 0
        self.ended = False

    def take(self, drawn: Drawn) -> Piece | None:
        """What may be sent now; None: nothing yet."""
        if self._is_prompt_only:
            self.ended = True
            return Piece("", end="length", prompt_logprobs=drawn.prompt_logprobs)
        text = "" if drawn.token is None else self._push(drawn.token, drawn.logprobs)
        end: End | None = None
        if self._stops.stopped:
            end = "stop"
        elif drawn.finish is not None:
            rest = self._decoder.finish()
            self._decoded_characters += len(rest)
            text += self._stops.push(rest)
            end = "stop" if self._stops.stopped or drawn.finish == "stop" else "length"
            text += self._stops.finish()
        self.ended = end is not None
        tokens = self._release(text)
        if not text and not tokens and end is None and drawn.prompt_logprobs is None:
            return None
        return Piece(text, tokens, end, drawn.prompt_logprobs)

    def _push(self, token: int, logprobs: TokenLogprobs | None) -> str:
        self.drawn_tokens += 1
        self._held.append(ToldToken(token, self._decoded_characters, logprobs))
        text = self._decoder.push(token)
        self._decoded_characters += len(text)
        return self._stops.push(text)

    def _release(self, text: str) -> tuple[ToldToken, ...]:
        self._sent_characters += len(text)
        is_whole = self.ended and not self._stops.stopped
        released = [token for token in self._held if is_whole or token.offset < self._sent_characters]
        self._held = self._held[len(released) :]
        return tuple(released)
