"""Answers on their way to a client that may leave or stop reading: what is computed for nobody is cancelled within a step.

A stream is server-sent events: one line of JSON each, so no text can forge an event, and `[DONE]` at its end, also behind an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fledge.serving.answer import Answer
from fledge.serving.bodies import ClientLeft
from fledge.serving.errors import ApiError
from fledge.serving.state import ServerState

T = TypeVar("T")

ABORT = "fledge.abort"
"""The extension of an ASGI scope that ends its connection without waiting for what was not read (see `protocol`)."""

_DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """An answer that is sent while it is drawn."""

    media_type = "text/event-stream"

    def __init__(self, state: ServerState, answer: Answer, events: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._state = state
        self._answer = answer
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_read(receive, self._answer, self._send_all(send))
        except ClientLeft:
            if (abort := scope.get("extensions", {}).get(ABORT)) is not None:
                abort()
            raise
        finally:
            self._answer.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ended: ApiError | None = None
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": _line(event), "more_body": True})
        except ApiError as error:
            ended = error
        except Exception:  # our own bug; a stream that broke off would look like a network's
            ended = self._state.failed(self._answer.request_id)
        if ended is not None:
            await send({"type": "http.response.body", "body": _line(ended.body), "more_body": True})
        await send({"type": "http.response.body", "body": _DONE})


async def while_read(receive: Receive, answer: Answer, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the client leaves or does not read. Raises ClientLeft."""
    working = asyncio.create_task(work)
    watching = [asyncio.create_task(_until_gone(receive)), asyncio.create_task(answer.too_slow.wait())]
    try:
        await asyncio.wait([working, *watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
