"""POST /v1/completions: texts or token ids are continued; with `echo` and `logprobs`, they are also measured."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from fledge.inference import requests
from fledge.serving.answer import Job
from fledge.serving.bodies import read_object
from fledge.serving.choice import Choice, End, Piece, PromptLogprobs
from fledge.serving.errors import bad_request
from fledge.serving.exchange import AskedAnswer, Whole, respond
from fledge.serving.fields import Fields
from fledge.serving.logprobs import ToldToken, completion_logprobs, prompt_tokens
from fledge.serving.parameters import Parameters, read_model, read_parameters
from fledge.serving.prompts import Prompt, answer_tokens, encode_prompts, read_prompts
from fledge.serving.served import ServedModel
from fledge.serving.settings import TOP_LOGPROBS
from fledge.serving.state import ServerState

DEFAULT_TOKENS = 16
"""As OpenAI has it."""


def completions_router(state: ServerState) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await respond(request, state, _read(Fields(await read_object(request)), state))

    return router


def _read(fields: Fields, state: ServerState) -> AskedAnswer:
    model = read_model(fields, state)
    echo = fields.flag("echo")
    parameters = read_parameters(fields, model, ("max_tokens",), least_tokens=0)
    if parameters.maximum_tokens == 0 and not echo:
        raise bad_request("max_tokens may be 0 together with echo only.", "max_tokens")
    logprobs = fields.integer("logprobs", 0, TOP_LOGPROBS)
    most = state.settings.choices_per_request // parameters.choices_per_prompt
    raw = read_prompts(fields.get("prompt"), model, most, state.settings.allow_control_ids)

    def form(prompts: list[Prompt]) -> _Completions:
        lengths = [answer_tokens(prompt, parameters.maximum_tokens, DEFAULT_TOKENS, model, "prompt") for prompt in prompts]
        return _Completions(model, parameters, echo, logprobs, prompts, lengths)

    return AskedAnswer(model, parameters, len(raw), partial(encode_prompts, raw, model.tokenizer), form)


@dataclass
class _Completions:
    """The form of this endpoint's answers."""

    model: ServedModel
    parameters: Parameters
    echo: bool
    logprobs: int | None
    """Alternatives told with each token; None: no log probabilities."""
    prompts: list[Prompt]
    lengths_tokens: list[int]

    def __post_init__(self) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model.name,
        }
        self._unechoed = set(range(len(self.prompts) * self.parameters.choices_per_prompt)) if self.echo else set()

    def jobs(self) -> list[Job]:
        """The choices, prompt by prompt."""
        return [self._job(number) for number in range(len(self.prompts) * self.parameters.choices_per_prompt)]

    def opening(self, choice: int) -> Iterator[dict[str, Any]]:
        """Nothing comes before the text."""
        yield from ()

    def events(self, choice: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """One for each piece; the first one begins with the prompt, if it is echoed."""
        echoed = choice in self._unechoed
        self._unechoed.discard(choice)
        yield {**self._head, "choices": [self._choice(choice, piece.text, piece.tokens, piece.end, piece.prompt_logprobs, echoed)]}

    def whole(self, choices: Sequence[Whole]) -> dict[str, Any]:
        """All choices."""
        told = [
            self._choice(number, choice.text, choice.tokens, choice.end, choice.prompt_logprobs, self.echo)
            for number, choice in enumerate(choices)
        ]
        return {**self._head, "choices": told}

    def usage_event(self, usage: dict[str, int]) -> dict[str, Any]:
        """No choice, only usage."""
        return {**self._head, "choices": [], "usage": usage}

    def _job(self, number: int) -> Job:
        prompt, length_tokens = self._prompt(number), self.lengths_tokens[number // self.parameters.choices_per_prompt]
        request = requests.Request(
            prompt.ids,
            self.parameters.generation(number % self.parameters.choices_per_prompt, max(1, length_tokens)),
            self.logprobs,
            prompt_logprobs=self.echo and self.logprobs is not None,
            ignore_end=self.parameters.ignore_end,
        )
        return Job(request, Choice(self.model.tokenizer.stream(continued=True), self.parameters.stops, length_tokens))

    def _choice(
        self, number: int, text: str, tokens: Sequence[ToldToken], end: End | None, prompt_logprobs: PromptLogprobs | None, echoed: bool
    ) -> dict[str, Any]:
        prompt, tokenizer = self._prompt(number), self.model.tokenizer
        offset = len(prompt.text) if self.echo else 0
        told = [ToldToken(token.id, token.offset + offset, token.logprobs) for token in tokens]
        if echoed and prompt_logprobs is not None:
            told = [*prompt_tokens(tokenizer, prompt.ids, prompt.hidden_tokens, prompt_logprobs), *told]
        return {
            "index": number,
            "text": prompt.text + text if echoed else text,
            "logprobs": None if self.logprobs is None else completion_logprobs(tokenizer, told, self.logprobs),
            "finish_reason": end,
        }

    def _prompt(self, number: int) -> Prompt:
        return self.prompts[number // self.parameters.choices_per_prompt]
