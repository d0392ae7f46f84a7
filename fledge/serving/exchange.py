"""What both endpoints do with a request once it is read: wait in the queue, encode, compute, and answer whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from fledge.core import console
from fledge.serving.answer import Answer, Job
from fledge.serving.choice import End, Piece, PromptLogprobs
from fledge.serving.errors import json_response
from fledge.serving.logprobs import ToldToken
from fledge.serving.parameters import Parameters
from fledge.serving.prompts import Prompt
from fledge.serving.served import ServedModel
from fledge.serving.state import ServerState
from fledge.serving.streams import EventStream, while_read


@dataclass
class Whole:
    """A choice that has ended."""

    text: str = ""
    tokens: list[ToldToken] = field(default_factory=list)
    end: End = "length"
    prompt_logprobs: PromptLogprobs | None = None

    def add(self, piece: Piece) -> None:
        """The next piece of it."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.end = piece.end or self.end
        self.prompt_logprobs = piece.prompt_logprobs or self.prompt_logprobs


class Form(Protocol):
    """How an endpoint writes its answers."""

    def jobs(self) -> list[Job]:
        """The choices, prompt by prompt."""

    def opening(self, choice: int) -> Iterator[dict[str, Any]]:
        """The events that begin a choice of a stream."""

    def events(self, choice: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events that a piece becomes."""

    def whole(self, choices: Sequence[Whole]) -> dict[str, Any]:
        """The answer at once, without its usage."""

    def usage_event(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream, if it was asked for."""


@dataclass(frozen=True)
class AskedAnswer:
    """A request that has been read."""

    model: ServedModel
    parameters: Parameters
    prompt_count: int
    encode: Callable[[], list[Prompt]]
    """Run in a thread."""
    form: Callable[[list[Prompt]], Form]
    """Raises ApiError for a prompt that does not fit."""


async def respond(request: Request, state: ServerState, asked: AskedAnswer) -> Response:
    """Answer it. Raises ApiError and ClientLeft."""
    scope_state = request.scope["state"]
    choices = asked.prompt_count * asked.parameters.choices_per_prompt
    answer = Answer(state, asked.model, scope_state["client"], scope_state["request_id"], choices)
    try:
        prompts = await asyncio.to_thread(asked.encode)
        form = asked.form(prompts)
        jobs = form.jobs()
        _log_texts(state, answer, "prompts", [prompt.text for prompt in prompts])
        answer.submit(jobs, sum(len(prompt.ids) for prompt in prompts))
        if asked.parameters.stream:
            return EventStream(state, answer, _events(state, answer, form, len(jobs), asked.parameters.include_usage))
        whole = await while_read(request.receive, answer, _collect(answer, len(jobs)))
    except BaseException:  # a cancelled task too: the engine must not go on for nobody; raised again
        answer.close()
        raise
    answer.close()
    _log_texts(state, answer, "answers", [choice.text for choice in whole])
    told = await asyncio.to_thread(form.whole, whole)  # the log probabilities of long answers take a second to word
    return json_response({**told, "usage": _usage(answer)})


async def _collect(answer: Answer, choices: int) -> list[Whole]:
    whole = [Whole() for _ in range(choices)]
    async for number, piece in answer.pieces():
        whole[number].add(piece)
    return whole


async def _events(state: ServerState, answer: Answer, form: Form, choices: int, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
    texts = [""] * choices
    for number in range(choices):
        for event in form.opening(number):
            yield event
    async for number, piece in answer.pieces():
        texts[number] += piece.text
        for event in form.events(number, piece):
            yield event
    _log_texts(state, answer, "answers", texts)
    if include_usage:
        yield form.usage_event(_usage(answer))


def _log_texts(state: ServerState, answer: Answer, what: str, texts: Sequence[str]) -> None:
    if state.settings.log_prompts:
        console.info(f"{answer.request_id} {what}: {list(texts)}")


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.answer_tokens,
        "total_tokens": answer.prompt_tokens + answer.answer_tokens,
    }
