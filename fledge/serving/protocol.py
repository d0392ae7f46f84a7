"""uvicorn's HTTP/1.1 by the strict parser (h11) with what it lacks: times for headers and for reading, a refusal of too many connections.

uvicorn waits for ever for a client that sends its headers byte by byte, or none at all, or does not read its answer to the end,
and counts connections only when a request is complete.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from fledge.serving.errors import ApiError, unavailable
from fledge.serving.state import ServerState
from fledge.serving.streams import ABORT


class GuardedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, state: ServerState, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._state = state
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._state.settings.connections:
            self._state.metrics.refusals.labels("connections").inc()
            self._refuse(unavailable("There are too many connections.", "too_many_connections"))
        else:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._set_deadline()
        else:
            self._unset_deadline()

    def handle_events(self) -> None:
        super().handle_events()
        if self.scope is not None:
            # The task of a new request runs later than this.
            extensions: dict[str, Any] = {**self.scope.get("extensions", {}), ABORT: self.transport.abort}
            self.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        """The answer is written, but perhaps not read: closing a connection waits for that, without end."""
        self._unset_deadline()
        if self._unread is not None:
            self._unread.cancel()
        self._unread = self.loop.call_later(self._state.settings.idle_seconds, self._abort_if_unread)
        super().on_response_complete()

    def _abort_if_unread(self) -> None:
        if self.transport.get_write_buffer_size() and self.cycle.response_complete:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(ApiError(400, "This is not a valid HTTP request.", None, "invalid_http"))

    def _set_deadline(self) -> None:
        """From the first byte, or the connection; later bytes do not move it."""
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._state.settings.read_seconds, self.transport.abort)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, error: ApiError) -> None:
        self._unset_deadline()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_raw(error))
        self.transport.close()


def _raw(error: ApiError) -> bytes:
    body = orjson.dumps(error.body)
    headers = {**error.headers, "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {error.status} {_phrase(error.status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def _phrase(status: int) -> str:
    return {400: "Bad Request", 503: "Service Unavailable"}[status]
