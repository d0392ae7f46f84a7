"""What stands between the network and the routes: every request passes here, and every answer leaves with its id and its headers.

    target and headers too large -> Host -> Origin -> key -> type and size of the body -> route -> errors in one form, count, log

Written for ASGI itself: a middleware of Starlette's would put a queue between a stream and its client, and hide that the client left.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fledge.core import console
from fledge.serving.bodies import ClientLeft, body_too_large, read_body
from fledge.serving.errors import ApiError, bad_request
from fledge.serving.hosts import host_name, is_allowed_origin, is_own_origin, served_hosts
from fledge.serving.metrics import endpoint_label
from fledge.serving.state import ServerState

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LINGER_SECONDS = 1.0
_LINGER_BODIES = 4
_ALLOWED_METHODS = "GET, POST, OPTIONS"
_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_CLIENT_LEFT_STATUS = 499
"""As nginx writes it into its logs."""


class Gate:
    """The outermost application."""

    def __init__(self, application: ASGIApp, state: ServerState, is_public: Callable[[Scope], bool]) -> None:
        """`is_public`: routes that need no key."""
        self._application = application
        self._state = state
        self._is_public = is_public
        self._hosts = served_hosts(state.settings, bool(state.keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._state)
        self._state.open_requests += 1
        try:
            await self._pass(exchange, receive)
        except ClientLeft:
            exchange.status = _CLIENT_LEFT_STATUS
        except ApiError as error:
            await exchange.refuse(error, receive)
        except Exception:
            # Whatever it is, it must end this request only; nothing of it goes to the client.
            await exchange.refuse(self._state.failed(exchange.id), receive)
        finally:
            self._state.open_requests -= 1
            exchange.close()

    async def _pass(self, exchange: _Exchange, receive: Receive) -> None:
        scope, headers = exchange.scope, exchange.headers
        self._check_size(scope)
        self._check_host(headers)
        exchange.allowed_origin = self._check_origin(scope["method"], headers)
        if scope["method"] == "OPTIONS":
            await exchange.answer_options()
            return
        scope["state"]["client"] = self._check_key(scope, headers)
        scope["state"]["request_id"] = exchange.id
        if _has_body(headers):
            self._check_body(headers)
            receive = _replayed(await read_body(receive, self._state.settings), receive)
        await self._application(scope, receive, exchange.send)

    def _check_size(self, scope: Scope) -> None:
        settings = self._state.settings
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > settings.target_bytes:
            raise ApiError(414, f"The address is longer than {settings.target_bytes} bytes.", None, "uri_too_long")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > settings.header_bytes:
            raise ApiError(431, f"The headers are larger than {settings.header_bytes} bytes.", None, "headers_too_large")

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        if len(given) > 1:
            raise bad_request("There are several Host headers.", None, "invalid_host")
        if self._hosts is not None and host_name("".join(given)) not in self._hosts:
            raise ApiError(421, "This server does not answer to that Host; --allowed-host adds one.", None, "invalid_host")

    def _check_origin(self, method: str, headers: Headers) -> str | None:
        """The origin of another site that may read the answer; None: there is none."""
        origin = headers.get("origin")
        if origin is None or is_own_origin(origin, headers.get("host", "")):
            return None
        if is_allowed_origin(origin, self._state.settings.cors_origins):
            return origin
        if method not in _SAFE_METHODS or "access-control-request-method" in headers:
            remedy = "; --cors-origin allows one" if self._state.models else ""  # `fledge board` has no such option
            raise ApiError(403, f"Pages of that origin may not ask here{remedy}.", None, "origin_not_allowed")
        return None

    def _check_key(self, scope: Scope, headers: Headers) -> str:
        """A name of the client: the holder of its key, or its address."""
        keys = self._state.keys
        holder = keys.holder(headers.get("authorization")) if keys else None
        if keys and holder is None and not self._is_public(scope):
            raise ApiError(
                401,
                "Give an API key of this server in the header Authorization: Bearer KEY.",
                None,
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )
        return holder or f"address {scope['client'][0] if scope.get('client') else 'unknown'}"

    def _check_body(self, headers: Headers) -> None:
        if "transfer-encoding" in headers and "content-length" in headers:
            raise bad_request("Content-Length and Transfer-Encoding contradict each other.", None, "invalid_framing")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "Send the body without Content-Encoding.", None, "unsupported_encoding")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", None, "unsupported_media_type")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._state.settings.body_bytes:
            raise body_too_large(self._state.settings)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, state: ServerState) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status: int | None = None
        self.allowed_origin: str | None = None
        self._send = send
        self._state = state
        self._began = time.monotonic()
        scope.setdefault("state", {})

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on; its beginning gets the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(b"x-request-id", self.id.encode()), *_SECURITY_HEADERS]
            if self.allowed_origin is not None:
                added += [(b"access-control-allow-origin", self.allowed_origin.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await self._send(message)

    async def answer_options(self) -> None:
        """What may be asked: to a browser in front of a request from an allowed origin, and to anyone else."""
        headers = [(b"allow", _ALLOWED_METHODS.encode())]
        if self.allowed_origin is not None:
            headers += [
                (b"access-control-allow-methods", _ALLOWED_METHODS.encode()),
                (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
                (b"access-control-max-age", b"600"),
            ]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: ApiError, receive: Receive) -> None:
        """Tell the error, if no answer has begun, and close the connection: the rest of a refused body is not worth reading.

        A client that still sends would take the closed connection for the answer, so its body is read a little further first.
        """
        if self.status is not None:
            return  # an answer that broke off: uvicorn closes the connection, and so it does not look whole
        response = error.response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        if _has_body(self.headers):
            await _read_on(receive, _LINGER_BODIES * self._state.settings.body_bytes)
        await self.send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        """Count and log what became of it."""
        seconds = time.monotonic() - self._began
        endpoint = endpoint_label(self.scope["path"])
        status = self.status or _CLIENT_LEFT_STATUS
        self._state.metrics.requests.labels(endpoint, str(status)).inc()
        self._state.metrics.request_seconds.labels(endpoint).observe(seconds)
        path = ascii(self.scope["path"][:200])[1:-1]
        console.debug(f"{self.id} {self.scope['method'][:16]} {path} {status} {seconds:.3f} s")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that has been read once more, and after it what comes: that the client left."""
    left: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


async def _read_on(receive: Receive, most_bytes: int) -> None:
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while most_bytes > 0:
                message = await receive()
                most_bytes -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
