"""One request's way through the engine: admitted to the queue, submitted, listened to, and let go, whatever happens to its client.

The engine's thread hands each token to the event loop; all choices of a request share one queue there, so a client that does not
read leaves it to grow, and is let go when more waits than it may.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fledge.core import console
from fledge.core.errors import DataError, MachineError
from fledge.inference.requests import Drawn, Request
from fledge.serving.choice import Choice, Piece
from fledge.serving.errors import ApiError, bad_request, internal, unavailable
from fledge.serving.served import ServedModel
from fledge.serving.state import ServerState

_EVENT_BYTES = 256
"""About what one token becomes on its way to a client."""
_ALTERNATIVE_BYTES = 80
"""And so much more for each alternative that is told with it."""
_PATIENCE_SECONDS = 1.0
"""A client counts as slow when it has taken nothing for so long; the event loop itself may be late by less."""


@dataclass(frozen=True)
class Job:
    """A choice to be computed."""

    request: Request
    choice: Choice


class Answer:
    """The choices of one request. Used from the event loop only; `close` must be called, and may be called twice."""

    def __init__(self, state: ServerState, model: ServedModel, client: str, request_id: str, choices: int) -> None:
        """Raises ApiError 429 if so many more choices of this client may not wait, 503 while no answer can be begun."""
        state.require_running()
        self._admission = state.admissions[model.name]
        if not self._admission.admits(client, choices):
            state.metrics.refusals.labels("queue_full").inc()
            raise ApiError(429, "Too many requests are waiting; try again in a second.", None, "queue_full", {"Retry-After": "1"})
        self._state, self._model, self._client = state, model, client
        self.request_id = request_id
        self._unsubmitted = choices
        self._admission.enter(client, choices)
        self._began = time.monotonic()
        self._taken = self._began
        self._events: asyncio.Queue[tuple[int, Drawn] | ApiError] = asyncio.Queue()
        self._jobs: dict[int, tuple[int, Choice]] = {}
        """Those under way by number: the engine's ticket, and what has come of it."""
        self._begun: set[int] = set()
        """Those that have a slot."""
        self._is_closed = False
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self._event_bytes = _EVENT_BYTES
        self.too_slow = asyncio.Event()
        """The client does not read what is made for it."""
        state.open_answers.add(self._events.put_nowait)
        self._timer = asyncio.get_running_loop().call_later(state.settings.request_seconds, self._expire)

    def submit(self, jobs: Sequence[Job], prompt_tokens: int) -> None:
        """Hand the choices to the engine. Raises ApiError 400 if it refuses one."""
        metrics, name = self._state.metrics, self._model.name
        self.prompt_tokens = prompt_tokens
        metrics.tokens.labels(name, "prompt").inc(prompt_tokens)
        for number, job in enumerate(jobs):
            try:
                ticket = self._model.engine.submit(job.request, self._listener(number))
            except DataError as error:
                raise bad_request(error.problem, "prompt") from error
            except MachineError as error:
                raise unavailable("The model has stopped working.", "engine_failed", seconds=30) from error
            self._event_bytes = _EVENT_BYTES + _ALTERNATIVE_BYTES * (job.request.logprobs or 0)
            self._unsubmitted -= 1
            self._jobs[number] = (ticket, job.choice)
            metrics.choices.labels(name).inc()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(number of the choice, piece) until all have ended. Raises ApiError."""
        while self._jobs:
            event = await self._events.get()
            self._taken = time.monotonic()
            if isinstance(event, ApiError):
                raise event
            number, drawn = event
            if number in self._jobs and (piece := self._take(number, drawn)) is not None:
                yield number, piece

    def close(self) -> None:
        """Cancel what is under way, and leave the queue."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        self._state.open_answers.discard(self._events.put_nowait)
        for number in tuple(self._jobs):
            self._end(number, "cancelled")
        for _ in range(self._unsubmitted):
            self._admission.leave(self._client, begun=False)

    def _expire(self) -> None:
        self._events.put_nowait(ApiError(408, "The answer took longer than this server allows.", None, "request_timeout"))
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self.too_slow.set)

    def _take(self, number: int, drawn: Drawn) -> Piece | None:
        choice = self._jobs[number][1]
        if drawn.finish in ("failed", "cancelled"):
            self._end(number, "failed")
            raise self._failure(drawn)
        if number not in self._begun:
            self._begun.add(number)
            self._admission.begin(self._client)
            self._state.metrics.first_token_seconds.labels(self._model.name).observe(time.monotonic() - self._began)
        piece = choice.take(drawn)
        if choice.ended:
            assert piece is not None and piece.end is not None, "an end is always told"
            self._end(number, piece.end, cancel=drawn.finish is None)
        return piece

    def _end(self, number: int, finish: str, cancel: bool = True) -> None:
        ticket, choice = self._jobs.pop(number)
        if cancel:
            self._model.engine.cancel(ticket)
        self._admission.leave(self._client, number in self._begun)
        self.answer_tokens += choice.drawn_tokens
        self._state.metrics.tokens.labels(self._model.name, "answer").inc(choice.drawn_tokens)
        self._state.metrics.finished.labels(self._model.name, finish).inc()

    def _failure(self, drawn: Drawn) -> ApiError:
        if not self._model.engine.is_alive:
            return unavailable("The model has stopped working.", "engine_failed", seconds=30)
        self._state.metrics.errors.inc()
        what = drawn.finish if drawn.failure is None else drawn.failure.problem
        console.warn(f"request {self.request_id} failed in the engine: {what}")
        if drawn.failure is not None and drawn.failure.kind == "memory":
            return unavailable("There was not enough memory for this request.", "out_of_memory")
        return internal(self.request_id)

    def _listener(self, number: int) -> Callable[[Drawn], None]:
        """What the engine calls, in its thread."""
        loop = asyncio.get_running_loop()

        def listen(drawn: Drawn) -> None:
            try:
                loop.call_soon_threadsafe(self._hear, number, drawn)
            except RuntimeError:
                return  # the loop has ended, and with it whoever would read this

        return listen

    def _hear(self, number: int, drawn: Drawn) -> None:
        if self._is_closed:
            return  # drawn before the engine heard of it
        self._events.put_nowait((number, drawn))
        unread_bytes = self._events.qsize() * self._event_bytes
        is_late = time.monotonic() - self._taken > _PATIENCE_SECONDS
        if unread_bytes > self._state.settings.unread_bytes and is_late:
            self.too_slow.set()
