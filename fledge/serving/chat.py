"""POST /v1/chat/completions: a conversation is answered, in the format that the model's tokenizer writes conversations in."""

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
from fledge.serving.choice import Choice, Piece
from fledge.serving.errors import bad_request
from fledge.serving.exchange import AskedAnswer, Whole, respond
from fledge.serving.fields import Fields
from fledge.serving.logprobs import ToldToken, chat_logprobs
from fledge.serving.parameters import Parameters, read_model, read_parameters
from fledge.serving.prompts import Prompt, answer_tokens, encode_conversation, read_messages
from fledge.serving.served import ServedModel
from fledge.serving.settings import TOP_LOGPROBS
from fledge.serving.state import ServerState
from fledge.tokens.chat import AnswerStream


def chat_router(state: ServerState) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await respond(request, state, _read(Fields(await read_object(request)), state))

    return router


def _read(fields: Fields, state: ServerState) -> AskedAnswer:
    model = read_model(fields, state)
    if model.tokenizer.template is None:
        raise bad_request("This model has no format for conversations; use /v1/completions.", "model")
    parameters = read_parameters(fields, model, ("max_completion_tokens", "max_tokens"), least_tokens=1)
    logprobs = _read_logprobs(fields)
    least_room = fields.integer("least_room_tokens", 1, model.context_tokens) or 1
    messages = read_messages(fields.get("messages"), model)

    def form(prompts: list[Prompt]) -> _Chat:
        [prompt] = prompts
        length = answer_tokens(prompt, parameters.maximum_tokens, model.generation.maximum_new_tokens, model, "messages", least_room)
        return _Chat(model, parameters, logprobs, prompt, length)

    return AskedAnswer(model, parameters, 1, partial(encode_conversation, messages, model.tokenizer), form)


def _read_logprobs(fields: Fields) -> int | None:
    """Alternatives told with each token; None: no log probabilities."""
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, TOP_LOGPROBS)
    if top is not None and not wanted:
        raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
    return (top or 0) if wanted else None


@dataclass
class _Chat:
    """The form of this endpoint's answers."""

    model: ServedModel
    parameters: Parameters
    logprobs: int | None
    prompt: Prompt
    length_tokens: int

    def __post_init__(self) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.model.name}

    def jobs(self) -> list[Job]:
        """The choices."""
        return [self._job(number) for number in range(self.parameters.choices_per_prompt)]

    def opening(self, choice: int) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        yield self._event(choice, {"role": "assistant", "content": ""})

    def events(self, choice: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """The text, and behind the last one the reason of the end."""
        if piece.text or piece.tokens:
            logprobs = None if self.logprobs is None else self._logprobs(piece.tokens)
            yield self._event(choice, {"content": piece.text}, logprobs=logprobs)
        if piece.end is not None:
            yield self._event(choice, {}, finish_reason=piece.end)

    def whole(self, choices: Sequence[Whole]) -> dict[str, Any]:
        """All choices."""
        told = [
            {
                "index": number,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if self.logprobs is None else self._logprobs(choice.tokens),
                "finish_reason": choice.end,
            }
            for number, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": told}

    def usage_event(self, usage: dict[str, int]) -> dict[str, Any]:
        """No choice, only usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _job(self, number: int) -> Job:
        request = requests.Request(
            self.prompt.ids,
            self.parameters.generation(number, self.length_tokens),
            self.logprobs,
            ignore_end=self.parameters.ignore_end,
        )
        return Job(request, Choice(AnswerStream(self.model.tokenizer), self.parameters.stops, self.length_tokens))

    def _event(
        self, choice: int, delta: dict[str, str], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        told = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [told]}

    def _logprobs(self, tokens: Sequence[ToldToken]) -> dict[str, Any]:
        assert self.logprobs is not None, "they were asked for"
        return chat_logprobs(self.model.tokenizer, tokens, self.logprobs)
